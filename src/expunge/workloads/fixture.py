"""What methods are compared on: data, a request, a model with its training, and what is measured.

Models are trained once and kept in the store of references, so that every study starts from the
same bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from expunge.audit.scores import score
from expunge.core.config import parse
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.core.sets import Sets
from expunge.data.dataset import Dataset
from expunge.data.source import load_source
from expunge.engine.task import Task
from expunge.forget.method import Given
from expunge.models.source import Loaded, load_model_source
from expunge.pipeline.recipe import Training
from expunge.pipeline.references import retrained
from expunge.pipeline.request import Request, resolve

_SEEDS_OF_A_DRAW = 100


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        heading: Its heading.
        digits: Format of its numbers.
        audit: The audit that yields them.
        metric: The audit's metric.
        record_set: The record set.
    """

    heading: str
    digits: str
    audit: str
    metric: str
    record_set: str = "forget"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fixture:
    """A data set, a request, how the model is trained, and what is measured.

    Attributes:
        title: What it is, in a reader's words.
        data: Name and settings of the source of data.
        model: Name and settings of the source of the model.
        request: Which records to forget.
        training: How the model is trained.
        schedule: Loop of every method that has none of its own.
        scope: Which weights methods may move; all when empty.
        audits: Audits by name, with their settings.
        columns: What the table shows of them, by name.
        redrawn: Every seed has data, an original model, a request and references of its own;
            otherwise only the method's seed differs.
        draw: Which of them; see ``at``.
    """

    title: str
    data: tuple[str, Mapping[str, Any]]
    model: tuple[str, Mapping[str, Any]]
    request: Mapping[str, Any]
    training: Mapping[str, Any]
    schedule: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    scope: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    audits: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    columns: Mapping[str, Column] = dataclasses.field(default_factory=dict)
    redrawn: bool = False
    draw: int = 0

    def at(self, seed: int) -> Fixture:
        """Return what a seed of a bench is run on."""
        return dataclasses.replace(self, draw=seed) if self.redrawn else self

    def dataset(self) -> Dataset:
        """Return the data."""
        return load_source(*self.data, seed=self.draw)

    def sets(self, dataset: Dataset, run: Run) -> Sets:
        """Return which records are forgotten, retained, held out and tested on."""
        del run
        return resolve(parse(Request, self.request, "request"), dataset, self.draw)

    def before(self, dataset: Dataset, run: Run) -> Loaded:
        """Return the model that learned everything."""
        return self.learned(dataset, dataset.train, 0, run)

    def reference(self, dataset: Dataset, sets: Sets, seed: int, run: Run) -> Loaded:
        """Return a model that never saw the forget set.

        Args:
            dataset: The data.
            sets: What is to be forgotten.
            seed: From 1; a seed is a reference.
            run: Context.
        """
        gone = set(sets.forget)
        kept = dataset.train.select(i for i in dataset.train.ids if i not in gone)
        return self.learned(dataset, kept, seed, run)

    def learned(self, dataset: Dataset, records: Records, seed: int, run: Run) -> Loaded:
        """Return the model trained on records: from the store, or trained now and put there."""
        seed += _SEEDS_OF_A_DRAW * self.draw
        loaded = load_model_source(*self.model, dataset, seed)
        training = parse(Training, self.training, "training")
        context = run.child(f"training-{seed}-{records.digest()[:12]}", seed=seed)
        model, _ = retrained(loaded.model, loaded.task, records, training, context)
        return dataclasses.replace(loaded, model=model.eval())

    def merit(self, model: nn.Module, task: Task, dataset: Dataset, sets: Sets, run: Run) -> float:
        """Return by how much a model commends itself on held-out records: its accuracy, in percent.

        Settings of an arm are chosen by it, never by a number of the table.
        """
        del sets
        return 100 * float(score(model, task, dataset.holdout, run).greedy_N.mean())

    def given(self, dataset: Dataset, sets: Sets, loaded: Loaded) -> Given:
        """Return what is offered to a method; without the guard, so that all steps count."""
        seed = _SEEDS_OF_A_DRAW * self.draw
        return Given(
            loaded.task,
            dataset.train.select(sets.forget),
            dataset.train.select(sets.retain),
            fresh=lambda: load_model_source(*self.model, dataset, seed).model,
            guard=None,
        )
