"""Euclidean projection to weights between 0 and 1 with a given sum."""

from __future__ import annotations

import numpy as np

from expunge.core.errors import DataError

_ROUNDS = 200
_WIDTH = 1e-12  # of the bracket, relative to the largest number


def project(values: np.ndarray, total: int) -> np.ndarray:
    """Return the nearest vector with entries from 0 to 1 that sum to ``total``.

    It is ``clip(values - mu, 0, 1)``; the shift mu is found by bisection in float64, since the sum
    falls with it. The bracket from ``min(values) - 1`` (all entries 1) to ``max(values)`` (all 0)
    always holds it.

    Args:
        values: Any finite numbers.
        total: The sum; at least 1, less than the number of entries.

    Raises:
        DataError: A value is not finite, or the sum cannot be had.

    Source: Wang and Lu (2015); Challenging Forgets (Fan et al., 2024), eq. 6.
    """
    wide = np.asarray(values, dtype=np.float64)
    if not np.isfinite(wide).all():
        raise DataError("projection: a value is NaN or infinite; check the losses it comes from")
    if not 0 < total < len(wide):
        raise DataError(
            f"projection: {len(wide)} weights from 0 to 1 cannot sum to {total}; choose 1 to "
            f"{len(wide) - 1}"
        )
    low, high = wide.min() - 1, wide.max()
    least = _WIDTH * max(1.0, abs(low), abs(high))
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        if np.clip(wide - middle, 0, 1).sum() > total:
            low = middle
        else:
            high = middle
        if high - low <= least:
            break
    weights: np.ndarray = np.clip(wide - (low + high) / 2, 0, 1)
    return weights
