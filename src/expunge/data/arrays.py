"""Arrays as records: checks, splits, and the adapter for data held in Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from expunge.core.errors import ConfigError, DataError
from expunge.core.records import Records
from expunge.core.streams import stream
from expunge.data.dataset import NOTHING, Dataset, number_ids
from expunge.data.inputs import as_column, input_array
from expunge.data.regression import regression_facts, regression_records

Pair = tuple[Any, Any]


def from_arrays(
    x: Any,
    y: Any,
    *,
    kind: Literal["classifier", "regressor"] = "classifier",
    ids: Sequence[str] | None = None,
    holdout: Pair | None = None,
    test: Pair | None = None,
    num_classes: int | None = None,
    splits: Mapping[str, Sequence[str]] | None = None,
) -> Dataset:
    """Make a classifier's or regressor's data set from arrays, tensors or nested lists.

    Args:
        x: Inputs, (rows, ...); all of one shape and finite.
        y: Class of each row, an integer from 0; of a regressor its target, a number or a vector.
        kind: ``"classifier"`` or ``"regressor"``.
        ids: Id of each row; ``train-00000`` and so on when absent.
        holdout: Inputs and classes or targets that the model never saw.
        test: Inputs and classes or targets that measure utility.
        num_classes: Number of classes; one more than the highest class when absent.
        splits: Groups of training ids that a request may name.

    Raises:
        ConfigError: There is no such kind, or a regressor is given a number of classes.
        DataError: Inputs are ragged, not numeric or not finite, a class is no integer from 0, or a
            target is not finite or never varies.
    """
    if kind not in ("classifier", "regressor"):
        raise ConfigError(f"kind = {kind!r}; choose 'classifier' or 'regressor'")
    if kind == "regressor" and num_classes is not None:
        raise ConfigError(f"num_classes = {num_classes}: a regressor has no classes; leave it out")
    made = array_records if kind == "classifier" else regression_records

    def unseen(pair: Pair | None, role: str) -> Records:
        if pair is None:
            return NOTHING
        return made(*pair, ids=number_ids(role, len(pair[0])), where=role)

    train = made(x, y, ids=ids or number_ids("train", len(x)), where="train")
    return Dataset(
        kind,
        train,
        holdout=unseen(holdout, "holdout"),
        test=unseen(test, "test"),
        splits={name: tuple(members) for name, members in (splits or {}).items()},
        facts=class_facts(train, num_classes) if kind == "classifier" else regression_facts(train),
    )


def array_records(x: Any, y: Any, *, ids: Sequence[str], where: str) -> Records:
    """Check inputs and classes and return them as records.

    Args:
        x: Inputs, (rows, ...).
        y: Class of each row.
        ids: Id of each row.
        where: What the arrays are, for messages.

    Raises:
        DataError: See ``from_arrays``.
    """
    inputs, labels = input_array(x, where), np.asarray(y)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise DataError(
            f"{where}: classes have type {labels.dtype} and shape {labels.shape}; "
            "they must be one integer from 0 for each row"
        )
    return Records(tuple(ids), {"x": as_column(inputs), "y": as_column(labels.astype(np.int64))})


def class_facts(train: Records, num_classes: int | None = None) -> dict[str, Any]:
    """Return what a classifier needs to know: number of classes and shape of one input."""
    highest = max(int(label) for label in train["y"])
    return {
        "num_classes": num_classes or highest + 1,
        "input_shape": list(np.shape(train["x"][0])),
    }


def draw_parts(records: Records, sizes: Mapping[str, int], seed: int) -> dict[str, Records]:
    """Draw disjoint random parts, each in the order of the records.

    Args:
        records: The pool.
        sizes: Records of each part, by name.
        seed: Decides who goes where.

    Raises:
        DataError: The pool is too small.
    """
    if sum(sizes.values()) > len(records):
        asked = ", ".join(f"{size} for {name}" for name, size in sizes.items())
        raise DataError(
            f"there are {len(records)} records but {asked} were asked for; ask for fewer"
        )
    order = stream(seed, "split").permutation(len(records))
    parts, begin = {}, 0
    for name, size in sizes.items():
        parts[name] = records.take(np.sort(order[begin : begin + size]))
        begin += size
    return parts


def split_dataset(records: Records, num_holdout: int, num_test: int, seed: int) -> Dataset:
    """Make a classifier data set out of one pool of records; what is not drawn is trained on.

    Raises:
        DataError: Nothing would be left to train on.
    """
    num_train = max(len(records) - num_holdout - num_test, 1)
    sizes = {"holdout": num_holdout, "test": num_test, "train": num_train}
    parts = draw_parts(records, sizes, seed)
    return Dataset(
        "classifier",
        parts["train"],
        holdout=parts["holdout"],
        test=parts["test"],
        facts=class_facts(records),
    )
