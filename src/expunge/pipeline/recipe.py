"""``Recipe``: everything that decides a run, typed, strict, in one YAML file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from expunge.core.config import config, override, parse, read_yaml, to_json
from expunge.core.errors import ConfigError, StorageError
from expunge.engine.guard import GuardSettings
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope
from expunge.pipeline.request import Request

Part = str | dict[str, Any]
"""A registered part: its name, or a mapping of ``name`` and the part's own settings."""


@config
class Training(Schedule):
    """How the original model is trained; the retrained references are trained alike."""

    epochs: Annotated[int, Field(ge=1)] = 10
    """Passes over the training records."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate."""
    freeze_norm_statistics: bool = False
    """Keep the running statistics of batch norm as they are."""
    scope: Scope = Scope()
    """Which weights may move."""


@config
class Reuse:
    """The test set as one that many runs ask: what they are told goes through a ledger."""

    file: str
    """Ledger of the test set, which every run that asks it names: a JSON-lines file in a folder
    that exists. A new one is begun where it is absent, and the seed of its noise beside it."""
    budget: Annotated[int, Field(ge=1)] | None = None
    """Disagreements with the retained records that are answered, over all runs; the ledger's when
    absent, in a new one 50."""
    threshold: Annotated[float, Field(gt=0)] | None = None
    """Distance that counts as agreement, for values of 0..1; max(0.02, 4 / sqrt(n)) when absent."""
    noise: Annotated[float, Field(gt=0)] | None = None
    """Scale of the noise; the ledger's when absent, in a new one a sixteenth of the threshold."""


@config
class Machine:
    """Where and how a run is carried out."""

    device: str = "cpu"
    """Torch device."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads of torch; its own choice when absent. Bits depend on it, so it is recorded."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 25
    """Optimiser steps between two checkpoints, at which the collapse guard looks too."""
    score_batch: Annotated[int, Field(ge=1)] = 32
    """Records of one forward pass while scoring."""
    max_seconds: Annotated[float, Field(gt=0)] | None = None
    """Stop, in a resumable state, after this many seconds."""
    trackers: tuple[str, ...] = ()
    """Trackers that receive losses: ``tensorboard``."""


@config
class Recipe:
    """A run: model + data + request -> train (optional) -> forget -> audit -> report."""

    name: str = "run"
    """What the run is called in its report."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Root of every random stream."""
    data: Part
    """Source of data; see ``expunge sources``."""
    model: Part
    """Source of the model; see ``expunge models``."""
    request: Request = Request()
    """Which records to forget."""
    train: Training | None = None
    """Train the model on the data first; absent when the model comes trained."""
    forget: Part | None = None
    """Method; see ``expunge methods``."""
    after: Part | None = None
    """Instead of ``forget``: the source of a model that was changed elsewhere, to be audited."""
    guard: GuardSettings | None = GuardSettings()
    """Collapse guard; ``null`` turns it off."""
    references: Annotated[int, Field(ge=0)] = 2
    """Models retrained without the forget set, each with a seed of its own; two or more show the
    noise floor. Needs ``train``."""
    given_references: tuple[Part, ...] = ()
    """Sources of models that were retrained elsewhere."""
    audits: tuple[Part, ...] = ()
    """Audits; see ``expunge audits``."""
    reuse: Reuse | None = None
    """Answer numbers of the test set through a ledger, so that many runs may ask it."""
    examples: Annotated[int, Field(ge=0)] = 0
    """Records whose answers before and after are shown in ``examples.html``, which holds text of
    forgotten records; 0 writes no such page."""
    machine: Machine = Machine()
    """Where and how the run is carried out."""


def split_part(part: Part, where: str) -> tuple[str, dict[str, Any]]:
    """Return name and settings of a part.

    Raises:
        ConfigError: The mapping has no name.
    """
    if isinstance(part, str):
        return part, {}
    settings = dict(part)
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"recipe.{where}: name is missing; write `{where}: {{name: ...}}`")
    return name, settings


def read_recipe(path: Path, assignments: Iterable[str] = ()) -> Recipe:
    """Read a recipe file and apply ``--set`` assignments.

    Raises:
        StorageError: The file cannot be read.
        ConfigError: It is not YAML, or holds unknown or wrong settings.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"cannot read recipe {path}: {error}") from error
    return make_recipe(override(read_yaml(text, str(path)), assignments))


def make_recipe(value: Mapping[str, Any]) -> Recipe:
    """Build a recipe from plain data and check that its parts agree.

    Raises:
        ConfigError: A setting is unknown or wrong, or two are at odds.
    """
    recipe = parse(Recipe, value, "recipe")
    if recipe.references and recipe.train is None and "references" in value:
        raise ConfigError(
            f"recipe: references = {recipe.references} but there is no `train` section, so nothing "
            "says how to retrain; add `train`, or set references to 0"
        )
    names = [split_part(part, "audits")[0] for part in recipe.audits]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"recipe: audits = {', '.join(names)} names one twice; keep it once, with its settings"
        )
    if (recipe.forget is None) == (recipe.after is None):
        raise ConfigError(
            "recipe: give either `forget` (a method) or `after` (a model changed elsewhere)"
        )
    return recipe


def decisive(recipe: Recipe) -> dict[str, Any]:
    """Return the plain data of a recipe without what cannot change its result.

    How long a run may take and who watches its losses may change when it is resumed.
    """
    value = recipe_json(recipe)
    for name in ("max_seconds", "trackers"):
        del value["machine"][name]
    return value


def recipe_json(recipe: Recipe) -> dict[str, Any]:
    """Return the plain data of a recipe; ``make_recipe`` reads it back."""
    value = to_json(recipe)
    if recipe.train is None:
        value["references"] = 0
    return value
