"""Arrays in, one tensor out: what the tasks of ordinary networks share.

Shape legend: B records of a batch, D outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from expunge.core.errors import DataError, UnsupportedModelError
from expunge.core.records import Records


def stacked(records: Records, rows: Sequence[int], column: str) -> Tensor:
    """Return a column's arrays of the given rows as one tensor, batch axis first.

    Raises:
        DataError: They differ in shape or are no numbers.
    """
    values = records[column]
    try:
        return torch.from_numpy(np.stack([np.asarray(values[row]) for row in rows]))
    except (ValueError, TypeError) as error:
        raise DataError(f"column {column!r}: {error}; give numeric arrays of one shape") from error


def outputs_BD(model: nn.Module, x: Tensor, size: int, what: str) -> Tensor:
    """Run a model that maps a batch of inputs to numbers of each record.

    Inputs take the type of the model's weights, so arrays of float64 or uint8 serve too. A model
    may return an object with ``logits``, as those of transformers do.

    Args:
        model: The model.
        x: Inputs, (B, ...).
        size: Outputs of each record (D).
        what: What they are, for the message.

    Raises:
        UnsupportedModelError: The model cannot read the inputs, or yields another shape.
    """
    weight = next(model.parameters(), None)
    x = x.to(torch.float32 if weight is None else weight.dtype)
    try:
        found = model(x)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # what torch raises when shapes do not fit
        raise UnsupportedModelError(
            f"the model cannot read inputs of shape {tuple(x.shape)}: {error}"
        ) from error
    except ValueError as error:
        if len(x) > 1 or "more than 1 value per channel" not in str(error):
            raise
        raise UnsupportedModelError(
            "batch norm in train mode cannot take a batch of one record; choose "
            "schedule.batch_size and micro_batch so that none is left over, or, as for a set of "
            "one record, set schedule.freeze_norm_statistics to true"
        ) from error
    outputs = getattr(found, "logits", found)
    if not isinstance(outputs, Tensor) or outputs.shape != (len(x), size):
        shape = tuple(getattr(outputs, "shape", ())) or type(outputs).__name__
        raise UnsupportedModelError(
            f"the model yields {shape} for {len(x)} records; {what} must yield a tensor of shape "
            f"({len(x)}, {size})"
        )
    return outputs
