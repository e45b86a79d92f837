"""WAGLE's attribution mask against other masks: what few weights can forget, and at what price.

Gradient difference and NPO run with the same steps and learning rate on a share of the weights that
is chosen by attribution, pruning sensitivity (infinite curvature), magnitude or at random.
"""

from __future__ import annotations

from typing import Any

import torch
from lm_study import Study, spread, study
from output import parser, report

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "grad_diff": ("grad_diff", {}),
    "npo": ("npo", {"beta": 1.0}),
}
RULES: dict[str, dict[str, Any]] = {
    "attribution": {"by": "attribution"},
    "sensitivity": {"by": "attribution", "curvature": "infinite"},
    "magnitude": {"by": "magnitude"},
    "random": {"by": "random"},
}
DENSITIES = (0.95, 0.1, 0.03)
SCHEDULE = {"epochs": 34, "weight_decay": 0.0}  # 102 steps
MATCHED = (8, 12, 18, 26, 40)  # epochs among which equal forgetting is looked for
ENOUGH = 0.05


def main() -> None:
    """Run every method under every mask, and compare dense and masked runs at equal forgetting."""
    made = parser("Forgotten and held facts under weight masks of several densities.")
    made.add_argument("--seeds", type=int, default=2, help="runs of each arm")
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    found, seeds = study(), range(options.seeds)
    numbers: dict[str, Any] = {}
    for method in METHODS:
        numbers[f"{method}, dense"] = measured(found, method, None, seeds)
        for density in DENSITIES:
            for rule, mask in RULES.items():
                told = measured(found, method, {**mask, "fraction": density}, seeds)
                numbers[f"{method}, {rule} {density}"] = told
    matched = {
        method: {
            label: at_equal_forgetting(found, method, mask, seeds)
            for label, mask in (
                ("dense", None),
                ("attribution 0.95", {"by": "attribution", "fraction": 0.95}),
                ("attribution 0.1", {"by": "attribution", "fraction": 0.1}),
                ("random 0.1", {"by": "random", "fraction": 0.1}),
            )
        }
        for method in METHODS
    }
    rows = [
        {"arm": arm, **{name: spread(values) for name, values in told.items()}}
        for arm, told in numbers.items()
    ]
    report(
        f"{3 * SCHEDULE['epochs']:.0f} steps", rows, {**numbers, "matched": matched}, options.json
    )
    print(f"held facts at the first length with at most {ENOUGH} of the forgotten ones exact:")
    for method, told in matched.items():
        for label, cells in told.items():
            print(f"  {method}, {label}: {cells}")


def measured(
    found: Study, method: str, mask: dict[str, Any] | None, seeds: range, epochs: int = 34
) -> dict[str, list[float]]:
    """Return exact match on forgotten and held facts, and the forgotten loss, one per seed."""
    name, own = METHODS[method]
    settings = {**own, "schedule": {**SCHEDULE, "epochs": epochs}}
    if mask is not None:
        settings["scope"] = {"mask": mask}
    models = [found.apply(name, settings, seed).model for seed in seeds]
    return {
        "forgotten": [found.exact(model, found.forget) for model in models],
        "forgotten loss": [found.loss(model, found.forget) for model in models],
        "held": [found.exact(model, found.held) for model in models],
    }


def at_equal_forgetting(
    found: Study, method: str, mask: dict[str, Any] | None, seeds: range
) -> list[dict[str, float | None]]:
    """Return for each seed the shortest run that forgets enough, and what it left of held facts."""
    told: list[dict[str, float | None]] = []
    for seed in seeds:
        for epochs in MATCHED:
            one = measured(found, method, mask, range(seed, seed + 1), epochs)
            if one["forgotten"][0] <= ENOUGH:
                told.append({"steps": 3 * epochs, "held": one["held"][0]})
                break
        else:
            told.append({"steps": None, "held": one["held"][0]})  # never enough
    return told


if __name__ == "__main__":
    main()
