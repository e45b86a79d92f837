"""ULD: how much is subtracted, how large the assistant is, and what the parts say alone.

With 72 retained facts the assistant sees a fraction of what the other methods see; another one
sees all of them.
"""

from __future__ import annotations

from typing import Any

import torch
from lm_study import Study, spread, study
from output import parser, report

from expunge.engine.composites.logit_difference import LogitDifference

FEW = 72
SCHEDULE = {"epochs": 150, "batch_size": 36, "lr": 2e-3, "warmup_epochs": 0}
ALPHAS = (0.5, 0.65, 0.8, 1.0)


def main() -> None:
    """Train assistants, sweep the weight, and run the comparisons."""
    made = parser("Forgotten and held facts under ULD and under methods that change weights.")
    made.add_argument("--seeds", type=int, default=3, help="runs of each arm")
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    found, seeds = study(), range(options.seeds)
    kinds = {
        f"1 layer, {FEW} retained": (1, found.retain.take(range(FEW))),
        f"2 layers, {FEW} retained": (2, found.retain.take(range(FEW))),
        f"1 layer, {len(found.retain)} retained": (1, found.retain),
    }
    numbers: dict[str, dict[str, list[float]]] = {"original": measure(found, [found.before.model])}
    for label, (layers, retain) in kinds.items():
        settings = {"layers": layers, "schedule": SCHEDULE}
        made_of: list[Any] = [
            found.apply("uld", settings, seed, retain=retain).model for seed in seeds
        ]
        for alpha in ALPHAS:
            models = [LogitDifference(m.target, m.assistant, alpha=alpha) for m in made_of]
            numbers[f"uld, {label}, alpha {alpha}"] = measure(found, models)
        numbers[f"assistant alone, {label}"] = measure(found, [m.assistant for m in made_of])
    others: dict[str, tuple[str, dict[str, Any]]] = {
        "grad_diff, kl, 150 steps": ("grad_diff", {"retain": "kl", "schedule": {"lr": 1e-4}}),
        "npo, beta 1, 150 steps": ("npo", {"beta": 1.0}),
    }
    for label, (method, settings) in others.items():
        models = [found.apply(method, settings, seed).model for seed in seeds]
        numbers[label] = measure(found, models)
    rows = [
        {"model": label, **{name: spread(values) for name, values in told.items()}}
        for label, told in numbers.items()
    ]
    report("ULD and methods that change weights", rows, numbers, options.json)


def measure(found: Study, models: list[Any]) -> dict[str, list[float]]:
    """Return exact match on forgotten and held facts, and the forgotten loss, one per model."""
    return {
        "forgotten": [found.exact(model, found.forget) for model in models],
        "forgotten loss": [found.loss(model, found.forget) for model in models],
        "held": [found.exact(model, found.held) for model in models],
    }


if __name__ == "__main__":
    main()
