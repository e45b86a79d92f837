"""PrivLeak: how far a membership attack on a model is from the same on retrained ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from expunge.audit.evidence import Measurement, Subject
from expunge.audit.mia_scores import min_k
from expunge.audit.readings import Reading
from expunge.audit.resampled import resampled
from expunge.audit.stats import RESAMPLES, auc, percentile_interval
from expunge.core.finding import Interval
from expunge.core.streams import stream

FEW = 100
"""Texts of either side that a judged PrivLeak needs."""
MEMBERS, NONMEMBERS = Reading("forget", "apart"), Reading("holdout")
"""The texts that are attacked."""
_NO_WIDTH = 1e-9  # percent; resamples that differ less do so by rounding
_SHORTEST = 4
_UNLIKE = 0.15


def privleak(area: float, standard: float) -> float:
    """Return MUSE's privacy leakage in percent.

    Args:
        area: AUC of the model in MUSE's orientation: high when forgotten texts look unseen.
        standard: AUC of retraining, between 0 and 1, neither of them.

    Raises:
        ValueError: The standard is 0 or 1.

    Source: MUSE (Shi et al., 2025), equation 2.
    """
    if not 0 < standard < 1:
        raise ValueError(f"an AUC of {standard} after retraining: separable without training")
    return 100 * (area - standard) / standard


def bootstrap_areas(
    forgotten: np.ndarray, held_out: np.ndarray, seed: int, resamples: int = RESAMPLES
) -> np.ndarray:
    """Return the AUC (MUSE's orientation) of resamples of both sides, shape (resamples,).

    Models with as many texts under one seed are resampled alike, so that their AUCs are paired.

    Args:
        forgotten: How memorised each forgotten text looks, at least one; higher is more.
        held_out: The same of each held-out text, at least one.
        seed: The run's seed.
        resamples: How many.
    """
    m, n = len(forgotten), len(held_out)
    values = np.concatenate([forgotten, held_out])
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=-np.inf))
    draws = stream(seed, "bootstrap", "privleak")
    areas = np.empty(resamples)
    counts = np.zeros((2, m + n))  # of forgotten and of held-out texts
    for place in range(resamples):
        counts[0, :m] = np.bincount(draws.integers(m, size=m), minlength=m)
        counts[1, m:] = np.bincount(draws.integers(n, size=n), minlength=n)
        own, other = np.add.reduceat(counts[:, order], starts, axis=1)
        # A pair counts when the held-out text looks more memorised; ties count half.
        areas[place] = (other * (np.cumsum(own) - own / 2)).sum() / (m * n)
    return areas


class Attack:
    """The Min-K% attack on one model: AUC in MUSE's orientation, and its resamples."""

    def __init__(self, forgotten: np.ndarray, held_out: np.ndarray, seed: int, short: int) -> None:
        self.counts = (len(forgotten), len(held_out))
        self.short = short
        self.area: float | None = None
        if min(self.counts):
            self.area, self.interval = auc(held_out, forgotten)
            self.draws = bootstrap_areas(forgotten, held_out, seed)

    @classmethod
    def of(cls, subject: Subject, share: float, seed: int) -> Attack:
        """Attack a model by its scores; texts that are too short are left out and counted."""
        sides, short = [], 0
        for reading in (MEMBERS, NONMEMBERS):
            scores = subject.scores[reading]
            long_R = scores.n_R >= _SHORTEST
            sides.append(min_k(scores, share)[long_R])
            short += int((~long_R).sum())
        return cls(sides[0], sides[1], seed, short)

    def measurement(
        self, value: float | None = None, interval: Interval | None = None
    ) -> Measurement:
        """Return a number of this attack (its AUC by default) with what speaks against it."""
        if self.area is None:
            return Measurement(None, sum(self.counts), note=self._missing())
        if value is None:
            value, interval = self.area, self.interval
        notes = []
        if min(self.counts) < FEW:
            notes.append(
                f"only {self.counts[0]} forgotten and {self.counts[1]} held-out texts, where "
                f"{FEW} of each are needed: the error is wide"
            )
        if self.short:
            notes.append(f"{self.short} texts under {_SHORTEST} tokens are left out")
        return Measurement(value, sum(self.counts), interval, "; ".join(notes))

    def _missing(self) -> str:
        if self.short:
            return f"a side has no text of {_SHORTEST} tokens or more"
        return "there are no held-out records to compare with"


def measured_privleak(own: Attack, others: Sequence[Attack]) -> Measurement:
    """Return PrivLeak with its interval, or why there is none.

    Args:
        own: The attack on the model.
        others: The same on retrained models.
    """
    if own.area is None:
        return own.measurement()
    standards = [other for other in others if other.area is not None]
    n = sum(own.counts)
    if not standards:
        return Measurement(None, n, note="no other retrained model to compare with")
    standard = float(np.mean([other.area for other in standards]))
    if not 0 < standard < 1:
        note = f"forget and holdout are separable without training (AUC after it {standard:g})"
        return Measurement(None, n, note=note)
    beside = np.mean([other.draws for other in standards], axis=0)
    good = beside > 0
    leaks = 100 * (own.draws[good] - beside[good]) / beside[good]
    interval = percentile_interval(leaks)
    # No resample can show what the next text would do, or how it would differ from retraining.
    if np.ptp(own.draws) == 0:
        interval = _of_area(own.interval, standard)
    elif interval.high - interval.low < _NO_WIDTH:
        exact = resampled(own.area, own.draws[:1], min(own.counts), low=0.0)
        interval = _of_area(exact, standard)
    found = own.measurement(privleak(own.area, standard), interval)
    if abs(standard - 0.5) <= _UNLIKE:
        return found
    unlike = (
        f"forgotten and held-out texts differ by nature (AUC of retraining {standard:.2f}, not "
        "0.5): PrivLeak says little"
    )
    note = "; ".join(filter(None, (found.note, unlike)))
    return Measurement(found.value, found.n, found.interval, note)


def _of_area(interval: Interval, standard: float) -> Interval:
    """Return the interval of the leak from that of the area."""
    low, high = (privleak(end, standard) for end in (interval.low, interval.high))
    return dataclasses.replace(interval, low=low, high=high)
