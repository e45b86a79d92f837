"""Arrays of numbers as inputs and as columns of records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from expunge.core.errors import DataError, listing


def input_array(x: Any, where: str) -> np.ndarray:
    """Check inputs and return them as one array of float32.

    Args:
        x: Inputs, (rows, ...).
        where: What they are, for messages.

    Raises:
        DataError: They are ragged, not numeric or not finite.
    """
    try:
        inputs = np.asarray(x, dtype=np.float32)
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{where}: the inputs are not numbers of one shape ({error}); give an array (rows, ...)"
        ) from error
    if inputs.ndim < 2 or not len(inputs):
        raise DataError(f"{where}: inputs have shape {inputs.shape}; they need rows and features")
    flawed = np.flatnonzero(~np.isfinite(inputs).reshape(len(inputs), -1).all(axis=1))
    if len(flawed):
        raise DataError(
            f"{where}: {len(flawed)} inputs hold NaN or infinity (rows {listing(flawed)}); "
            "fill or drop them"
        )
    return inputs


def as_column(values: np.ndarray) -> Sequence[Any]:
    """Return an array as a column: it has the length and indexing, though not the type, of one."""
    return values  # type: ignore[return-value]
