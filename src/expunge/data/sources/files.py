"""Your own records: JSON lines, CSV or Parquet files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from expunge.core.config import config
from expunge.core.errors import ConfigError, DataError, listing
from expunge.core.records import Records, concatenate
from expunge.data.arrays import class_facts
from expunge.data.dataset import NOTHING, Dataset, number_ids, require_columns
from expunge.data.regression import regression_facts
from expunge.data.source import source
from expunge.data.tables import read_table
from expunge.data.tabular import class_names, table_records, target_records

_TRAINING = ("train", "retain", "forget")
_ROLES = (*_TRAINING, "holdout", "test")
_QUESTION = ("question", "answer")


@config
class FilesConfig:
    """Settings of your own files; each is ``.jsonl``, ``.csv`` or ``.parquet``."""

    kind: Literal["causal_lm", "classifier", "regressor"] = "causal_lm"
    """Texts for a language model, or rows of numbers with a class or with a number to predict."""
    train: str | None = None
    """Everything the model was or will be trained on; else give ``forget`` and ``retain``."""
    forget: str | None = None
    """Records to forget; they become the split ``forget``."""
    retain: str | None = None
    """Training records to keep."""
    holdout: str | None = None
    """Records of the same source that the model never saw, for audits."""
    test: str | None = None
    """Records that measure utility."""
    columns: dict[str, str] | None = None
    """Name of a column here (``question``, ``answer``, ``text``, ...): its name in the files."""
    id: str = "id"
    """Column with a stable id for each record; where it is absent, rows are numbered."""
    features: tuple[str, ...] = ()
    """Columns with the numbers that a classifier or regressor reads; when empty, all but id and
    label."""
    label: str = "label"
    """Column with the class of a classifier's record (integers from 0, or names), or with the
    number that a regressor predicts."""


@source("files", title="your own JSON lines, CSV or Parquet files", kind="any")
def files(config: FilesConfig, seed: int) -> Dataset:
    """Return the records of the files; columns that are not used as data stay as groups."""
    del seed
    _check_roles(config)
    tables = {role: _read(role, config) for role in _ROLES if getattr(config, role) is not None}
    facts: dict[str, Any] = {}
    if config.kind == "classifier":
        tables, classes = _classify(tables, config)
        train = _train(tables)
        facts = class_facts(train, len(classes) or None)
        if classes:
            facts["classes"] = classes
    elif config.kind == "regressor":
        tables = _targets(tables, config)
        train = _train(tables)
        facts = regression_facts(train, config.label)
    else:
        for role, table in tables.items():
            _check_texts(table, getattr(config, role))
        _check_apart(tables)
        train = _train(tables)
    return Dataset(
        config.kind,
        train,
        holdout=tables.get("holdout", NOTHING),
        test=tables.get("test", NOTHING),
        splits={"forget": tables["forget"].ids} if "forget" in tables else {},
        facts=facts,
    )


def _check_roles(config: FilesConfig) -> None:
    apart = config.forget is not None or config.retain is not None
    if (config.train is not None) == apart:
        raise ConfigError(
            "data.files needs either train, or forget (with retain where you have it); "
            + ("it has both" if apart else "it has neither")
        )
    if config.retain is not None and config.forget is None:
        raise ConfigError("data.files.retain needs data.files.forget beside it, or call it train")


def _read(role: str, config: FilesConfig) -> Records:
    path = getattr(config, role)
    table = read_table(Path(path))
    ids = number_ids(role, len(next(iter(table.values()))))
    renamed = config.columns or {}
    require_columns(Records(ids, table), renamed.values(), path)
    ours = {theirs: name for name, theirs in renamed.items()}
    columns = {ours.get(name, name): values for name, values in table.items()}
    if config.id in columns:
        ids = tuple(str(value) for value in columns.pop(config.id))
    return Records(ids, columns)


def _train(tables: Mapping[str, Records]) -> Records:
    parts = [tables[role] for role in _TRAINING if role in tables]
    names = {name for part in parts for name in part.columns}
    # Joining drops columns that only one file has, such as wrong answers of the forget records.
    return concatenate(
        [part.replace(**{n: [None] * len(part) for n in names if n not in part}) for part in parts]
    )


def _check_texts(records: Records, path: str) -> None:
    needed = ("text",) if "text" in records and "question" not in records else _QUESTION
    require_columns(records, needed, path)
    for name in needed:
        pairs = zip(records.ids, records[name], strict=True)
        empty = [i for i, value in pairs if not isinstance(value, str) or not value]
        if empty:
            raise DataError(
                f"{path}: column {name!r} is empty or no text in {len(empty)} records "
                f"({listing(empty)}); fill or drop them"
            )


def _check_apart(tables: Mapping[str, Records]) -> None:
    """Refuse a text that is to be forgotten and retained; ids cannot tell, they differ by file."""
    if not {"forget", "retain"} <= tables.keys():
        return

    def texts(records: Records) -> list[tuple[str, ...]]:
        names = ("text",) if "question" not in records else _QUESTION
        return list(zip(*(records[name] for name in names), strict=True))

    forgotten = set(texts(tables["forget"]))
    retain = tables["retain"]
    both = [i for i, text in zip(retain.ids, texts(retain), strict=True) if text in forgotten]
    if both:
        raise DataError(
            f"forget and retain share {len(both)} records with the same text ({listing(both)}); "
            "a record can be in one of them only: drop it from the retain file"
        )


def _classify(
    tables: Mapping[str, Records], config: FilesConfig
) -> tuple[dict[str, Records], list[str]]:
    for role, table in tables.items():
        require_columns(table, [config.label], getattr(config, role))
    classes = class_names([tables[r] for r in _TRAINING if r in tables], config.label)
    records = {}
    for role, table in tables.items():
        path = getattr(config, role)
        features = _features(table, config)
        records[role] = table_records(table, features, config.label, classes, path)
    return records, classes


def _targets(tables: Mapping[str, Records], config: FilesConfig) -> dict[str, Records]:
    return {
        role: target_records(table, _features(table, config), config.label, getattr(config, role))
        for role, table in tables.items()
    }


def _features(table: Records, config: FilesConfig) -> tuple[str, ...]:
    return config.features or tuple(name for name in table.columns if name != config.label)
