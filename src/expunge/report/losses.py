"""Loss of every record under every model, read from the score tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from expunge.core.errors import IntegrityError, StorageError

Losses = Mapping[str, Mapping[str, np.ndarray]]
"""Model name to record set to loss per target of each record, in nats."""

_COLUMNS = ["record_set", "view", "id", "n", "nll"]


def read_losses(folder: Path, subjects: Iterable[str]) -> Losses:
    """Read the losses of the records as they are (paraphrases and wrong answers left out).

    Args:
        folder: The run folder.
        subjects: Names of the models.

    Returns:
        Losses; empty when the run scored nothing.

    Raises:
        StorageError: A model has no score table though others have.
        IntegrityError: A table is truncated, or no score table.
    """
    scores = folder / "scores"
    if not scores.is_dir():
        return {}
    return {subject: _read(scores / f"{subject}.parquet") for subject in subjects}


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise StorageError(f"{path} is missing; run the recipe again in a new folder")
    try:
        table = pq.read_table(path, columns=_COLUMNS)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise IntegrityError(
            f"{path} is not a whole score table ({reason}); run the recipe again in a new folder"
        ) from error
    table = table.filter(pc.equal(table["view"], "answer"))
    found = {}
    for record_set in pc.unique(table["record_set"]).to_pylist():
        part = table.filter(pc.equal(table["record_set"], record_set))
        loss_R = part["nll"].to_numpy() / part["n"].to_numpy()
        # Two audits may have read the same set in different sizes: each record counts once.
        _, first = np.unique(part["id"].to_numpy(), return_index=True)
        found[record_set] = loss_R[np.sort(first)]
    return found
