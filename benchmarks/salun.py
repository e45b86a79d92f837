"""SalUn and its baselines on small pictures: average gap to retraining, by learning rate.

2,000 pictures of MNIST or Fashion-MNIST at 14 x 14, a perceptron of two hidden layers, 200 random
records to forget. Learning rates are chosen on the pilot seed by the average gap; the numbers to
report come from other seeds, each with a retrained model of its own.

Source: SalUn (Fan et al., 2024), section 5 and table 1, at a small scale.
"""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

import torch
from output import parser, report
from small_pictures import COUNT, FITTED, SOURCES, Numbers, World, tuning, world
from torch import nn

from expunge.core.errors import NumericalError
from expunge.core.sets import Sets
from expunge.pipeline.request import Request, resolve

PILOT = 100
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "finetune": ("finetune", {}),
    "grad_ascent": ("grad_ascent", {}),
    "random_label": ("random_label", {}),
    "salun, s = 0.5": ("salun", {"scope": {"mask": {"fraction": 0.5}}}),
    "salun, s = 0.2": ("salun", {"scope": {"mask": {"fraction": 0.2}}}),
    "salun_soft": ("salun_soft", {}),
}
LARGEST = 0.1
RATES = {method: (0.003, 0.01, 0.03, LARGEST) for method in METHODS}
RATES["grad_ascent"] = (0.001, 0.003, 0.01, 0.03, 0.05)  # at 0.1 its gradient overflows
NUMBERS = ("ua", "ra", "ta", "mia", "average_gap", "moved")


@dataclasses.dataclass(frozen=True)
class Trial:
    """One seed's world, with its forget set and a retrained model.

    Attributes:
        here: Data and original model.
        sets: Which records are forgotten.
        retrained: Trained without the forget set.
    """

    here: World
    sets: Sets
    retrained: nn.Module

    def unlearned(self, method: str, lr: float) -> nn.Module:
        """Return the original after a method of the table at a learning rate."""
        name, own = METHODS[method]
        return self.here.unlearned(self.sets, name, {**own, "schedule": tuning(lr)})

    def numbers(self, model: nn.Module) -> Numbers:
        """Return UA, RA, TA, MIA, the average gap, and the share of moved weights, in percent."""
        found = self.here.numbers(model, [self.retrained], self.sets)
        return {**found, "moved": 100 * _moved(self.here.original, model)}


def trial(source: str, seed: int) -> Trial:
    """Train and retrain in the world of one seed."""
    here = world(source, seed, FITTED)
    sets = resolve(Request(count=COUNT), here.dataset, seed)
    return Trial(here, sets, here.retrained(sets))


def main() -> None:
    """Choose learning rates on the pilot seed, then report on the others."""
    made = parser("Average gap to retraining of SalUn and its baselines.")
    made.add_argument("--seeds", type=int, default=2, help="seeds to report on")
    made.add_argument("--data", choices=sorted(SOURCES), default="mnist", help="which pictures")
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    pilot = trial(options.data, PILOT)
    by_rate = {
        method: {lr: gap for lr in RATES[method] if (gap := _gap(pilot, method, lr)) is not None}
        for method in METHODS
    }
    chosen = {method: min(gaps, key=gaps.__getitem__) for method, gaps in by_rate.items()}
    trials = [trial(options.data, 10 * seed) for seed in range(options.seeds)]
    numbers = {
        "original": _mean([t.numbers(t.here.original) for t in trials]),
        "retrained": _mean([t.numbers(t.retrained) for t in trials]),
        **{
            method: _mean([t.numbers(t.unlearned(method, chosen[method])) for t in trials])
            for method in METHODS
        },
        **{
            f"{method}, lr {LARGEST}": _mean(
                [t.numbers(t.unlearned(method, LARGEST)) for t in trials]
            )
            for method in METHODS
            if LARGEST in RATES[method]
        },
    }
    rows = [
        {"model": model, **{name: f"{values[name]:.2f}" for name in NUMBERS}}
        for model, values in numbers.items()
    ]
    report(
        f"Means over {len(trials)} seeds of {options.data}, percent; learning rates from the pilot "
        f"seed: {chosen}",
        rows,
        {"pilot": by_rate, "chosen": chosen, "means": numbers},
        options.json,
    )
    for method, gaps in by_rate.items():
        listed = ", ".join(f"{lr:g}: {gap:.2f}" for lr, gap in gaps.items())
        print(f"pilot, average gap by learning rate, {method}: {listed}")


def _gap(pilot: Trial, method: str, lr: float) -> float | None:
    """Return the average gap; ``None`` where numbers overflow."""
    try:
        return pilot.numbers(pilot.unlearned(method, lr))["average_gap"]
    except NumericalError:
        return None


def _moved(one: nn.Module, other: nn.Module) -> float:
    """Return the share of weights whose bits differ."""
    pairs = list(zip(one.parameters(), other.parameters(), strict=True))
    return sum(int((a != b).sum()) for a, b in pairs) / sum(a.numel() for a, _ in pairs)


def _mean(found: list[Numbers]) -> Numbers:
    return {name: statistics.mean(numbers[name] for numbers in found) for name in NUMBERS}


if __name__ == "__main__":
    main()
