"""``Records``: columns of data under stable record ids; the one shape in which data travels."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from expunge.core.digest import canonical_json
from expunge.core.errors import DataError, Problems, listing
from expunge.core.sets import require_known


@dataclasses.dataclass(frozen=True)
class Records:
    """Equally long columns and one stable id per row.

    A column is a numpy array, a list, or any lazy sequence with ``len`` and integer indexing (an
    image folder, a torch data set).

    Attributes:
        ids: Stable ids; they hold no personal data, since findings and logs name records by them.
        columns: Column name to values.

    Raises:
        DataError: Columns differ in length, or an id stands twice.
    """

    ids: tuple[str, ...]
    columns: Mapping[str, Sequence[Any]]

    def __post_init__(self) -> None:
        problems = Problems("records", DataError)
        for name, values in self.columns.items():
            if len(values) != len(self.ids):
                problems.add(
                    f"column {name!r} has {len(values)} rows but there are {len(self.ids)} ids; "
                    "give every column one value per id"
                )
        if len(set(self.ids)) != len(self.ids):
            twice = [i for i, times in Counter(self.ids).items() if times > 1]
            problems.add(f"{len(twice)} ids stand twice ({listing(twice)}); ids must be unique")
        problems.raise_if_any()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, name: str) -> Sequence[Any]:
        """Return a column.

        Raises:
            DataError: There is no such column.
        """
        if name not in self.columns:
            raise DataError(
                f"records have no column {name!r}; they have {listing(self.columns, 12)}"
            )
        return self.columns[name]

    def __contains__(self, name: object) -> bool:
        return name in self.columns

    def take(self, rows: Sequence[int] | np.ndarray) -> Records:
        """Return the records at these row numbers, in this order."""
        index = np.asarray(rows, dtype=np.int64)
        return Records(
            tuple(self.ids[i] for i in index),
            {name: _pick(values, index) for name, values in self.columns.items()},
        )

    def select(self, ids: Iterable[str]) -> Records:
        """Return the records with these ids, in this order.

        Raises:
            DataError: An id is unknown.
        """
        wanted = tuple(ids)
        place = {i: row for row, i in enumerate(self.ids)}
        require_known(wanted, place, "select")
        return self.take([place[i] for i in wanted])

    def replace(self, **columns: Sequence[Any]) -> Records:
        """Return a copy with some columns added or replaced."""
        return Records(self.ids, {**self.columns, **columns})

    def digest(self) -> str:
        """Return a digest of ids and contents, independent of row order."""
        names = sorted(self.columns)
        rows = []
        for row, record_id in enumerate(self.ids):
            sha = hashlib.sha256(canonical_json([record_id, names]))
            for name in names:
                value = _value_bytes(self.columns[name][row])
                sha.update(len(value).to_bytes(8, "big") + value)
            rows.append(sha.digest())
        return hashlib.sha256(b"".join(sorted(rows))).hexdigest()


def concatenate(parts: Sequence[Records]) -> Records:
    """Join records that share their columns; columns that only some have are dropped.

    Raises:
        DataError: An id stands in two parts.
    """
    kept = [part for part in parts if len(part)]
    if not kept:
        return parts[0]
    names = [n for n in kept[0].columns if all(n in part for part in kept)]
    columns: dict[str, Sequence[Any]] = {}
    for name in names:
        values = [part[name] for part in kept]
        if all(isinstance(v, np.ndarray) for v in values):
            columns[name] = np.concatenate(values)  # type: ignore[assignment]
        else:
            columns[name] = _Chained(values)
    return Records(tuple(i for part in kept for i in part.ids), columns)


class _Picked(Sequence[Any]):
    """A lazy selection from a sequence."""

    def __init__(self, values: Sequence[Any], index: np.ndarray) -> None:
        self._values, self._index = values, index

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, row: Any) -> Any:
        return self._values[int(self._index[row])]


class _Chained(Sequence[Any]):
    """A lazy concatenation of sequences."""

    def __init__(self, parts: Sequence[Sequence[Any]]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, row: Any) -> Any:
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        row = row % len(self)
        part = int(np.searchsorted(self._ends, row, side="right"))
        return self._parts[part][row - (int(self._ends[part - 1]) if part else 0)]


def _pick(values: Sequence[Any], index: np.ndarray) -> Sequence[Any]:
    if isinstance(values, np.ndarray):
        return values[index]
    if isinstance(values, list | tuple):
        return [values[i] for i in index]
    return _Picked(values, index)


def _value_bytes(value: Any) -> bytes:
    if hasattr(value, "__array__"):  # numpy, torch
        array = np.ascontiguousarray(value)
        if array.dtype.hasobject:
            return canonical_json(array.tolist())
        return canonical_json([str(array.dtype), list(array.shape)]) + array.tobytes()
    return canonical_json(value)
