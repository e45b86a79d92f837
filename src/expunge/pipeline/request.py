"""``Request``: which records to forget, and the record sets that follow."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from expunge.core.config import config, to_json
from expunge.core.errors import ConfigError, DataError, StorageError, listing
from expunge.core.sets import Sets, require_known, sample_ids
from expunge.data.dataset import Dataset


@config
class Request:
    """Which training records to forget, by exactly one rule; by default the split ``forget``."""

    ids: tuple[str, ...] = ()
    """Record ids."""
    file: str | None = None
    """File with record ids: a JSON list, or one id a line."""
    split: str | None = None
    """Named split of the data source, such as ``forget10``."""
    where: dict[str, tuple[str | int, ...]] | None = None
    """Column to values: records that have one of them, such as ``{author: [Jane Doe]}``."""
    fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the records (of the groups, with ``by``), drawn at random."""
    count: Annotated[int, Field(ge=1)] | None = None
    """Number of records (of groups, with ``by``), drawn at random."""
    by: str | None = None
    """Column whose groups are drawn whole, such as ``author``."""


def resolve(request: Request, dataset: Dataset, seed: int) -> Sets:
    """Turn a request into record sets.

    What is trained on and neither forgotten nor kept for tests is retained.

    Args:
        request: The request.
        dataset: The data.
        seed: Decides random draws.

    Raises:
        ConfigError: The request names no rule or more than one.
        DataError: It matches no record, or names unknown ones.
    """
    forget = _matching(request, dataset, seed)
    tests = set(dataset.test.ids)
    require_known(forget, dataset.train.ids, "request")
    crossing = [i for i in forget if i in tests]
    if crossing:
        raise DataError(
            f"request: {len(crossing)} records to forget are test records ({listing(crossing)}); "
            "a test record measures utility and cannot be forgotten in the same run"
        )
    sets = Sets.partition(
        [i for i in dataset.train.ids if i not in tests],
        forget,
        holdout=dataset.holdout.ids,
        test=dataset.test.ids,
    )
    origin = {"rule": _rule(request), "seed": seed, "data": dataset.digest()}
    return dataclasses.replace(sets, provenance=origin)


def _rule(request: Request) -> str:
    """Name the rule without its values, which may be personal data."""
    given = [name for name, value in to_json(request).items() if value and name != "by"]
    if len(given) > 1:
        raise ConfigError(
            f"request: {' and '.join(given)} are given together; keep one rule "
            "(ids, file, split, where, fraction or count)"
        )
    return given[0] if given else "split"


def _matching(request: Request, dataset: Dataset, seed: int) -> tuple[str, ...]:
    rule = _rule(request)
    if request.by and rule not in ("fraction", "count"):
        raise ConfigError("request.by goes with fraction or count; drop it")
    if rule == "ids":
        return request.ids
    if rule == "file":
        return _read_ids(Path(str(request.file)))
    if rule == "where":
        return _where(request.where or {}, dataset)
    if rule in ("fraction", "count"):
        return _drawn(request, dataset, seed)
    name = request.split or "forget"
    if name not in dataset.splits:
        known = listing(sorted(dataset.splits), 12) or "none"
        raise ConfigError(
            f"request: the data source has no split {name!r} (it has: {known}); "
            "say what to forget with ids, file, split, where, fraction or count"
        )
    return dataset.splits[name]


def _where(conditions: dict[str, tuple[str | int, ...]], dataset: Dataset) -> tuple[str, ...]:
    rows = set(range(len(dataset.train)))
    for column, values in conditions.items():
        wanted = {str(value) for value in values}
        held = dataset.train[column]
        rows &= {row for row in rows if str(held[row]) in wanted}
    if not rows:
        raise DataError(
            f"request.where matches no record (columns: {listing(conditions)}); "
            "check the values against the data"
        )
    return tuple(dataset.train.ids[row] for row in sorted(rows))


def _drawn(request: Request, dataset: Dataset, seed: int) -> tuple[str, ...]:
    tests = set(dataset.test.ids)
    ids = [i for i in dataset.train.ids if i not in tests]
    units = ids
    if request.by:
        held = dataset.train[request.by]
        group = {i: str(held[row]) for row, i in enumerate(dataset.train.ids)}
        units = sorted({group[i] for i in ids})
    count = request.count or max(1, round(float(request.fraction or 0) * len(units)))
    chosen = set(sample_ids(units, count, seed, "request"))
    return tuple(i for i in ids if (group[i] if request.by else i) in chosen)


def _read_ids(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"request.file: cannot read {path}: {error}") from error
    if text.lstrip().startswith("["):
        try:
            ids: Any = json.loads(text)
        except ValueError as error:
            raise DataError(f"request.file {path} is not a JSON list: {error}") from error
    else:
        ids = [line.strip() for line in text.splitlines() if line.strip()]
    if not ids or not all(isinstance(i, str) for i in ids):
        raise DataError(f"request.file {path} must hold record ids as text, at least one")
    return tuple(ids)
