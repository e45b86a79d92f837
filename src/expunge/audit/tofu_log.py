"""TOFU's published evaluation logs: read from JSON and checked row by row.

A log holds four record sets, each a table per field from row id to value. Everything is keyed by
row id, so that a missing item never shifts another's value.

Shape legend: R records, J wrong answers.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from expunge.audit import tofu_metrics as metrics
from expunge.core.errors import DataError, Problems, StorageError, listing
from expunge.core.files import MAX_JSON_BYTES

FILES = {
    "forget": "eval_log_forget.json",
    "retain": "eval_log.json",
    "real_authors": "eval_real_author_wo_options.json",
    "world_facts": "eval_real_world_wo_options.json",
}
_MAX_DIGITS = 18


@dataclasses.dataclass(frozen=True, eq=False)
class LoggedSet:
    """What a log says of one record set, its rows by rising id.

    Attributes:
        ids: Row ids.
        loss_R: Loss per token of the true answer, in nats.
        rouge_R: ROUGE-L recall of the generated answer.
        paraphrase_R: Loss per token of the true answer in other words.
        wrong_RJ: Losses per token of the wrong answers; NaN where a row has fewer than others.
        questions: Prompts of the rows that the log quotes.
    """

    ids: tuple[int, ...]
    loss_R: np.ndarray
    rouge_R: np.ndarray
    paraphrase_R: np.ndarray
    wrong_RJ: np.ndarray
    questions: Mapping[int, str]

    def log_truth_ratio(self, ids: list[int]) -> np.ndarray:
        """Return the geometric log truth ratio of some rows, in the order given."""
        ratio_R = metrics.log_truth_ratio(self.paraphrase_R, self.wrong_RJ)
        return ratio_R[np.searchsorted(self.ids, ids)]


@dataclasses.dataclass(frozen=True, eq=False)
class TofuLog:
    """One model's evaluation log.

    Attributes:
        name: What to call it in messages.
        sets: The four record sets: forget, retain, real_authors, world_facts.
    """

    name: str
    sets: Mapping[str, LoggedSet]


def read_tofu_log(path: Path) -> TofuLog:
    """Read an evaluation log in TOFU's aggregated format.

    Args:
        path: The JSON file.

    Raises:
        StorageError: The file is absent or unreadable.
        DataError: It is too large, not JSON, or no whole log; see ``parse_tofu_log``.
    """
    try:
        if not path.is_file():
            raise StorageError(f"there is no file {path}; name an evaluation log (JSON)")
        if path.stat().st_size > MAX_JSON_BYTES:
            raise DataError(f"{path} is larger than {MAX_JSON_BYTES} bytes; it is not read")
        text = path.read_bytes()
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        value = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {error}; give an evaluation log") from error
    return parse_tofu_log(value, str(path))


def parse_tofu_log(value: object, name: str) -> TofuLog:
    """Check an evaluation log in memory.

    Args:
        value: The log; row ids may be integers or their decimal text.
        name: What to call it in messages.

    Raises:
        DataError: A set, field or row is missing, a loss is negative or not finite, a row has no
            wrong answer, a set has fewer than 2 rows, or a forgotten question is retained too.
    """
    if not isinstance(value, Mapping) or not set(FILES.values()) & value.keys():
        found = "another object" if isinstance(value, Mapping) else f"a {type(value).__name__}"
        raise DataError(
            f"{name} is no TOFU evaluation log but {found}; give one JSON object with the keys "
            f"{', '.join(FILES.values())}"
        )
    problems = Problems(name, DataError)
    sets = {}
    for record_set, file in FILES.items():
        if file not in value:
            problems.add(f"{file} (the {record_set} set) is missing; evaluate the model on it")
            continue
        columns = _columns(file, value[file], problems)
        if columns is not None:
            sets[record_set] = _logged(columns, _questions(value[file]))
    problems.raise_if_any()
    _refuse_shared_questions(name, sets["forget"].questions, sets["retain"].questions)
    for record_set, rows in sets.items():
        single_R = (~np.isnan(rows.wrong_RJ)).sum(axis=1) == 1
        if single_R.any():
            warnings.warn(
                f"{name}: {FILES[record_set]}: {single_R.sum()} rows have a single wrong answer, "
                "so that their truth ratio is noisy and both of its means agree",
                stacklevel=2,
            )
    return TofuLog(name, sets)


def _refuse_shared_questions(
    name: str, forget: Mapping[int, str], retain: Mapping[int, str]
) -> None:
    place = {question: row for row, question in retain.items()}
    shared = [f"{row} = {place[q]}" for row, q in sorted(forget.items()) if q in place]
    if shared:
        raise DataError(
            f"{name}: {len(shared)} questions are in {FILES['forget']} and in {FILES['retain']} "
            f"(row = row: {listing(shared)}); a record is forgotten or retained, never both"
        )


def _logged(columns: Mapping[str, Mapping[int, Any]], questions: Mapping[int, str]) -> LoggedSet:
    ids = tuple(sorted(columns["avg_gt_loss"]))
    wrong = columns["average_perturb_loss"]
    wrong_RJ = np.full((len(ids), max(len(item) for item in wrong.values())), np.nan)
    for place, row in enumerate(ids):
        wrong_RJ[place, : len(wrong[row])] = wrong[row]

    def column(field: str) -> np.ndarray:
        return np.array([columns[field][row] for row in ids], dtype=np.float64)

    return LoggedSet(
        ids=ids,
        loss_R=column("avg_gt_loss"),
        rouge_R=column("rougeL_recall"),
        paraphrase_R=column("avg_paraphrased_loss"),
        wrong_RJ=wrong_RJ,
        questions=questions,
    )


def _columns(file: str, tables: object, problems: Problems) -> dict[str, dict[int, Any]] | None:
    """Return each needed field of one set by row id; ``None`` where something is wrong with it."""
    already = len(problems.found)
    if not isinstance(tables, Mapping):
        problems.add(f"{file} is a {type(tables).__name__}, not an object of fields")
        return None
    columns = {}
    for field, fault in _FIELDS.items():
        where = f"{file}: {field}"
        if field not in tables:
            problems.add(f"{where} is missing; write it with TOFU's evaluation")
        elif not isinstance(tables[field], Mapping):
            problems.add(f"{where} is a {type(tables[field]).__name__}, not an object of row ids")
        else:
            columns[field] = _rows(where, tables[field], fault, problems)
    known = sorted(set().union(*columns.values()))
    for field, column in columns.items():
        absent = [row for row in known if row not in column]
        if absent:
            problems.add(
                f"{file}: {field} lacks rows {listing(absent)}, which other fields have; evaluate "
                "them, or take them out of every field"
            )
    if columns and len(known) < 2:
        problems.add(f"{file} has {len(known)} rows; at least 2 are needed")
    return columns if len(problems.found) == already else None


def _rows(
    where: str, table: Mapping[Any, Any], fault: Callable[[Any], str], problems: Problems
) -> dict[int, Any]:
    """Return the values by row id; each sort of fault is one problem that lists its rows."""
    rows: dict[int, Any] = {}
    strange, twice, faults = [], [], dict[str, list[int]]()
    for key, item in table.items():
        row = _row_id(key)
        if row is None:
            strange.append(repr(key)[:40])
            continue
        if row in rows:
            twice.append(row)
        rows[row] = item
        found = fault(item)
        if found:
            faults.setdefault(found, []).append(row)
    if strange:
        problems.add(f"{where} has keys that are no row ids (0, 1, …): {listing(strange)}")
    if twice:
        problems.add(f"{where} has rows twice: {listing(sorted(twice))}; keep one of each")
    for found, bad in faults.items():
        problems.add(f"{where} {found} in rows {listing(sorted(bad))}; evaluate them again")
    return rows


def _row_id(key: object) -> int | None:
    """Return a row id from an integer or its plain decimal text; ``None`` for anything else."""
    if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= _MAX_DIGITS:
        return int(key) if key == str(int(key)) else None
    return key if isinstance(key, int) and not isinstance(key, bool) and key >= 0 else None


def _loss_fault(item: object) -> str:
    if isinstance(item, bool) or not isinstance(item, int | float):
        return "is no number"
    if not abs(item) <= sys.float_info.max:
        return "is NaN or infinite"
    return "is negative" if item < 0 else ""


def _share_fault(item: Any) -> str:
    return _loss_fault(item) or ("is above 1" if item > 1 else "")


def _wrong_fault(item: object) -> str:
    if not isinstance(item, list):
        return "is no list of wrong answers"
    if not item:
        return "is empty"
    found = next(filter(None, map(_loss_fault, item)), "")
    return f"holds a loss that {found}" if found else ""


_FIELDS: dict[str, Callable[[Any], str]] = {
    "avg_gt_loss": _loss_fault,
    "avg_paraphrased_loss": _loss_fault,
    "average_perturb_loss": _wrong_fault,
    "rougeL_recall": _share_fault,
}


def _questions(tables: Mapping[str, Any]) -> dict[int, str]:
    """Return the prompts by row id; the log may lack them, as no number needs them."""
    quoted = tables.get("generated_text")
    if not isinstance(quoted, Mapping):
        return {}
    prompts = {}
    for key, item in quoted.items():
        row = _row_id(key)
        if row is not None and isinstance(item, list) and item and isinstance(item[0], str):
            prompts[row] = item[0].strip()
    return prompts


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of JSON, in which the same name twice would silently lose a value."""
    made = dict(pairs)
    if len(made) < len(pairs):
        times = Counter(name for name, _ in pairs)
        twice = [repr(name)[:40] for name, count in times.items() if count > 1]
        raise ValueError(f"an object has a name twice ({listing(twice)})")
    return made
