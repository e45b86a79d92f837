"""``Facts``: everything a report says, read from the files of a run folder and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from expunge.core.config import read_yaml
from expunge.core.errors import IntegrityError, StorageError
from expunge.core.files import read_json
from expunge.core.finding import Finding
from expunge.core.sets import Sets

EXAMPLES = "examples.html"
NEIGHBOURS = "neighbours.html"
REPORT = "report.html"
RECORDS = "records.html"

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Method:
    """How the model was changed.

    Attributes:
        name: Registered name.
        title: One line.
        guarantee: ``"exact"`` or ``"none"``.
        evidence: What the new model is evidence of: ``"erased-exact"``, ``"weights-suppressed"``,
            ``"output-suppressed"``, or ``"unknown"``.
        maturity: ``"stable"`` or ``"experimental"``.
        source: The paper.
        config: Settings.
    """

    name: str
    title: str
    guarantee: str
    evidence: str
    maturity: str
    source: str
    config: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Model:
    """Where the model came from.

    Attributes:
        name: Registered source.
        kind: Kind of task.
        settings: Settings of the source.
    """

    name: str
    kind: str
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Data:
    """Where the data came from.

    Attributes:
        name: Registered source.
        counts: Number of records by role.
        settings: Settings of the source.
    """

    name: str
    counts: dict[str, int]
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the run set out to do.

    Attributes:
        method: The method.
        model: The model.
        data: The data.
        command: Command line that does the same again.
        name: Name of the run.
    """

    method: Method
    model: Model
    data: Data
    command: str
    name: str = "run"


@dataclasses.dataclass(frozen=True)
class Stop:
    """Why a loop ended before its schedule, and the step whose state was kept."""

    reason: str
    step: int


@dataclasses.dataclass(frozen=True)
class History:
    """What happened in a loop: numbers of each step, an early stop, who watched, and notes."""

    steps: list[dict[str, float]]
    stopped: Stop | None = None
    guarded: bool = True
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class StoredModel:
    """One model of the run: its digest, its folder in the run (if kept) and what it came from."""

    digest: str
    path: str | None
    lineage: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Facts:
    """Everything a report says.

    Attributes:
        folder: The run folder.
        plan: What the run set out to do.
        recipe: The resolved recipe.
        recipe_text: The same as it is in the file.
        sets: The record sets.
        findings: Every audited number.
        histories: Training loops by name: ``train``, ``forget``, ``reference-0``, ...
        models: Models by name: ``before``, ``after``, ``reference-0``, ...
        timing: Seconds of each step.
        environment: Platform and versions.
        digest: Digest of the run.
    """

    folder: Path
    plan: Plan
    recipe: Mapping[str, Any]
    recipe_text: str
    sets: Sets
    findings: tuple[Finding, ...]
    histories: Mapping[str, History]
    models: Mapping[str, StoredModel]
    timing: Mapping[str, float]
    environment: Mapping[str, Any]
    digest: str

    @property
    def references(self) -> tuple[str, ...]:
        """Names of the retrained models."""
        return tuple(name for name in self.models if name.startswith("reference-"))

    @property
    def has_examples(self) -> bool:
        """Whether the page of answers before and after exists."""
        return (self.folder / EXAMPLES).exists()


def read_facts(folder: Path) -> Facts:
    """Read a run folder.

    Args:
        folder: The run folder.

    Raises:
        StorageError: The folder holds no finished run.
        IntegrityError: A file is truncated, or lacks something that a run writes.
    """
    if not (folder / "plan.json").is_file():
        raise StorageError(f"{folder} holds no run (plan.json is missing); name a run folder")
    recipe_text = _text(folder / "recipe.yaml")
    histories = {
        path.stem: _read(History, path) for path in sorted((folder / "history").glob("*.json"))
    }
    models = _read(dict[str, StoredModel], folder / "models.json")
    digests = _read(dict[str, Any], folder / "digest.json")
    if not isinstance(digests.get("run"), str):
        raise IntegrityError(f"{folder / 'digest.json'} lacks 'run'; {_REMEDY}")
    return Facts(
        folder=folder,
        plan=_read(Plan, folder / "plan.json"),
        recipe=read_yaml(recipe_text, str(folder / "recipe.yaml")),
        recipe_text=recipe_text,
        sets=Sets.from_json(_read(dict[str, Any], folder / "sets.json")),
        findings=_read(tuple[Finding, ...], folder / "findings.json"),
        histories=histories,
        models={name: models[name] for name in sorted(models, key=_by_role)},
        timing=_read(dict[str, float], folder / "timing.json"),
        environment=_read(dict[str, Any], folder / "environment.json"),
        digest=digests["run"],
    )


_REMEDY = "finish the run with `expunge run`, or restore the file"


def _by_role(name: str) -> tuple[int, int, str]:
    """Order models: before, after, then the references as they are numbered."""
    first = {"before": 0, "after": 1}.get(name, 2)
    return first, len(name), name


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise StorageError(f"{path} is missing; {_REMEDY}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"cannot read {path}: {error}; {_REMEDY}") from error


def _read(kind: type[T], path: Path) -> T:
    if not path.is_file():
        raise StorageError(f"{path} is missing; {_REMEDY}")
    try:
        return pydantic.TypeAdapter(kind).validate_python(read_json(path))
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "value"
        raise IntegrityError(f"{path}: {place}: {first['msg']}; {_REMEDY}") from None
