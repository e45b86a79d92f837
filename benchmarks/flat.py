"""FLAT on small requests: what is left of the rest when only forget records may be used.

Six requests of three countries (nine facts, about 1 %). Every method sees the forget records and
nothing else, takes 60 steps at the same learning rate, and is measured on every other fact. NPO
uses a reference, and idk refusals only; they stand beside FLAT for comparison.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
from lm_study import Study, study
from output import parser, report

REQUESTS, COUNTRIES = 6, 3
SCHEDULE = {"epochs": 60, "batch_size": 9, "lr": 1e-4}
LONG = {"epochs": 50, "lr": 1e-4}  # 150 steps on all 24 countries
BOUNDS = {
    "kl": (-0.6321205589, 1.0),
    "js": (-0.3798854931, 0.6201145070),
    "pearson": (-1.0, 1.25),
    "tv": (-0.3807970780, 0.3807970780),
}
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "grad_ascent": ("grad_ascent", {}),
    **{f"flat, {name}": ("flat", {"divergence": name}) for name in BOUNDS},
    "idk": ("idk", {"retain": "none"}),
    "ceu": ("ceu", {}),
    "npo, beta 1": ("npo", {"retain": "none", "beta": 1.0}),
}


def main() -> None:
    """Run every arm on every request, and the long runs on all 24 countries."""
    options = parser("Retained facts after small requests, forget data only.").parse_args()
    torch.set_num_threads(options.threads)
    found = study()
    numbers = {arm: small(found, *ARMS[arm]) for arm in ARMS}
    for arm in ("grad_ascent", "flat, kl", "flat, tv"):
        method, settings = ARMS[arm]
        losses = []
        for epochs in (25, 50):
            long = {**settings, "schedule": {**LONG, "epochs": epochs}}
            losses.append(found.loss(found.apply(method, long).model, found.forget))
        numbers[arm]["long_forget_loss"] = losses
    best = numbers["grad_ascent"]["retained"]
    rows = [
        {
            "method": arm,
            "retained, six requests": " ".join(f"{v:.2f}" for v in told["retained"]),
            "mean": f"{statistics.fmean(told['retained']):.2f}",
            "beats ascent": sum(a > b for a, b in zip(told["retained"], best, strict=True)),
            "forgotten": f"{max(told['forgotten']):.2f}",
            "forgotten loss": f"{min(told['forget_loss']):.1f} to {max(told['forget_loss']):.1f}",
            "72 facts, step 75, 150": ", ".join(
                f"{v:.1f}" for v in told.get("long_forget_loss", [])
            ),
        }
        for arm, told in numbers.items()
    ]
    title = "Exact match on every other fact after forgetting three countries"
    report(title, rows, numbers, options.json)


def small(found: Study, method: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Run one arm on the six requests."""
    told: dict[str, Any] = {"retained": [], "forgotten": [], "forget_loss": [], "loss_range": []}
    for request in range(REQUESTS):
        forget = found.countries(COUNTRIES, request * COUNTRIES)
        result = found.apply(method, {**settings, "schedule": SCHEDULE}, forget=forget)
        told["retained"].append(found.exact(result.model, found.facts_but(forget)))
        told["forgotten"].append(found.exact(result.model, forget))
        told["forget_loss"].append(found.loss(result.model, forget))
        if method == "flat":
            values = [step["forget"] + step["template"] for step in result.history.steps]
            low, high = BOUNDS[settings["divergence"]]
            assert all(low - 1e-6 <= value <= high + 1e-6 for value in values)
            told["loss_range"].append([min(values), max(values)])
    return told


if __name__ == "__main__":
    main()
