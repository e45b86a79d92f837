"""Arrays as regressor records: inputs beside targets that are numbers or vectors of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from expunge.core.errors import DataError, listing
from expunge.core.records import Records
from expunge.data.inputs import as_column, input_array


def regression_records(
    x: Any, y: Any, *, ids: Sequence[str], where: str, column: str = "y"
) -> Records:
    """Check inputs and targets and return them as records.

    Args:
        x: Inputs, (rows, ...); all of one shape and finite.
        y: Target of each row: a number, or a vector of one length.
        ids: Id of each row.
        where: What the arrays are, for messages.
        column: What the targets are called there.

    Raises:
        DataError: Inputs or targets are ragged, not numeric or not finite.
    """
    inputs = input_array(x, where)
    try:
        targets = np.asarray(y, dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{where}: column {column!r} does not hold numbers, or vectors of one length "
            f"({error}); give one target a row"
        ) from error
    if targets.ndim not in (1, 2) or not targets[:1].size:
        raise DataError(
            f"{where}: column {column!r} has shape {targets.shape}; a target is a number or a "
            "vector of them, (rows,) or (rows, outputs)"
        )
    flawed = np.flatnonzero(~np.isfinite(targets).reshape(len(targets), -1).all(axis=1))
    if len(flawed):
        raise DataError(
            f"{where}: column {column!r} holds NaN or infinity in {len(flawed)} records (rows "
            f"{listing(flawed)}); fill or drop them"
        )
    columns = {"x": as_column(inputs), "y": as_column(targets.astype(np.float32))}
    return Records(tuple(ids), columns)


def regression_facts(train: Records, column: str = "y") -> dict[str, Any]:
    """Return what a regressor needs to know of its training records.

    Args:
        train: The records, with columns ``x`` and ``y``.
        column: What the targets are called where they come from, for messages.

    Returns:
        ``num_outputs``, ``input_shape`` (of one input), and ``target_mean`` and ``target_std`` with
        a number for each output; the deviation takes one degree of freedom.

    Raises:
        DataError: A target never varies.
    """
    targets = np.array([np.atleast_1d(target) for target in train["y"]], dtype=np.float64)
    constant = np.flatnonzero(targets.max(axis=0) == targets.min(axis=0))
    if len(constant):
        output = "" if targets.shape[1] == 1 else f"output {listing(constant)} of "
        raise DataError(
            f"train: {output}column {column!r} has the same value in all {len(train)} records "
            "(standard deviation 0); there is nothing to learn: drop it, or give records that vary"
        )
    return {
        "num_outputs": targets.shape[1],
        "input_shape": list(np.shape(train["x"][0])),
        "target_mean": targets.mean(axis=0).tolist(),
        "target_std": targets.std(axis=0, ddof=1).tolist(),
    }
