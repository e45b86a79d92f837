"""What a treatment notes of each record on its way, for the measure that is taken afterwards."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from expunge.core.errors import UnsupportedModelError
from expunge.core.records import Records


def carry(model: nn.Module, name: str, records: Records, values: np.ndarray) -> None:
    """Let a treated model carry one value, or one row of values, of each record.

    Args:
        model: The treated copy.
        name: Of the measure that will ask for them.
        records: The records.
        values: (R,) or (R, D).
    """
    noted: Any = dict(zip(records.ids, values, strict=True))
    object.__setattr__(model, f"carried_{name}", noted)  # no weight, no buffer: not in any digest


def carried(model: nn.Module, name: str, records: Records) -> np.ndarray:
    """Return what a treated model carries of records; NaN for those of which nothing was noted.

    Raises:
        UnsupportedModelError: It carries nothing of that name.
    """
    noted: dict[str, np.ndarray] | None = getattr(model, f"carried_{name}", None)
    if not noted:
        raise UnsupportedModelError(
            f"the measure {name!r} is of a model after its treatment; ask for both together"
        )
    nothing = np.full_like(next(iter(noted.values())), np.nan)
    return np.array([noted.get(record_id, nothing) for record_id in records.ids])
