"""A held-out set that is asked a thousand times: plain, and behind Thresholdout.

Two classes, independent Gaussian features. The analyst keeps every feature whose correlation with
the class has one sign on both samples and stands out on both, takes the k that correlate most on
the training sample, lets them vote, and reports the accuracy on the holdout: d + 1 questions of one
holdout. Fresh records tell what the reported accuracy is worth.

Source: The reusable holdout (Dwork et al., 2015), the synthetic experiments.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from output import parser, report

from expunge.audit.holdout import BUDGET, PAPER_NOISE, Exhausted, HoldoutConfig, Thresholdout
from expunge.audit.holdout_ledger import Ledger
from expunge.core.records import Records
from expunge.core.streams import stream

NUM_SIGNALS = 20
BOUND = 3.0
"""Every question, that for the accuracy too, is asked with the range -3..3."""
WORLDS = {"no signal": 0.0, "signal": 6.0}
HOLDOUTS = ("plain", "science_demo", "paper's noise", "thresholdout")
Numbers = dict[str, float | None]


@dataclasses.dataclass(frozen=True)
class Sample:
    """Records of one world.

    Attributes:
        x: Features, (n, d).
        y: Classes, -1 or 1, (n,).
    """

    x: np.ndarray
    y: np.ndarray

    def correlations(self) -> np.ndarray:
        """Return the mean of x_j y per feature, cut to the declared range, (d,)."""
        return self.y @ np.clip(self.x, -BOUND, BOUND) / len(self.y)

    def accuracy(self, weights_d: np.ndarray) -> float:
        """Return how often the sign of the weighted sum is the class."""
        return float((np.where(self.x @ weights_d >= 0, 1, -1) == self.y).mean())


def main() -> None:
    """Run every repetition in both worlds and print the means."""
    made = parser("Accuracy that an adaptive analyst reports, and its worth on fresh records.")
    made.add_argument("--repetitions", type=int, default=20, help="samples of each world")
    made.add_argument("--n", type=int, default=1000, help="records of each sample")
    made.add_argument("--d", type=int, default=1000, help="features")
    made.add_argument("--k", type=int, default=100, help="features that vote")
    options = made.parse_args()
    numbers = study(options.n, options.d, options.k, options.repetitions)
    rows = [
        {"world": world, "holdout": holdout, **{name: _cell(v) for name, v in found.items()}}
        for world, by_holdout in numbers.items()
        for holdout, found in by_holdout.items()
    ]
    report(f"Means of {options.repetitions} repetitions", rows, numbers, options.json)
    patience = [
        {
            "noise": f"threshold / {ratio}",
            "questions": round(false_alarms(ratio)),
            "epsilon": f"{BUDGET * 2 * ratio / (4 / math.sqrt(options.n) * options.n):.1f}",
        }
        for ratio in (4, 8, 16)
    ]
    report(f"Questions until {BUDGET} false alarms, median", patience, patience, None)


def false_alarms(ratio: float, budget: int = BUDGET, ledgers: int = 20_000) -> float:
    """Return the median number of questions that spend the budget when both samples agree exactly.

    A question is a false alarm when Lap(2) + Lap(4) < -ratio, in units of the noise; the first
    number lasts until the next alarm.

    Args:
        ratio: Threshold over noise.
        budget: Alarms.
        ledgers: How many are drawn.
    """
    draw = stream(0, "false alarms", str(ratio))
    bar = ratio + draw.laplace(0, 2, (ledgers, budget))
    chance = np.where(bar > 0, np.exp(-np.abs(bar) / 4) / 2, 1 - np.exp(-np.abs(bar) / 4) / 2)
    return float(np.median(draw.geometric(np.maximum(chance, 1e-12)).sum(axis=1)))


def study(
    n: int, d: int, k: int, repetitions: int, holdouts: Sequence[str] = HOLDOUTS
) -> dict[str, dict[str, Numbers]]:
    """Return mean numbers by world and kind of holdout.

    Args:
        n: Records of each of the three samples.
        d: Features.
        k: Features that vote.
        repetitions: Samples of each world.
        holdouts: Kinds of holdout.
    """
    found = {}
    for world, strength in WORLDS.items():
        runs = [_repetition(n, d, k, strength, seed, holdouts) for seed in range(repetitions)]
        found[world] = {kind: _means([run[kind] for run in runs]) for kind in holdouts}
    return found


def _repetition(
    n: int, d: int, k: int, strength: float, seed: int, holdouts: Sequence[str]
) -> dict[str, Numbers]:
    names = ("train", "holdout", "fresh")
    train, holdout, fresh = (_sample(n, d, strength, seed, name) for name in names)
    train_d, holdout_d = train.correlations(), holdout.correlations()
    found = {}
    for kind in holdouts:
        mechanism = None if kind == "plain" else _mechanism(kind, n, seed)
        ask = _plain if mechanism is None else _behind(mechanism)
        pairs = zip(train_d, holdout_d, strict=True)
        answer_d = np.array([ask(*pair) or 0.0 for pair in pairs])
        weights_d = _choose(train_d, answer_d, k, 1 / math.sqrt(n))
        on_train = train.accuracy(weights_d)
        reported = ask(on_train, holdout.accuracy(weights_d))
        ledger = None if mechanism is None else mechanism.ledger
        found[kind] = {
            "train": on_train,
            "reported": reported,
            "fresh": fresh.accuracy(weights_d),
            "answered": d + 1.0 if ledger is None else float(ledger.asked),
            "spent": None if ledger is None else float(ledger.spent),
            "epsilon": None if mechanism is None else mechanism.epsilon,
        }
    return found


def _sample(n: int, d: int, strength: float, seed: int, name: str) -> Sample:
    draw = stream(seed, "reusable holdout", name)
    y = draw.choice([-1, 1], n)
    x = draw.standard_normal((n, d))
    x[:, :NUM_SIGNALS] += strength / math.sqrt(n) * y[:, None]
    return Sample(x, y)


def _mechanism(kind: str, n: int, seed: int) -> Thresholdout:
    threshold = 4 / math.sqrt(n) / (2 * BOUND)  # settings are for a range that is one wide
    settings = {
        "science_demo": HoldoutConfig(mode="science_demo", threshold=threshold),
        "paper's noise": HoldoutConfig(threshold=threshold, noise=threshold * PAPER_NOISE),
        "thresholdout": HoldoutConfig(threshold=threshold),
    }
    train, holdout = (
        Records(tuple(f"{name}-{row}" for row in range(n)), {}) for name in ("train", "holdout")
    )
    return Thresholdout(train, holdout, Ledger(None), seed, settings[kind])


def _plain(a_train: float, a_holdout: float) -> float | None:
    return a_holdout


def _behind(mechanism: Thresholdout) -> Callable[[float, float], float | None]:
    """Return a function that asks the mechanism; ``None`` once its budget is spent."""

    def ask(a_train: float, a_holdout: float) -> float | None:
        try:
            return mechanism.ask_values(a_train, a_holdout, low=-BOUND, high=BOUND).value
        except Exhausted:
            return None

    return ask


def _choose(train_d: np.ndarray, answer_d: np.ndarray, k: int, least: float) -> np.ndarray:
    """Return 1 or -1 for each of the at most k features that vote, 0 for the others, (d,)."""
    kept_d = (np.abs(train_d) > least) & (np.abs(answer_d) > least)
    kept_d &= np.sign(train_d) == np.sign(answer_d)
    strength_d = np.where(kept_d, np.abs(train_d), 0.0)
    chosen = np.argsort(strength_d)[max(len(strength_d) - k, 0) :]  # [-k:] takes all at k = 0
    weights_d = np.zeros(len(strength_d))
    weights_d[chosen] = np.sign(train_d[chosen]) * kept_d[chosen]
    return weights_d


def _means(runs: Sequence[Numbers]) -> Numbers:
    """Return the mean of each number over the repetitions that have it."""
    found: Numbers = {}
    for name in runs[0]:
        known = [value for run in runs if (value := run[name]) is not None]
        found[name] = float(np.mean(known)) if known else None
    return found


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if value < 2 else f"{value:.1f}"


if __name__ == "__main__":
    main()
