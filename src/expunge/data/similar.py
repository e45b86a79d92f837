"""Nearest records by the cosine between their features.

Shape legend: N records, Q examples, D features.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from expunge.core.errors import ConfigError, DataError, NumericalError

_CHUNK = 4096


def cosine_distances(features_ND: np.ndarray, examples_QD: np.ndarray) -> np.ndarray:
    """Return the distance of each record to the nearest example: 1 - cosine, from 0 to 2.

    A vector of zeros has no direction; it counts as orthogonal to every other (distance 1). What
    rounding leaves of the distance between equal directions is dropped.

    Args:
        features_ND: Features of the records.
        examples_QD: Features of the examples, at least one.

    Raises:
        DataError: There is no example, or it has another number of features.
        NumericalError: A feature is not finite.
    """
    if examples_QD.ndim != 2 or not len(examples_QD):
        raise DataError("there is no example to compare with; give at least one")
    if features_ND.shape[1:] != examples_QD.shape[1:]:
        raise DataError(
            f"examples have {examples_QD.shape[1]} features but records {features_ND.shape[1]}"
        )
    examples_QD = _directions(examples_QD)
    nearest_N = np.empty(len(features_ND))
    for start in range(0, len(features_ND), _CHUNK):
        part_ND = _directions(features_ND[start : start + _CHUNK])
        nearest_N[start : start + _CHUNK] = 1 - (part_ND @ examples_QD.T).max(axis=1)
    return np.clip(nearest_N.round(12), 0.0, 2.0)


def check_reach(count: int | None, radius: float | None) -> None:
    """Check that exactly one of count and radius is given, and in range.

    Raises:
        ConfigError: It is not so.
    """
    if (count is None) == (radius is None):
        raise ConfigError("give either a count or a radius")
    if count is not None and count < 1:
        raise ConfigError(f"count = {count}: ask for at least 1 record")
    if radius is not None and not 0 <= radius <= 2:
        raise ConfigError(f"radius = {radius}: a cosine distance lies between 0 and 2")


def nearest_rows(
    distances_N: np.ndarray,
    excluded: Collection[int],
    *,
    count: int | None = None,
    radius: float | None = None,
) -> list[int]:
    """Return the rows nearest to the examples, nearest first; of equal ones the earlier first.

    Args:
        distances_N: Distance of each record.
        excluded: Rows that are left out: the examples themselves.
        count: How many.
        radius: Largest distance, in place of a count.

    Raises:
        ConfigError: Not exactly one of count and radius is given, or it is out of range.
        DataError: There are fewer records than asked for, or none within the radius.
    """
    check_reach(count, radius)
    order = [int(row) for row in np.argsort(distances_N, kind="stable") if row not in excluded]
    if count is not None:
        if count > len(order):
            raise DataError(
                f"count = {count} but there are {len(order)} training records beside the examples; "
                "ask for fewer"
            )
        return order[:count]
    assert radius is not None
    within = [row for row in order if distances_N[row] <= radius]
    if not within:
        nearest = f"{distances_N[order[0]]:.3g}" if order else "unknown: there is no other record"
        raise DataError(
            f"no training record lies within radius = {radius} of an example; the nearest distance "
            f"is {nearest}"
        )
    return within


def _directions(vectors: np.ndarray) -> np.ndarray:
    wide = np.asarray(vectors, dtype=np.float64)
    if not np.isfinite(wide).all():
        raise NumericalError("the model's features are not finite; it cannot say what is alike")
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / np.where(lengths > 0, lengths, 1.0)
