"""p-values of many tests, adjusted for their number.

A test that could not be carried out is ``None``. It stays ``None`` and still counts as one of the
tests, so that failing to run it never makes another one look better.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from expunge.core.errors import DataError


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Return step-down adjusted p-values; they bound the chance of any false alarm.

    The i-th smallest of m becomes the largest of (m - k + 1) p_(k) over k <= i, at most 1. Holds
    under any dependence between the tests.

    Args:
        p: One p-value per test.

    Returns:
        The adjusted values in the same order.

    Raises:
        DataError: A value is NaN or outside 0..1.

    Source: Holm (1979).
    """
    sorted_m, back = _sorted(p)
    m = len(sorted_m)
    steps_m = (m - np.arange(m)) * sorted_m
    return _restore(np.maximum.accumulate(steps_m), back, p)


def benjamini_hochberg(p: Sequence[float | None]) -> list[float | None]:
    """Return step-up adjusted p-values; they bound the expected share of false alarms.

    The i-th smallest of m becomes the smallest of m p_(k) / k over k >= i. Holds for independent
    tests and under positive regression dependence.

    Args:
        p: One p-value per test.

    Returns:
        The adjusted values in the same order.

    Raises:
        DataError: A value is NaN or outside 0..1.

    Source: Benjamini and Hochberg (1995).
    """
    sorted_m, back = _sorted(p)
    m = len(sorted_m)
    steps_m = m / np.arange(1, m + 1) * sorted_m
    return _restore(np.minimum.accumulate(steps_m[::-1])[::-1], back, p)


def _sorted(p: Sequence[float | None]) -> tuple[np.ndarray, np.ndarray]:
    """Return the values in ascending order, absent ones as 1, and the place of each of ``p``."""
    for place, value in enumerate(p):
        if value is not None and not 0 <= value <= 1:
            raise DataError(
                f"p-value {place} is {value!r}; give a number of 0..1, or None for a test that "
                "could not be carried out"
            )
    whole_m = np.array([1.0 if value is None else value for value in p], dtype=np.float64)
    order = np.argsort(whole_m, kind="stable")
    return whole_m[order], np.argsort(order)


def _restore(
    adjusted_m: np.ndarray, back: np.ndarray, p: Sequence[float | None]
) -> list[float | None]:
    found = np.minimum(adjusted_m, 1.0)[back]
    return [
        None if value is None else float(adjusted) for value, adjusted in zip(p, found, strict=True)
    ]
