"""Intervals of bootstrap draws that have no width, as when every record of a few is right."""

from __future__ import annotations

import dataclasses

import numpy as np

from expunge.audit.stats import clopper_pearson, percentile_interval
from expunge.core.finding import Interval


def resampled(
    value: float, draws: np.ndarray, n: int, low: float = -1.0, high: float = 1.0
) -> Interval:
    """Return the percentile interval of draws; an exact one where all draws are equal.

    Nothing that was seen differs then, so that the value can be off by as much as Clopper and
    Pearson allow an event that was seen in none of n records.

    Args:
        value: The number.
        draws: Its bootstrap draws.
        n: Records that it rests on, at least one.
        low: Least possible value.
        high: Largest possible value.

    Source: Clopper and Pearson (1934); Efron and Tibshirani (1993), chapter 13.
    """
    if np.ptp(draws) > 0:
        return percentile_interval(draws)
    exact = clopper_pearson(0, n)
    ends = max(value - exact.high, low), min(value + exact.high, high)
    return dataclasses.replace(exact, low=ends[0], high=ends[1])
