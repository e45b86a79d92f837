"""What every model says of every record, read from the score tables: its loss, and if it repeats.

Only the records as they are count, under models as they are: paraphrases, wrong answers, other
views and treated models are left out by the readings that a table's metadata name.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from expunge.core.errors import IntegrityError, StorageError

Losses = Mapping[str, Mapping[str, np.ndarray]]
"""Model name to record set to loss per target of each record, in nats."""

_KEY = b"expunge"
_COLUMNS = ["id", "n", "nll", "rank"]
_REMEDY = "run the recipe again in a new folder"


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
    """What one model says of the records of one set, each record once.

    Attributes:
        ids: Record ids, length R.
        loss_R: Loss per target, in nats.
        exact_R: Whether every target is the model's first choice after the true ones before it.
    """

    ids: tuple[str, ...]
    loss_R: np.ndarray
    exact_R: np.ndarray


ScoredSets = Mapping[str, Mapping[str, Scored]]
"""Model name to record set to what the model says of its records."""


def read_scored(folder: Path, subjects: Iterable[str]) -> ScoredSets:
    """Read what the models say of the records as they are.

    Args:
        folder: The run folder.
        subjects: Names of the models.

    Returns:
        Scores by model and record set; empty when the run scored nothing.

    Raises:
        StorageError: A model has no score table though others have.
        IntegrityError: A table is truncated, or no score table.
    """
    scores = folder / "scores"
    if not scores.is_dir():
        return {}
    return {subject: _read(scores / f"{subject}.parquet") for subject in subjects}


def losses_of(scored: ScoredSets) -> Losses:
    """Return the losses alone."""
    return {
        subject: {name: found.loss_R for name, found in sets.items()}
        for subject, sets in scored.items()
    }


def _read(path: Path) -> dict[str, Scored]:
    if not path.is_file():
        raise StorageError(f"{path} is missing; {_REMEDY}")
    try:
        table = pq.read_table(path, columns=_COLUMNS)
        return _sets(table, _readings(table))
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise IntegrityError(f"{path} is not a whole score table ({reason}); {_REMEDY}") from error


def _readings(table: pa.Table) -> list[dict[str, Any]]:
    """Return what the metadata say of the rows, in their order."""
    facts = json.loads((table.schema.metadata or {}).get(_KEY, b"null"))
    if facts is None:
        raise ValueError("it does not say what was read")
    readings: list[dict[str, Any]] = facts["readings"]
    told = sum(reading["rows"] for reading in readings)
    if told != table.num_rows:
        raise ValueError(f"it has {table.num_rows} rows and says {told}")
    return readings


def _sets(table: pa.Table, readings: Iterable[dict[str, Any]]) -> dict[str, Scored]:
    parts: dict[str, list[pa.Table]] = {}
    start = 0
    for reading in readings:
        # Tables from before there were treatments do not name any.
        if reading["view"] == "answer" and not reading.get("treatment", ""):
            part = table.slice(start, reading["rows"])
            parts.setdefault(reading["record_set"], []).append(part)
        start += reading["rows"]
    return {name: _scored(pa.concat_tables(found)) for name, found in parts.items()}


def _scored(table: pa.Table) -> Scored:
    table = table.combine_chunks()
    ids_R, n_R = table["id"].to_numpy(), table["n"].to_numpy()
    ranks_N = table["rank"].combine_chunks().flatten().to_numpy()
    if len(ranks_N) != n_R.sum():
        raise ValueError(f"it has {len(ranks_N)} ranks for {n_R.sum()} targets")
    rows_N = np.repeat(np.arange(len(n_R)), n_R)
    misses_R = np.bincount(rows_N, weights=ranks_N > 0, minlength=len(n_R))
    # Two audits may have read the same set in different sizes: each record counts once.
    _, first = np.unique(ids_R.astype(str), return_index=True)
    kept = np.sort(first)
    return Scored(
        ids=tuple(ids_R[kept].tolist()),
        loss_R=table["nll"].to_numpy()[kept] / n_R[kept],
        exact_R=misses_R[kept] == 0,
    )
