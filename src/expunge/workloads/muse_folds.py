"""Folds of a forget set: the growing and the successive requests of MUSE."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from expunge.core.errors import DataError
from expunge.core.records import Records
from expunge.core.streams import stream


def disjoint_folds(forget: Records, count: int, seed: int, by: str = "") -> list[tuple[str, ...]]:
    """Part a forget set into folds of nearly equal size that share no record.

    Args:
        forget: The records to forget.
        count: Number of folds.
        seed: Decides which records come into which fold.
        by: Column whose equal values stay in one fold; each record is alone when empty.

    Raises:
        DataError: There are fewer groups than folds, or no such column.
    """
    keys = [str(value) for value in forget[by]] if by else list(forget.ids)
    groups = list(dict.fromkeys(keys))
    if not 1 <= count <= len(groups):
        what = f"groups by {by!r}" if by else "records"
        raise DataError(
            f"cannot make {count} folds of {len(groups)} {what} to forget; ask for fewer folds"
        )
    order = stream(seed, "muse folds").permutation(len(groups))
    fold_of = {
        groups[group]: fold
        for fold, part in enumerate(np.array_split(order, count))
        for group in part
    }
    return [
        tuple(i for i, key in zip(forget.ids, keys, strict=True) if fold_of[key] == fold)
        for fold in range(count)
    ]


def nested_folds(folds: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return growing requests: the first fold, the first two, and so on."""
    return [tuple(joined) for joined in itertools.accumulate(folds)]


def falls(values: Sequence[float | None]) -> bool | None:
    """Return whether every number is smaller than the one before; ``None`` where one is missing."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or len(known) < 2:
        return None
    return all(later < earlier for earlier, later in itertools.pairwise(known))
