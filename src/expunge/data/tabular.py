"""Tables of numbers, and of classes or targets, as records of classifiers and regressors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from expunge.core.errors import DataError, listing
from expunge.core.records import Records
from expunge.data.arrays import array_records
from expunge.data.dataset import require_columns
from expunge.data.regression import regression_records


def class_names(training: Sequence[Records], label: str) -> list[str]:
    """Return the names of the classes in alphabetical order; none when classes are integers.

    Args:
        training: Records that the model is trained on.
        label: Column with the class.
    """
    found = {str(value) for records in training for value in records[label]}
    return [] if all(name.isdecimal() for name in found) else sorted(found)


def table_records(
    table: Records, features: Sequence[str], label: str, classes: Sequence[str], where: str
) -> Records:
    """Return rows of a table as classifier records; other columns stay as groups.

    Args:
        table: The rows.
        features: Columns with numbers; a single one may hold lists of them.
        label: Column with the class.
        classes: Names of the classes; empty when the column holds integers from 0.
        where: The file, for messages.

    Raises:
        DataError: A column is missing, a feature is not a number, or a class is unknown.
    """
    require_columns(table, [*features, label], where)
    labels = [str(value) for value in table[label]]
    unknown = sorted({v for v in labels if not (v in classes if classes else v.isdecimal())})
    if unknown:
        allowed = listing(classes) if classes else "integers from 0"
        raise DataError(
            f"{where}: column {label!r} holds {listing(map(repr, unknown))}; "
            f"the classes of the training records are {allowed}"
        )
    numbers: Mapping[str, int] = {name: number for number, name in enumerate(classes)}
    found = [numbers[value] if classes else int(value) for value in labels]
    records = array_records(_inputs(table, features, where), found, ids=table.ids, where=where)
    return records.replace(**_groups(table, features, label))


def target_records(table: Records, features: Sequence[str], label: str, where: str) -> Records:
    """Return rows of a table as regressor records; other columns stay as groups.

    Args:
        table: The rows.
        features: Columns with numbers; a single one may hold lists of them.
        label: Column with the target: a number, or a list of them.
        where: The file, for messages.

    Raises:
        DataError: A column is missing, or a feature or a target is not a finite number.
    """
    require_columns(table, [*features, label], where)
    inputs, targets = _inputs(table, features, where), _numbers(table, label, where, "label")
    records = regression_records(inputs, targets, ids=table.ids, where=where, column=label)
    return records.replace(**_groups(table, features, label))


def _inputs(table: Records, features: Sequence[str], where: str) -> list[Any]:
    columns = [_numbers(table, name, where) for name in features]
    # One column may hold whole lists: pictures, embeddings.
    whole = len(columns) == 1 and isinstance(columns[0][0], list)
    return columns[0] if whole else list(zip(*columns, strict=True))


def _groups(table: Records, features: Sequence[str], label: str) -> dict[str, Sequence[Any]]:
    return {n: v for n, v in table.columns.items() if n not in {*features, label}}


def _numbers(table: Records, name: str, where: str, setting: str = "features") -> list[Any]:
    converted = []
    for record_id, value in zip(table.ids, table[name], strict=True):
        try:
            converted.append(value if isinstance(value, list) else float(value))
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{where}: column {name!r} of record {record_id} is {value!r}, not a number; "
                f"name columns with numbers in data.files.{setting}, or fill or drop the record"
            ) from error
    return converted
