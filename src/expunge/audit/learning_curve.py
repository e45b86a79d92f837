"""How a score rises along relearning: steps to a level, their ratio to retraining, the mean.

Shape legend: K points of the curve, S resamples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from expunge.audit.evidence import Measurement
from expunge.audit.recovery import JUDGED_RECORDS, LEAST_RECORDS, interval_of, no_leak_bound
from expunge.core.finding import Verdict, judge

HALF = 0.5
"""The score whose return is timed, unless a curve has a level of its own."""


def first_crossing(steps_K: np.ndarray, scores_K: np.ndarray, level: float = HALF) -> float | None:
    """Return after how many steps a curve first reaches a level, along straight lines.

    Args:
        steps_K: Steps, rising.
        scores_K: Score at each of them.
        level: The level.

    Returns:
        The number of steps; ``None`` when the curve never gets there.
    """
    reached = np.flatnonzero(scores_K >= level)
    if not len(reached):
        return None
    place = int(reached[0])
    if place == 0:
        return float(steps_K[0])
    (x0, x1), (y0, y1) = steps_K[place - 1 : place + 1], scores_K[place - 1 : place + 1]
    return float(x0 + (x1 - x0) * (level - y0) / (y1 - y0))


def mean_score(steps_K: np.ndarray, scores_K: np.ndarray) -> float:
    """Return the area under a curve, divided by its length in steps.

    Args:
        steps_K: Steps, rising, at least two.
        scores_K: Score at each of them.
    """
    return float(np.trapezoid(scores_K, steps_K) / (steps_K[-1] - steps_K[0]))


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """Scores of unseen records along an attack.

    Attributes:
        steps_K: Steps, from 0.
        scores_K: Mean score at each of them.
        draws_SK: The same on resamples of the records.
        n: Records.
        level: The score whose return is timed.
        goal: It in a reader's words.
    """

    steps_K: np.ndarray
    scores_K: np.ndarray
    draws_SK: np.ndarray
    n: int
    level: float = HALF
    goal: str = "one half"

    def crossing(self) -> float | None:
        """Return the steps to the level; ``None`` when it is not reached."""
        return first_crossing(self.steps_K, self.scores_K, self.level)

    def capped(self) -> tuple[float, np.ndarray]:
        """Return the steps to the level, at most the last step, and those of the resamples."""
        value, *draws = (
            self.steps_K[-1] if found is None else found
            for found in (
                first_crossing(self.steps_K, scores_K, self.level)
                for scores_K in (self.scores_K, *self.draws_SK)
            )
        )
        return float(value), np.array(draws)


def steps_ratio(own: Curve, others: Sequence[Curve], bound: float | None) -> Measurement:
    """Return the steps to the level as a share of those that retrained models need.

    Where one of them does not get there, the last step stands for it and the note says which way
    the ratio is bounded; a verdict is then given only if the bound decides it.

    Args:
        own: The model's curve.
        others: The curves of retrained models.
        bound: Smallest ratio that passes, if the number is to be judged.
    """
    if not others:
        return Measurement(None, own.n, note="no other retrained model to compare with")
    if own.n < LEAST_RECORDS:
        return Measurement(None, own.n, note=f"{own.n} scored records are too few")
    mine, theirs = own.capped(), [other.capped() for other in others]
    mean = float(np.mean([value for value, _ in theirs]))
    if mean == 0:
        return Measurement(None, own.n, note=f"retrained models reach {own.goal} without an attack")
    last = own.steps_K[-1]
    never = [own.crossing() is None, any(other.crossing() is None for other in others)]
    if all(never):
        note = f"neither the model nor retrained ones reach {own.goal} in {last} steps"
        return Measurement(None, own.n, note=note)
    means_S = np.mean([draws_S for _, draws_S in theirs], axis=0)
    draws_S = np.divide(mine[1], means_S, where=means_S > 0, out=np.full_like(means_S, np.nan))
    interval, value = interval_of(draws_S, no_leak_bound(own.n, 0.975)), mine[0] / mean
    if interval is not None:
        interval = dataclasses.replace(interval, low=max(interval.low, 0.0))
    note, decisive = "", {"pass", "fail"}
    if never[0]:
        note, decisive = f"at least; {own.goal} is not reached in {last} steps", {"pass"}
    if never[1]:
        note, decisive = f"at most; a retrained model needs more than {last} steps", {"fail"}
    verdict: Verdict | None = None
    if bound is not None:
        verdict = judge(value, interval, bound, "higher")
        if interval is None or own.n < JUDGED_RECORDS or verdict not in decisive:
            verdict = "inconclusive"
    return Measurement(value, own.n, interval, note, verdict)
