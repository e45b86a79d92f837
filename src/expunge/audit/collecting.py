"""Scoring: one model on everything that the audits read, each reading once, and never twice.

Scores are kept by everything that decides their bits: model, tokens, records, views, treatment,
length of answers. A model that was scored before is not run again.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from expunge.audit.evidence import Subject
from expunge.audit.generation import Asked, answer_together
from expunge.audit.measures import measures, texts_of
from expunge.audit.readings import Reading
from expunge.audit.score_table import read_scores, write_scores
from expunge.audit.scores import Scores, score_together
from expunge.audit.treatments import NotApplicable, info_of, treat
from expunge.audit.views import Scene, see
from expunge.core.digest import digest_json
from expunge.core.errors import IntegrityError
from expunge.core.finding import Subject as Role
from expunge.core.progress import Progress
from expunge.core.run import Run
from expunge.core.sets import Sets
from expunge.data.dataset import Dataset
from expunge.engine.task import Task
from expunge.engine.weights import state_digest

VERSION = 2
"""Grows with any change of what a kept score means."""


def parts_of(model: nn.Module, before: str) -> dict[str, nn.Module]:
    """Return the parts of a composite to be audited by themselves; none of any other model.

    Args:
        model: The model after unlearning.
        before: Digest of the model before it; a part that equals it has been scored already.
    """
    find = getattr(model, "parts", None)
    parts = find() if find is not None else {}
    return {name: part for name, part in parts.items() if state_digest(part) != before}


def collect(
    model: nn.Module,
    task: Task,
    dataset: Dataset,
    sets: Sets,
    readings: Sequence[Reading],
    run: Run,
    *,
    role: Role,
    seed: int | None = None,
    part: str = "",
    batch_size: int = 32,
    cache: Path | None = None,
) -> Subject:
    """Score one model on everything that the audits read, each reading once.

    Args:
        model: The model.
        task: How to run it.
        dataset: The data.
        sets: Which of them are forgotten, retained, held out and tested on.
        readings: What to score; see ``plan_readings``.
        run: Context: device, progress, events, cancellation.
        role: Which of the compared models it is.
        seed: The training seed of a reference.
        part: Name of the part.
        batch_size: Records per forward pass.
        cache: Folder of scores that were made before; nothing is kept when absent.

    Raises:
        NumericalError: The model yields NaN or infinity.
        Interrupted: Cancelled, or the budget is spent.
    """
    scene = Scene(dataset, sets, run.seed)
    due = [r for r in readings if not r.treatment or role in info_of(r.treatment).roles]
    pass_ = _Pass(model, task, scene, run, batch_size, cache)
    scores: dict[Reading, Scores] = {}
    absent: dict[Reading, str] = {}
    for spec in dict.fromkeys(reading.treatment for reading in due):
        wanted = [reading for reading in due if reading.treatment == spec]
        try:
            scores |= pass_.score(spec, wanted, f"{role} model")
        except NotApplicable as reason:
            absent |= dict.fromkeys(wanted, str(reason))
    for reading in scores:
        told = {"role": role, "set": reading.record_set, "view": reading.view}
        run.emit("scored", **told, treatment=reading.treatment, records=len(scores[reading]))
    ordered = {reading: scores[reading] for reading in readings if reading in scores}
    return Subject(role, pass_.digest, ordered, seed, part, absent)


class _Pass:
    """All scoring of one model."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        scene: Scene,
        run: Run,
        batch_size: int,
        cache: Path | None,
    ) -> None:
        self.model, self.task, self.scene, self.run = model, task, scene, run
        self.batch_size, self.cache = batch_size, cache
        self.digest = state_digest(model)

    def score(self, spec: str, readings: Sequence[Reading], name: str) -> dict[Reading, Scores]:
        """Score the readings of one treatment; views of the same records share their prompts."""
        groups: dict[tuple[str, int], list[Reading]] = {}
        for reading in readings:
            groups.setdefault((reading.record_set, reading.limit), []).append(reading)
        found: dict[Reading, Scores] = {}
        left: list[tuple[list[Reading], Path | None]] = []
        for group in groups.values():
            path = self._place(group)
            known = _recalled(path, group)
            found |= known
            if not known:
                left.append((group, path))
        if not left:
            return found
        model, task = self.model, self.task
        if spec:
            model, task = treat(self.model, self.task, self.scene, spec, self.run)
        title = f"scoring the {name}" + (f" after {spec}" if spec else "")
        total = sum(len(see(task, self.scene, r)[1]) for group, _ in left for r in group)
        with self.run.progress(title, total) as bar:
            made = [(group, path, self._scored(model, task, group, bar)) for group, path in left]
        answers = self._answers(model, task, {r: s[r] for _, _, s in made for r in s})
        for group, path, scores in made:
            whole = {
                reading: self._measured(model, task, reading, scores[reading], answers)
                for reading in group
            }
            found |= whole
            if path is not None:
                write_scores(path, Subject("reference", self.digest, whole))
        return found

    def _scored(
        self, model: nn.Module, task: Task, group: Sequence[Reading], bar: Progress
    ) -> dict[Reading, Scores]:
        parts = [see(task, self.scene, reading) for reading in group]
        scores = score_together(model, parts, self.run, batch_size=self.batch_size, bar=bar)
        return dict(zip(group, scores, strict=True))

    def _answers(
        self, model: nn.Module, task: Task, scores: Mapping[Reading, Scores]
    ) -> dict[Reading, list[str]]:
        """Write the answers of all readings that ask for some, together."""
        asked = {
            reading: Asked(*see(task, self.scene, reading), reading.max_new_tokens, own.leading_R)
            for reading, own in scores.items()
            if reading.max_new_tokens and len(own)
        }
        if not asked:
            return {}
        texts = answer_together(model, [*asked.values()], self.run, batch_size=self.batch_size)
        return dict(zip(asked, texts, strict=True))

    def _measured(
        self,
        model: nn.Module,
        task: Task,
        reading: Reading,
        scores: Scores,
        answers: Mapping[Reading, list[str]],
    ) -> Scores:
        """Add what is measured beside the likelihoods."""
        if not reading.measures:
            return scores
        seen, records = see(task, self.scene, reading)
        taken: dict[str, np.ndarray] = {}
        for name in reading.measures:
            info = measures.get(name)
            if info.of_text is not None:
                taken[name] = info.of_text(answers.get(reading, []), texts_of(seen, records))
            elif info.of_model is not None:
                taken[name] = info.of_model(model, seen, records, self.run)
        return dataclasses.replace(scores, measured=taken)

    def _place(self, group: Sequence[Reading]) -> Path | None:
        """Return the file that keeps the scores of readings that are scored together."""
        if self.cache is None:
            return None
        treated = bool(group[0].treatment)
        seen = [see(self.task, self.scene, reading) for reading in group]
        key = {
            "version": [VERSION, importlib.metadata.version("expunge")],
            "model": [self.digest, _architecture(self.model)],
            "readings": [_plain(reading) for reading in group],
            "tasks": [task.fingerprint() for task, _ in seen],
            "records": [[records.digest(), digest_json(records.ids)] for _, records in seen],
            "batch": self.batch_size,
            "context": [getattr(task, "context", None) for task, _ in seen],
            "machine": [*_libraries(), self.run.device, torch.get_num_threads()],
            # A treatment draws on other records, too.
            "data": [self.scene.dataset.digest(), self.scene.sets.digest(), self.scene.seed]
            if treated
            else None,
        }
        return self.cache / f"{digest_json(key)}.parquet"


def _libraries() -> list[str]:
    names = ("torch", "transformers", "numpy", "scikit-learn")
    found = []
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    return found


def _architecture(model: nn.Module) -> str:
    """Digest what decides a model's output beside its weights, as far as it says so itself."""
    configs: list[Any] = [getattr(part, "config", None) for part in model.modules()]
    told = [config.to_dict() for config in configs if hasattr(config, "to_dict")]
    for settings in told:
        for name in ("_name_or_path", "transformers_version"):
            settings.pop(name, None)
    return digest_json(json.loads(json.dumps([str(model), told], default=str)))


def _recalled(path: Path | None, group: Sequence[Reading]) -> Mapping[Reading, Scores]:
    """Return kept scores; a damaged file counts as none and is written again."""
    if path is None or not path.is_file():
        return {}
    try:
        kept = read_scores(path).scores
    except IntegrityError:
        return {}
    return kept if set(kept) == set(group) else {}


def _plain(reading: Reading) -> dict[str, Any]:
    return dataclasses.asdict(reading)
