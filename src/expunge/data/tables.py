"""Tables from JSON lines, CSV and Parquet files: equally long columns, or one clear error."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from expunge.core.errors import DataError, StorageError, near_matches

Table = dict[str, list[Any]]


def read_table(path: Path) -> Table:
    """Read a table; its format follows from the file's suffix.

    Args:
        path: A ``.jsonl`` or ``.json`` file with one object a line (a key that a line lacks is
            ``None``), a ``.csv`` file with a header line (values stay text), or a ``.parquet``
            file.

    Raises:
        StorageError: The file is absent or unreadable.
        DataError: It is empty, torn or ragged, or of another format.
    """
    readers = {
        ".jsonl": _json_lines,
        ".json": _json_lines,
        ".csv": _csv,
        ".parquet": _parquet,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path}: files of type {path.suffix!r} are not read; {near_matches('', readers)}"
        )
    try:
        table = reader(path)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}); convert it first") from error
    if not table or not next(iter(table.values())):
        raise DataError(f"{path} holds no records")
    return table


def _json_lines(path: Path) -> Table:
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(
                    f"{path} line {number} is not whole JSON: {error}; write one object a line"
                ) from error
            if not isinstance(row, dict):
                raise DataError(
                    f"{path} line {number} holds a {type(row).__name__}; write one object a line"
                )
            rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _csv(path: Path) -> Table:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        names = next(reader, [])
        if len(set(names)) != len(names):
            raise DataError(f"{path}: two columns share a name; its header is {names}")
        rows = []
        for row in reader:
            if len(row) != len(names):
                raise DataError(
                    f"{path} line {reader.line_num} has {len(row)} values, the header "
                    f"{len(names)}; quote values that hold commas"
                )
            rows.append(row)
    return {name: [row[place] for row in rows] for place, name in enumerate(names)}


def _parquet(path: Path) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        table: Table = pyarrow.parquet.read_table(path).to_pydict()
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a whole Parquet file: {error}") from error
    return table
