"""Numbers of the unlearning protocol: shares of records, mean losses, and their average gap."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from expunge.audit.evidence import Measurement
from expunge.audit.stats import (
    RESAMPLES,
    bootstrap_means,
    clopper_pearson,
    percentile_interval,
)
from expunge.core.finding import Interval
from expunge.core.streams import stream


class Number(Protocol):
    """A number of one model over some records.

    Attributes:
        relative: Whether a gap counts in percent of the references' mean.
    """

    relative: bool

    @property
    def value(self) -> float:
        """The number."""

    @property
    def n(self) -> int:
        """How many records it rests on."""

    @property
    def note(self) -> str:
        """What it does not show."""

    def draws(self, seed: int, purpose: str) -> np.ndarray:
        """Return the number on resamples of the records."""

    def interval(self, seed: int) -> Interval | None:
        """Return its interval, where there is one."""


@dataclasses.dataclass(frozen=True)
class Share:
    """A number of records out of n, in percent.

    Attributes:
        count: How many.
        n: Out of how many.
        note: What it does not show.
    """

    count: int
    n: int
    note: str = ""
    relative = False

    @property
    def value(self) -> float:
        """The share in percent."""
        return 100 * self.count / self.n

    def draws(self, seed: int, purpose: str) -> np.ndarray:
        """Return the share on resamples of the records.

        None or all of n would not vary; then shares that can lie behind it are drawn instead
        (Jeffreys' posterior).
        """
        random = stream(seed, "average-gap", purpose)
        if 0 < self.count < self.n:
            return 100 * random.binomial(self.n, self.count / self.n, RESAMPLES) / self.n
        return 100 * random.beta(self.count + 0.5, self.n - self.count + 0.5, RESAMPLES)

    def interval(self, seed: int) -> Interval:
        """Return the exact interval."""
        del seed
        exact = clopper_pearson(self.count, self.n)
        return dataclasses.replace(exact, low=100 * exact.low, high=100 * exact.high)


@dataclasses.dataclass(frozen=True, eq=False)
class MeanLoss:
    """A mean of losses.

    Attributes:
        loss_R: Loss of each record.
        note: What it does not show.
    """

    loss_R: np.ndarray
    note: str = ""
    relative = True

    @property
    def value(self) -> float:
        """The mean."""
        return float(self.loss_R.mean())

    @property
    def n(self) -> int:
        """How many records it rests on."""
        return len(self.loss_R)

    def draws(self, seed: int, purpose: str) -> np.ndarray:
        """Return the mean on resamples of the records."""
        return bootstrap_means(self.loss_R, seed, purpose)

    def interval(self, seed: int) -> Interval | None:
        """Return the bootstrap interval; none where all losses are equal."""
        if np.ptp(self.loss_R) == 0:
            return None
        return percentile_interval(self.draws(seed, "mean-loss"))


def average_gap(
    own: Mapping[str, Number],
    others: Sequence[Mapping[str, Number]],
    seed: int,
    wanted: Iterable[str] = ("ua", "ra", "ta", "mia"),
) -> Measurement:
    """Return the mean distance of a model's numbers to the references' means, in points.

    The distance of a mean loss is in percent of the references' mean. The interval is over the
    records of the model; the references stand as they are.

    Args:
        own: The model's numbers.
        others: The references' numbers.
        seed: Seed of the bootstrap.
        wanted: Names of the numbers that belong in it.
    """
    if not others:
        return Measurement(None, 0, note="no other retrained model to compare with")
    signed: dict[str, float] = {}
    draws, counted = [], 0
    for metric, number in own.items():
        mean = float(np.mean([other[metric].value for other in others]))
        if number.relative and mean == 0:
            continue
        scale = 100 / mean if number.relative else 1.0
        signed[metric] = scale * (number.value - mean)
        draws.append(np.abs(scale * (number.draws(seed, metric) - mean)))
        counted += 0 if metric.startswith("mia") else number.n
    if not signed:
        return Measurement(None, 0, note="there is no number that retrained models have too")
    notes = [", ".join(f"{metric} {gap:+.1f}" for metric, gap in signed.items())]
    missing = [metric for metric in wanted if metric not in signed]
    if missing:
        notes.append(f"without {', '.join(missing)}")
    value = float(np.mean([abs(gap) for gap in signed.values()]))
    found = percentile_interval(np.mean(draws, axis=0))
    interval = dataclasses.replace(found, low=min(found.low, value), high=max(found.high, value))
    return Measurement(value, counted, interval, "; ".join(notes))
