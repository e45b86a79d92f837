"""Data sets of PyTorch and of Hugging Face as ``Dataset``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from expunge.core.records import Records
from expunge.data.arrays import array_records, class_facts
from expunge.data.dataset import NOTHING, Dataset, number_ids, require_columns


def from_torch(
    train: Any,
    *,
    holdout: Any = None,
    test: Any = None,
    ids: Sequence[str] | None = None,
    num_classes: int | None = None,
) -> Dataset:
    """Make a classifier data set from map-style torch data sets of ``(input, class)`` pairs.

    Classes are read once, inputs whenever they are used.

    Args:
        train: What the model was or will be trained on.
        holdout: What it never saw.
        test: What measures utility.
        ids: Id of each training record; numbered when absent.
        num_classes: Number of classes; one more than the highest class when absent.
    """
    parts = {
        role: _pairs(part, number_ids(role, len(part))) if part is not None else NOTHING
        for role, part in (("train", train), ("holdout", holdout), ("test", test))
    }
    records = Records(tuple(ids), parts["train"].columns) if ids else parts["train"]
    facts = class_facts(records, num_classes)
    return Dataset("classifier", records, parts["holdout"], parts["test"], facts=facts)


def from_hf(
    train: Any,
    columns: Mapping[str, str],
    *,
    kind: str = "causal_lm",
    holdout: Any = None,
    test: Any = None,
    num_classes: int | None = None,
) -> Dataset:
    """Make a data set from those of the ``datasets`` library.

    Args:
        train: What the model was or will be trained on.
        columns: Name of a column here (``question``, ``answer``, ``text``, ``x``, ``y``, a
            group): its name there.
        kind: ``"causal_lm"``, or ``"classifier"`` with columns ``x`` (numbers) and ``y``.
        holdout: What it never saw.
        test: What measures utility.
        num_classes: Number of classes; one more than the highest class when absent.

    Raises:
        DataError: A column is missing, or inputs are not numbers of one shape.
    """
    parts = {
        role: _hf_records(part, columns, role, kind) if part is not None else NOTHING
        for role, part in (("train", train), ("holdout", holdout), ("test", test))
    }
    facts = class_facts(parts["train"], num_classes) if kind == "classifier" else {}
    return Dataset(kind, parts["train"], parts["holdout"], parts["test"], facts=facts)


def _hf_records(part: Any, columns: Mapping[str, str], role: str, kind: str) -> Records:
    found = Records(number_ids(role, len(part)), {n: list(part[n]) for n in part.column_names})
    require_columns(found, columns.values(), role)
    records = Records(found.ids, {ours: found[theirs] for ours, theirs in columns.items()})
    if kind != "classifier":
        return records
    arrays = array_records(records["x"], records["y"], ids=records.ids, where=role)
    return records.replace(**arrays.columns)


def _pairs(pairs: Any, ids: tuple[str, ...]) -> Records:
    labels = [int(pairs[row][1]) for row in range(len(pairs))]
    return Records(ids, {"x": _Inputs(pairs), "y": labels})


class _Inputs(Sequence[Any]):
    """The inputs of a torch data set."""

    def __init__(self, pairs: Any) -> None:
        self._pairs = pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, row: Any) -> Any:
        return np.asarray(self._pairs[row][0], dtype=np.float32)
