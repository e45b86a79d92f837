"""``Work``: one run's recipe, resolved: data, sets, model, method, audits, folder, journal."""

from __future__ import annotations

import dataclasses
import shlex
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from expunge.audit.audit import AuditInfo, audits, plan_readings
from expunge.audit.audit import parse_config as parse_audit
from expunge.audit.readings import Reading
from expunge.core.config import to_json
from expunge.core.errors import ConfigError, IntegrityError
from expunge.core.files import read_json, write_json, write_text
from expunge.core.records import Records
from expunge.core.run import Budget, Run
from expunge.core.sets import ROLES, Sets
from expunge.data.dataset import Dataset
from expunge.data.regression import regression_facts
from expunge.data.source import load_source
from expunge.engine.device import full_environment, require_device
from expunge.engine.weights import state_digest
from expunge.forget.method import Given, MethodInfo, check_needs, methods, parse_config
from expunge.models.language import COMPOSITE
from expunge.models.source import Loaded, load_model_source
from expunge.models.store import load_saved
from expunge.pipeline.journal import Journal
from expunge.pipeline.recipe import Part, Recipe, decisive, read_recipe, recipe_json, split_part
from expunge.pipeline.request import Request, resolve
from expunge.pipeline.reuse import check_reuse
from expunge.pipeline.trackers import open_trackers
from expunge.report.rendering import require_libraries

RECIPE = "recipe.yaml"


@dataclasses.dataclass(frozen=True)
class Work:
    """Everything that the steps of one run share.

    Attributes:
        recipe: The recipe.
        folder: The run folder.
        run: Context of the whole run.
        journal: Finished steps.
        dataset: The data.
        sets: Which records are forgotten, retained, held out, tested on.
        method: The method and its settings; ``None`` when the model was changed elsewhere.
        chosen: The audits and their settings.
        readings: What the audits want scored.
    """

    recipe: Recipe
    folder: Path
    run: Run
    journal: Journal
    dataset: Dataset
    sets: Sets
    method: tuple[MethodInfo[Any], Any] | None
    chosen: tuple[tuple[AuditInfo, Any], ...]
    readings: tuple[Reading, ...]

    def fresh(self, seed: int) -> Loaded:
        """Return the model as it was before it saw the data; plain modules start from ``seed``."""
        name, settings = split_part(self.recipe.model, "model")
        return load_model_source(name, settings, self.dataset, seed)

    def fresh_without(self, seed: int) -> Loaded:
        """Return the same made without the forget records, down to the data's statistics."""
        name, settings = split_part(self.recipe.model, "model")
        facts = dict(self.dataset.facts)
        if self.dataset.kind == "regressor":
            facts |= regression_facts(self.kept)
        without = dataclasses.replace(self.dataset, train=self.kept, splits={}, facts=facts)
        return load_model_source(name, settings, without, seed)

    def before(self) -> Loaded:
        """Return the model before unlearning: trained by this run, or as its source has it."""
        if self.recipe.train is None:
            return self.fresh(self.recipe.seed)
        return self.saved("before")

    def source(self, part: Part, where: str) -> Loaded:
        """Return the model of a part of the recipe."""
        name, settings = split_part(part, where)
        return load_model_source(name, settings, self.dataset, self.recipe.seed)

    def saved(self, subject: str) -> Loaded:
        """Return a model that this run has written."""
        return load_saved(self.folder / "models" / subject)

    @property
    def kept(self) -> Records:
        """Return all training records but those to forget: what a reference is trained on."""
        gone = set(self.sets.forget)
        return self.dataset.train.select(i for i in self.dataset.train.ids if i not in gone)

    def given(self, loaded: Loaded) -> Given:
        """Return what the run can offer to a method."""
        retain = self.dataset.train.select(self.sets.retain)
        seed = self.recipe.seed
        return Given(
            task=loaded.task,
            forget=self.dataset.train.select(self.sets.forget),
            retain=retain if len(retain) else None,
            fresh=(lambda: self.fresh_without(seed).model) if self.recipe.train else None,
            kept=self.kept,
            guard=self.recipe.guard,
        )


def prepare(
    recipe: Recipe, folder: Path, *, quiet: bool, watch: Callable[[Run], None] | None
) -> Work:
    """Resolve a recipe and check its parts, data and request; write nothing.

    Args:
        recipe: The recipe.
        folder: The run folder.
        quiet: Show no progress.
        watch: Receives the run, so that a signal can cancel it.

    Raises:
        ConfigError: Parts are unknown, or settings wrong.
        DataError: The data or the request cannot be used.
        StorageError: A file of data cannot be read.
    """
    require_libraries()
    require_device(recipe.machine.device)
    if recipe.machine.threads is not None:
        torch.set_num_threads(recipe.machine.threads)
    name, settings = split_part(recipe.data, "data")
    dataset = load_source(name, settings, recipe.seed)
    sets = resolve(recipe.request, dataset, recipe.seed)
    recipe = _without_personal_values(recipe, sets)
    machine = recipe.machine
    run = Run(
        recipe.seed,
        device=machine.device,
        folder=folder / "checkpoints",
        events=folder / "events.jsonl",
        budget=Budget(max_seconds=machine.max_seconds),
        checkpoint_every=machine.checkpoint_every,
        quiet=quiet,
        trackers=open_trackers(machine.trackers, folder),
    )
    if watch is not None:
        watch(run)
    chosen = tuple(_audit(part) for part in recipe.audits)
    check_reuse(recipe, dataset, sets, chosen)
    work = Work(
        recipe=recipe,
        folder=folder,
        run=run,
        journal=Journal(folder / "journal.jsonl"),
        dataset=dataset,
        sets=sets,
        method=_method(recipe),
        chosen=chosen,
        readings=plan_readings(chosen, dataset),
    )
    if recipe.examples and dataset.kind != "causal_lm":
        raise ConfigError(
            f"recipe: examples = {recipe.examples} shows answers of a language model, the data are "
            f"for a {dataset.kind!r}; set examples to 0"
        )
    return work


def check_models(work: Work) -> str:
    """Load every model that the recipe names, one after the other, and check the method's needs.

    Returns:
        Digest of the model before it saw the data.

    Raises:
        ConfigError: The method cannot run on what there is, or a model is of another kind.
        ExpungeError: A model's files cannot be used.
    """
    base = work.fresh(work.recipe.seed)
    if work.method is not None:
        check_needs(*work.method, work.given(base), base.model)
    digest = state_digest(base.model)
    del base
    if work.recipe.after is not None:
        work.source(work.recipe.after, "after")
    for part in work.recipe.given_references:
        work.source(part, "given_references")
    return digest


def record(work: Work) -> None:
    """Write the resolved recipe, environment, sets and plan into the run folder.

    Raises:
        ConfigError: The folder holds a run of another recipe.
        IntegrityError: Its recipe is not one that a run wrote.
    """
    path = work.folder / RECIPE
    if path.exists():
        _require_same(work, path)
    value = recipe_json(work.recipe)
    write_text(path, yaml.safe_dump(value, sort_keys=False, allow_unicode=True))
    _note_environment(work.folder)
    write_json(work.folder / "sets.json", work.sets.to_json())
    write_json(work.folder / "plan.json", plan(work))


def _require_same(work: Work, path: Path) -> None:
    try:
        known = decisive(read_recipe(path))
    except ConfigError as error:
        raise IntegrityError(
            f"{path} is not what a run wrote ({error}); choose another folder with --out"
        ) from error
    wanted = decisive(work.recipe)
    differing = [name for name in wanted if wanted[name] != known[name]]
    if differing:
        raise ConfigError(
            f"{work.folder} holds a run of another recipe (it differs in "
            f"{', '.join(differing)}); choose another folder with --out"
        )


def plan(work: Work) -> dict[str, Any]:
    """Return what the run is going to do, as plain data for the report."""
    counts = {role: len(getattr(work.sets, role)) for role in ROLES}
    model, model_settings = split_part(work.recipe.model, "model")
    data, data_settings = split_part(work.recipe.data, "data")
    return {
        "name": work.recipe.name,
        "method": _method_facts(work),
        "model": {"name": model, "settings": model_settings, "kind": work.dataset.kind},
        "data": {"name": data, "settings": data_settings, "counts": counts},
        "references": num_references(work.recipe),
        "audits": [info.name for info, _ in work.chosen],
        "command": _again(work.folder),
    }


def _again(folder: Path) -> str:
    """Return the command that repeats a run, for the folder it was started from.

    The recipe may hold paths that are relative to that folder, so the run's own is not shortened.
    """
    return shlex.join(["expunge", "run", str(folder / RECIPE), "--out", f"{folder}-again"])


def num_references(recipe: Recipe) -> int:
    """Return how many references a run compares with."""
    return (recipe.references if recipe.train else 0) + len(recipe.given_references)


def _method_facts(work: Work) -> dict[str, Any]:
    if work.method is None:
        return {
            "name": "given",
            "title": "The model after forgetting was made elsewhere.",
            "guarantee": "none",
            "evidence": _given_evidence(work.recipe),
            "maturity": "stable",
            "source": "",
            "config": {},
        }
    info, config = work.method
    names = ("name", "title", "guarantee", "evidence", "maturity", "source")
    facts = {key: getattr(info, key) for key in names}
    return {**facts, "config": to_json(config)}


def _given_evidence(recipe: Recipe) -> str:
    """Return the class of evidence that a composite carries; of other models it is unknown."""
    _, settings = split_part(recipe.after or "", "after")
    card = Path(str(settings.get("path", ""))) / COMPOSITE
    return str(read_json(card).get("evidence", "unknown")) if card.is_file() else "unknown"


def _method(recipe: Recipe) -> tuple[MethodInfo[Any], Any] | None:
    if recipe.forget is None:
        return None
    name, settings = split_part(recipe.forget, "forget")
    info = methods.get(name)
    config = parse_config(info, settings)
    if recipe.train is not None and "fresh" in info.needs(config) and "schedule" not in settings:
        # Retraining means training as the original was trained.
        training = to_json(recipe.train)
        scope = training.pop("scope")
        config = parse_config(info, {"scope": scope, **settings, "schedule": training})
    return info, config


def _audit(part: Part) -> tuple[AuditInfo, Any]:
    name, settings = split_part(part, "audits")
    info = audits.get(name)
    return info, parse_audit(info, settings)


def _without_personal_values(recipe: Recipe, sets: Sets) -> Recipe:
    """Replace a request by values (names of people, say) by the neutral ids that it matched."""
    if not recipe.request.where:
        return recipe
    return dataclasses.replace(recipe, request=Request(ids=sets.forget))


def _note_environment(folder: Path) -> None:
    path, now = folder / "environment.json", full_environment()
    if path.exists() and read_json(path) != now:
        warnings.warn(
            f"{folder} was begun in another environment (see environment.json); the result may "
            "differ in its last bits from an uninterrupted run",
            stacklevel=2,
        )
        return
    write_json(path, now)
