"""The bridge to lm-evaluation-harness: its tasks on our models.

``evaluate_tasks`` runs tasks of the harness on one model in memory, ``lm_eval_findings`` on every
model of a comparison. They need the extra ``lm-eval``.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from expunge.audit.evidence import Evidence, Measurement, Subject
from expunge.audit.lm_eval_export import NORMAL, UNNAMED, half_width
from expunge.audit.lm_eval_harness import adapt, as_it_is, module, offline, seeded, silent
from expunge.core.errors import (
    ConfigError,
    DataError,
    Problems,
    StorageError,
    UnsupportedModelError,
    listing,
)
from expunge.core.finding import Direction, Finding, Interval
from expunge.core.finding import Subject as Role
from expunge.engine.weights import require_finite, state_digest

AUDIT = "lm_eval"
VERSION = 1
RESAMPLES = 1000
_ROLES: tuple[Role, ...] = ("before", "after", "reference")

Load = Callable[[], tuple[Any, Any]]
"""Returns a model and its tokenizer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskNumber:
    """One number of one task of the harness.

    Attributes:
        value: The number; ``None`` when it is not finite.
        stderr: Its standard error; ``None`` where the harness gives none.
        n: Documents of the task that were evaluated.
        higher_is_better: Which way is better; ``None`` where the task does not say.
        version: The task's version, or that of the group.
        num_fewshot: Examples before each question; ``None`` where the tasks of a group differ.
    """

    value: float | None
    stderr: float | None
    n: int
    higher_is_better: bool | None
    version: str
    num_fewshot: int | None


def evaluate_tasks(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    include_path: str | Path | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    num_fewshot: int | None = None,
    seed: int = 0,
) -> dict[str, TaskNumber]:
    """Run tasks of lm-evaluation-harness on a model in memory, without the network.

    Model, tokenizer and random state are left as they were. A model whose ``forward`` reads which
    tokens were asked is told so, and scored one request at a time. Tasks may run code of their own
    (``!function``): run those that you trust.

    Args:
        model: A causal language model of transformers, or a composite.
        tokenizer: Its tokenizer.
        tasks: Names of tasks, groups or tags.
        include_path: A folder of YAML tasks; they go before the harness's own of the same name.
        limit: Most documents of each task, from the first; all when absent.
        batch_size: Requests per forward pass.
        num_fewshot: Examples before each question, in place of the task's own number; a task that
            fixes none keeps none.
        seed: Seeds the choice of examples.

    Returns:
        Numbers by ``task.metric``, or ``task.metric.filter`` where the task names its filter.

    Raises:
        ConfigError: The extra is not installed, a setting is out of range, or a task is unknown,
            cannot be built, or would run code that the model writes.
        DataError: A task's data are not on this machine.
        StorageError: ``include_path`` is no folder.
        UnsupportedModelError: The model is none of transformers.
        NumericalError: A weight is NaN or infinite.
    """
    _check(tasks, include_path, limit, batch_size, num_fewshot)
    _require_language_model(model)
    found = _find(tasks, include_path)
    return _evaluate(model, tokenizer, found, limit, batch_size, num_fewshot, seed)


def lm_eval_findings(
    models: Mapping[Role, Sequence[Load]],
    tasks: Sequence[str],
    *,
    include_path: str | Path | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    num_fewshot: int | None = None,
    seed: int = 0,
) -> list[Finding]:
    """Run tasks of lm-evaluation-harness on the compared models, and set them side by side.

    Every model is loaded once before the first is run, so that one that cannot be is told at once;
    no two are kept in memory. The other arguments are those of ``evaluate_tasks``.

    Args:
        models: Functions that load them: one ``after``, at most one ``before``, and any number of
            ``reference``.
        tasks: Names of tasks, groups or tags.
        include_path: A folder of YAML tasks.
        limit: Most documents of each task.
        batch_size: Requests per forward pass.
        num_fewshot: Examples before each question.
        seed: Seeds the choice of examples.

    Returns:
        For each number one finding per model: before, after, references.

    Raises:
        ExpungeError: As ``evaluate_tasks``, or a model cannot be loaded.
        ConfigError: There is not one model after forgetting, or there are some that are not
            compared.
    """
    _check_roles({role: len(loads) for role, loads in models.items()})
    _check(tasks, include_path, limit, batch_size, num_fewshot)
    found = _find(tasks, include_path)
    loads = [
        (role, load, place if role == "reference" else None)
        for role in _ROLES
        for place, load in enumerate(models.get(role, ()))
    ]
    for _, load, _ in loads:
        _require_language_model(load()[0])
    numbers = {}
    for role, load, place in loads:
        model, tokenizer = load()
        asked = _evaluate(model, tokenizer, found, limit, batch_size, num_fewshot, seed)
        numbers[Subject(role, state_digest(model), {}, place)] = asked
        del model
    return to_findings(numbers)


def measurement(number: TaskNumber) -> Measurement:
    """Return a task's number as audits give theirs: with an interval and a note.

    The interval is the normal one of the harness's standard error. A standard error of 0 says that
    all documents scored alike, not that the number is exact, and gives no interval.
    """
    if number.value is None:
        return Measurement(None, number.n, note="The harness got no finite number.")
    if number.stderr is None:
        return Measurement(number.value, number.n)
    if number.stderr == 0:
        note = "All documents scored alike, so that the standard error gives no interval."
        return Measurement(number.value, number.n, note=note)
    half = half_width(number.stderr)
    interval = Interval(low=number.value - half, high=number.value + half, method=NORMAL)
    return Measurement(number.value, number.n, interval)


def direction(number: TaskNumber) -> Direction:
    """Return which way of a task's number is better, in the words of findings."""
    if number.higher_is_better is None:
        return "none"
    return "higher" if number.higher_is_better else "lower"


def title(metric: str, number: TaskNumber) -> str:
    """Return a task's number in a reader's words."""
    shots = number.num_fewshot
    shown = "" if shots is None else f", {shots} example{'' if shots == 1 else 's'}"
    return f"{metric} by lm-evaluation-harness (task version {number.version}{shown})"


def to_findings(numbers: Mapping[Subject, Mapping[str, TaskNumber]]) -> list[Finding]:
    """Set the numbers of the compared models side by side.

    Args:
        numbers: What ``evaluate_tasks`` returned of each model; the subjects carry no scores.

    Returns:
        For each number one finding per model: before, after, references.

    Raises:
        ConfigError: There is not one model after forgetting, or there are some that are not
            compared.
    """
    by_role: dict[Role, list[Subject]] = {}
    for subject in numbers:
        by_role.setdefault(subject.role, []).append(subject)
    _check_roles({role: len(subjects) for role, subjects in by_role.items()})
    (after,) = by_role["after"]
    evidence = Evidence(
        after=after,
        before=next(iter(by_role.get("before", ())), None),
        references=tuple(by_role.get("reference", ())),
        sets="",
        audit=AUDIT,
        version=VERSION,
    )
    return [
        finding
        for metric, number in numbers[after].items()
        for finding in evidence.compare(
            metric,
            title(metric, number),
            partial(_measured, numbers, metric),
            direction=direction(number),
        )
    ]


def _measured(
    numbers: Mapping[Subject, Mapping[str, TaskNumber]], metric: str, subject: Subject
) -> Measurement:
    number = numbers[subject].get(metric)
    if number is None:
        return Measurement(None, 0, note="The harness gave no such number of this model.")
    return measurement(number)


def _check(
    tasks: Sequence[str],
    include_path: str | Path | None,
    limit: int | None,
    batch_size: int,
    num_fewshot: int | None,
) -> None:
    problems = Problems("lm_eval")
    if isinstance(tasks, str) or not tasks:
        problems.add(f"tasks = {tasks!r}: give a list of at least one name")
    if limit is not None and limit < 1:
        problems.add(f"limit = {limit}: give at least 1, or none to take all documents")
    if batch_size < 1:
        problems.add(f"batch_size = {batch_size}: give at least 1")
    if num_fewshot is not None and num_fewshot < 0:
        problems.add(f"num_fewshot = {num_fewshot}: give at least 0, or none for the task's own")
    problems.raise_if_any()
    if include_path is not None and not Path(include_path).is_dir():
        raise StorageError(f"include_path = {str(include_path)!r} is no folder of YAML tasks")


def _check_roles(counts: Mapping[Role, int]) -> None:
    if counts.get("after") != 1 or counts.get("before", 0) > 1 or not {*counts} <= {*_ROLES}:
        raise ConfigError(
            f"lm_eval: models of {dict(counts)}: give one 'after', at most one 'before' and any "
            "number of 'reference'"
        )


def _require_language_model(model: Any) -> None:
    if not hasattr(model, "config") or not hasattr(model, "device"):
        raise UnsupportedModelError(
            f"lm_eval's tasks run on language models of transformers, not on a "
            f"{type(model).__name__}"
        )
    require_finite(model.state_dict(), "the model")


@dataclasses.dataclass(frozen=True)
class _Found:
    """Tasks that exist, and the manager of the harness that builds them."""

    names: list[str]
    manager: Any


def _find(tasks: Sequence[str], include_path: str | Path | None) -> _Found:
    """Find tasks by name; the harness's own folder of thousands is read only when one is asked."""
    names = list(tasks)
    make = module("lm_eval.tasks").TaskManager
    manager = None
    with silent(), offline():
        if include_path is not None:
            manager = make(include_path=str(include_path), include_defaults=False)
        if manager is None or not set(names) <= set(manager.all_subtasks):
            manager = make(include_path=None if include_path is None else str(include_path))
    problems = Problems("lm_eval")
    for name in names:
        if name not in manager.task_index:
            close = difflib.get_close_matches(name, manager.all_tasks)
            problems.add(
                f"no task {name!r}; "
                + (
                    f"did you mean {listing(map(repr, close))}?"
                    if close
                    else f"none of the {len(manager.all_tasks)} known has a name like it"
                )
                + (" (YAML files that it cannot read are left out)" if include_path else "")
            )
    problems.raise_if_any()
    return _Found(names, manager)


def _evaluate(
    model: Any,
    tokenizer: Any,
    found: _Found,
    limit: int | None,
    batch_size: int,
    num_fewshot: int | None,
    seed: int,
) -> dict[str, TaskNumber]:
    evaluate = module("lm_eval.evaluator").evaluate
    with silent(), offline(), seeded(seed, str(model.device)), as_it_is(model):
        built = _build(found)
        deaf = _set_examples(built["tasks"].values(), num_fewshot, seed)
        results = evaluate(
            lm=adapt(model, tokenizer, batch_size),
            task_dict=built,
            limit=limit,
            bootstrap_iters=RESAMPLES,
            log_samples=False,
        )
    if deaf:
        warnings.warn(
            f"num_fewshot = {num_fewshot} is not used by tasks that fix 0 examples "
            f"({listing(deaf)})",
            stacklevel=3,
        )
    return _numbers(results)


def _build(found: _Found) -> Any:
    named = listing(map(repr, found.names))
    try:
        built = found.manager.load(found.names)
    except OSError as error:
        raise DataError(
            f"lm_eval: the data of {named} are not on this machine ({_line(error)}); get them "
            "first with datasets.load_dataset, or check data_files in the task"
        ) from error
    except Exception as error:  # YAML and code of others raise anything
        raise ConfigError(f"lm_eval: {named} cannot be built: {_line(error)}") from error
    unsafe = [name for name, task in built["tasks"].items() if getattr(task, "UNSAFE_CODE", False)]
    if unsafe:
        raise ConfigError(f"lm_eval: {listing(unsafe)} would run code that the model writes")
    return built


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _set_examples(tasks: Iterable[Any], num_fewshot: int | None, seed: int) -> list[str]:
    """Set how many examples tasks show; return the names of those that fix none against that."""
    deaf = []
    for task in tasks:
        own = task.get_config("num_fewshot")
        if num_fewshot and own == 0:
            deaf.append(str(task.task_name))
        elif num_fewshot is not None or own is None:
            task.set_config(key="num_fewshot", value=num_fewshot or 0)
        task.set_fewshot_seed(seed=seed)
    return deaf


def _numbers(results: Mapping[str, Any]) -> dict[str, TaskNumber]:
    numbers = {}
    for task, row in results["results"].items():
        better = results["higher_is_better"].get(task, {})
        for key, value in row.items():
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith("_stderr") or not _is_number(value):
                continue
            stderr = row.get(f"{metric}_stderr,{filtered}")
            name = f"{task}.{metric}" + ("" if filtered == UNNAMED else f".{filtered}")
            numbers[name] = TaskNumber(
                value=float(value) if math.isfinite(value) else None,
                stderr=float(stderr) if _is_number(stderr) and math.isfinite(stderr) else None,
                n=int(row["sample_len"]),
                higher_is_better=better.get(metric),
                version=str(results["versions"].get(task)),
                num_fewshot=results["n-shot"].get(task),
            )
    return numbers


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number)
