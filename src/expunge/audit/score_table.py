"""Scores on disk: one Parquet table per model, deterministic bytes, numbers and ids only."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from expunge.audit.evidence import Subject
from expunge.audit.readings import Reading
from expunge.audit.scores import Scores
from expunge.core.digest import canonical_json
from expunge.core.errors import IntegrityError, StorageError
from expunge.core.files import atomic_path

_KEY = b"expunge"
_SCHEMA = pa.schema(
    [
        ("record_set", pa.string()),
        ("view", pa.string()),
        ("id", pa.string()),
        ("n", pa.int64()),
        ("nll", pa.float64()),
        ("measured", pa.list_(pa.float64())),
        ("logprob", pa.list_(pa.float32())),
        ("rank", pa.list_(pa.int32())),
        ("mean", pa.list_(pa.float32())),
        ("variance", pa.list_(pa.float32())),
    ]
)


def to_table(subject: Subject) -> pa.Table:
    """Return one row per reading and record.

    Columns: ``record_set``, ``view``, ``id``, ``n`` (targets), ``nll`` (nats, summed),
    ``measured`` (the numbers of all measures one after the other; the metadata name the measures,
    and the width of those that take several of each record), and the lists ``logprob``, ``rank``,
    ``mean``, ``variance`` with one value per target.
    """
    parts = [_rows(reading, scores) for reading, scores in subject.scores.items()]
    facts = {
        "role": subject.role,
        "model": subject.model,
        "seed": subject.seed,
        "part": subject.part,
        "readings": [
            {
                "record_set": reading.record_set,
                "view": reading.view,
                "limit": reading.limit,
                "treatment": reading.treatment,
                "max_new_tokens": reading.max_new_tokens,
                "measures": list(reading.measures),
                "rows": len(scores),
                "measured": sorted(scores.measured),
                **_widths(scores),
            }
            for reading, scores in subject.scores.items()
        ],
        "absent": [[dataclasses.asdict(r), why] for r, why in subject.absent.items()],
    }
    table = pa.concat_tables([_SCHEMA.empty_table(), *parts])
    return table.replace_schema_metadata({_KEY: canonical_json(facts)})


def from_table(table: pa.Table) -> Subject:
    """Return the model that ``to_table`` described.

    Raises:
        IntegrityError: The table is not one of ours, or its parts do not fit together.
        NumericalError: It holds a log-probability that cannot be.
    """
    facts = json.loads((table.schema.metadata or {}).get(_KEY, b"null"))
    if facts is None or not table.schema.equals(_SCHEMA, check_metadata=False):
        raise IntegrityError("the table is no score table; score the model again")
    if table.num_rows != sum(item["rows"] for item in facts["readings"]):
        raise IntegrityError("the score table has lost rows; score the model again")
    scores, start = {}, 0
    for item in facts["readings"]:
        rows, measured, widths = item.pop("rows"), item.pop("measured"), item.pop("widths", {})
        part = table.slice(start, rows).combine_chunks()
        scores[_reading(item)] = _scores(part, measured, widths)
        start += rows
    absent = {_reading(item): why for item, why in facts["absent"]}
    return Subject(
        facts["role"], facts["model"], scores, facts["seed"], facts.get("part", ""), absent
    )


def write_scores(path: Path, subject: Subject) -> None:
    """Write a model's scores as Parquet, atomically; equal scores give equal bytes.

    Raises:
        StorageError: The file cannot be written.
    """
    with atomic_path(path) as temporary:
        pq.write_table(to_table(subject), temporary, compression="zstd")


def read_scores(path: Path) -> Subject:
    """Read what ``write_scores`` wrote.

    Raises:
        StorageError: There is no such file.
        IntegrityError: It is truncated, or no score table.
    """
    if not path.is_file():
        raise StorageError(f"there is no score table {path}; run the audit again")
    try:
        return from_table(pq.read_table(path))
    except pa.ArrowException as error:
        raise IntegrityError(f"{path} is not a whole Parquet file: {error}") from error


def _reading(value: dict[str, Any]) -> Reading:
    return Reading(**{**value, "measures": tuple(value["measures"])})


def _rows(reading: Reading, scores: Scores) -> pa.Table:
    offsets = pa.array(scores.offsets, pa.int32())

    def lists(values_N: np.ndarray) -> Any:
        return pa.ListArray.from_arrays(offsets, pa.array(values_N))

    size = len(scores)
    return pa.table(
        [
            pa.array([reading.record_set] * size, pa.string()),
            pa.array([reading.view] * size, pa.string()),
            pa.array(scores.ids, pa.string()),
            pa.array(scores.n_R),
            pa.array(scores.nll_R),
            _measured(scores),
            lists(scores.logprob_N),
            lists(scores.rank_N),
            lists(scores.mean_N),
            lists(scores.variance_N),
        ],
        schema=_SCHEMA,
    )


def _widths(scores: Scores) -> dict[str, Any]:
    """Return how many numbers of each record the measures took that take several."""
    shapes = {name: np.shape(scores.measured[name]) for name in sorted(scores.measured)}
    widths = {name: shape[1] for name, shape in shapes.items() if len(shape) > 1}
    return {"widths": widths} if widths else {}


def _measured(scores: Scores) -> Any:
    size = len(scores)
    columns = [np.asarray(scores.measured[name], np.float64) for name in sorted(scores.measured)]
    table = np.column_stack(columns) if columns else np.empty((size, 0))
    offsets = np.arange(size + 1) * table.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(table.ravel()))


def _scores(table: pa.Table, measured: list[str], widths: dict[str, int]) -> Scores:
    def values(name: str) -> np.ndarray:
        return table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)

    ends = np.cumsum([0, *(widths.get(name, 1) for name in measured)])
    numbers = values("measured").reshape(table.num_rows, ends[-1])
    taken = {
        name: numbers[:, start:end] if name in widths else numbers[:, start]
        for name, start, end in zip(measured, ends[:-1], ends[1:], strict=True)
    }
    return Scores(
        ids=tuple(table["id"].to_pylist()),
        offsets=np.concatenate([[0], np.cumsum(table["n"].to_numpy(), dtype=np.int64)]),
        logprob_N=values("logprob"),
        rank_N=values("rank"),
        mean_N=values("mean"),
        variance_N=values("variance"),
        measured=taken,
    )
