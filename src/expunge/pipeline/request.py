"""``Request``: which records to forget, and the record sets that follow."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from expunge.core.config import config, to_json
from expunge.core.errors import ConfigError, DataError, StorageError, listing
from expunge.core.sets import Sets, require_known, sample_ids
from expunge.core.streams import stream
from expunge.data.classes import class_numbers
from expunge.data.dataset import Dataset

_RULES = "ids, file, split, classes, where, fraction or count"
_DRAWS = ("fraction", "count")
_MODIFIERS = ("by", "identified")


@config
class Between:
    """A range of numbers; both ends belong to it."""

    min: float | None = None
    """Lowest number; none is too low when absent."""
    max: float | None = None
    """Highest number; none is too high when absent."""


@config
class Request:
    """Which training records to forget, by exactly one rule; by default the split ``forget``."""

    ids: tuple[str, ...] = ()
    """Record ids."""
    file: str | None = None
    """File with record ids: a JSON list, one id a line, or what ``expunge request like`` wrote."""
    split: str | None = None
    """Named split of the data source, such as ``forget10``."""
    classes: tuple[int | str, ...] = ()
    """Classes of a classifier, by number or name: all their records."""
    where: dict[str, tuple[str | int | float, ...] | Between] | None = None
    """Column to values, or to a range of numbers: records that fit in every column, such as
    ``{author: [Jane Doe]}`` or ``{price: {min: 300, max: 900}}``."""
    fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the records (of the groups, with ``by``), drawn at random."""
    count: Annotated[int, Field(ge=1)] | None = None
    """Number of records (of groups, with ``by``), drawn at random."""
    by: str | None = None
    """Column whose groups are drawn whole, such as ``author``."""
    identified: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the named records that has been found, drawn at random (γ): the others are unknown
    and stay among what is retained. A larger share holds the records of a smaller one."""


def resolve(request: Request, dataset: Dataset, seed: int) -> Sets:
    """Turn a request into record sets.

    What is trained on and neither forgotten nor kept for tests is retained.

    Args:
        request: The request.
        dataset: The data.
        seed: Decides random draws.

    Raises:
        ConfigError: The request names no rule or more than one.
        DataError: It matches no record, or names unknown ones, or nothing would be left: no
            record, or a single class.
    """
    named = _matching(request, dataset, seed)
    tests = set(dataset.test.ids)
    require_known(named, dataset.train.ids, "request")
    forget = _identified(named, request.identified, seed)
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
    _check_rest(request, forget, dataset)
    origin = {"rule": _rule(request), "seed": seed, "data": dataset.digest()}
    if request.identified < 1:
        origin |= {"identified": request.identified, "named": len(named)}
    if "corruption" in dataset.facts:
        origin["corruption"] = dataset.facts["corruption"]
    return dataclasses.replace(sets, provenance=origin)


def _rule(request: Request) -> str:
    """Name the rule without its values, which may be personal data."""
    told = {name: value for name, value in to_json(request).items() if name not in _MODIFIERS}
    given = [name for name, value in told.items() if value]
    if len(given) > 1:
        raise ConfigError(
            f"request: {' and '.join(given)} are given together; keep one rule ({_RULES})"
        )
    return given[0] if given else "split"


def _matching(request: Request, dataset: Dataset, seed: int) -> tuple[str, ...]:
    rule = _rule(request)
    if request.by and rule not in _DRAWS:
        raise ConfigError("request.by goes with fraction or count; drop it")
    if request.identified < 1 and rule in _DRAWS:
        raise ConfigError(
            f"request.identified = {request.identified} does not go with {rule}, which draws at "
            f"random already; lower {rule}"
        )
    if rule == "ids":
        return request.ids
    if rule == "file":
        return _read_ids(Path(str(request.file)))
    if rule == "where":
        return _where(request.where or {}, dataset)
    if rule == "classes":
        return _of_classes(request.classes, dataset)
    if rule in ("fraction", "count"):
        return _drawn(request, dataset, seed)
    name = request.split or "forget"
    if name not in dataset.splits:
        known = listing(sorted(dataset.splits), 12) or "none"
        raise ConfigError(
            f"request: the data source has no split {name!r} (it has: {known}); "
            f"say what to forget with {_RULES}"
        )
    return dataset.splits[name]


def _where(
    conditions: Mapping[str, tuple[str | int | float, ...] | Between], dataset: Dataset
) -> tuple[str, ...]:
    rows = set(range(len(dataset.train)))
    for column, wanted in conditions.items():
        held = dataset.train[column]
        if isinstance(wanted, Between):
            rows &= _inside(column, wanted, held)
        else:
            rows &= {row for row in rows if any(_equal(held[row], value) for value in wanted)}
    if not rows:
        raise DataError(
            f"request.where matches no record (columns: {listing(conditions)}); "
            "check the values against the data"
        )
    return tuple(dataset.train.ids[row] for row in sorted(rows))


def _equal(held: Any, wanted: str | float) -> bool:
    """Tell whether a value is what was asked for; 1 is 1.0, and .1 is .1 in single precision."""
    if str(held) == str(wanted):
        return True
    if isinstance(wanted, str) or not isinstance(held, int | float | np.number):
        return False
    return bool(held == (type(held)(wanted) if isinstance(held, np.floating) else wanted))


def _inside(column: str, wanted: Between, held: Sequence[Any]) -> set[int]:
    """Return the rows whose number lies in a range; a row without one does not."""
    low = -math.inf if wanted.min is None else wanted.min
    high = math.inf if wanted.max is None else wanted.max
    if wanted.min is None and wanted.max is None:
        raise ConfigError(f"request.where.{column}: give min, max or both")
    if low > high:
        raise ConfigError(f"request.where.{column}: min is above max; exchange them")
    try:
        return {row for row, v in enumerate(held) if v is not None and low <= float(v) <= high}
    except (TypeError, ValueError) as error:
        raise DataError(
            f"request.where.{column}: the column does not hold numbers, so it has no range; list "
            f"values instead, such as {{{column}: [...]}}"
        ) from error


def _of_classes(classes: Sequence[int | str], dataset: Dataset) -> tuple[str, ...]:
    if dataset.kind != "classifier":
        raise ConfigError(
            f"request.classes: the data are for a {dataset.kind}, which has no classes; use where"
        )
    wanted = set(class_numbers(classes, dataset.facts, "request.classes"))
    labels = dataset.train["y"]
    found = tuple(i for row, i in enumerate(dataset.train.ids) if int(labels[row]) in wanted)
    if not found:
        raise DataError(
            f"request.classes: no training record has class {listing(classes)}; check the data"
        )
    return found


def _identified(named: tuple[str, ...], share: float, seed: int) -> tuple[str, ...]:
    count = max(1, round(share * len(named)))
    if count == len(named):
        return named
    chosen = stream(seed, "identified").permutation(len(named))[:count]
    return tuple(named[place] for place in sorted(chosen))


def _check_rest(request: Request, forget: Sequence[str], dataset: Dataset) -> None:
    """Refuse a request after which there is nothing left to learn."""
    gone, train = set(forget), dataset.train
    rest = [row for row, record_id in enumerate(train.ids) if record_id not in gone]
    # Whoever names records may have given nothing but what is to be forgotten.
    if not rest and _rule(request) not in ("split", "ids", "file"):
        raise DataError(
            f"request: it names all {len(train)} training records, so that nothing is left; to "
            "forget everything, delete the model"
        )
    if dataset.kind != "classifier" or not rest:
        return
    left = {int(train["y"][row]) for row in rest}
    if len(left) == 1 and any(int(label) not in left for label in train["y"]):
        what = f"class {listing(request.classes)}" if request.classes else f"{len(gone)} records"
        raise DataError(
            f"request: forgetting {what} leaves a single class ({left.pop()}); a classifier needs "
            "two: name fewer records"
        )


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
            items: list[Any] = json.loads(text)
        except ValueError as error:
            raise DataError(f"request.file {path} is not a JSON list: {error}") from error
    else:
        items = [line.strip() for line in text.splitlines() if line.strip()]
    ids = [item.get("id") if isinstance(item, dict) else item for item in items]
    texts = tuple(i for i in ids if isinstance(i, str))
    if not texts or len(texts) < len(ids):
        raise DataError(f"request.file {path} must hold record ids as text, at least one")
    return texts
