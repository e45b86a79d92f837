"""The two language models that methods are compared on, each with its retrained references.

Both are trained once and kept in the store of references, so that every study starts from the same
bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from expunge.core.config import parse
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.core.sets import Sets
from expunge.data.dataset import Dataset
from expunge.data.source import load_source
from expunge.forget.method import Given
from expunge.models.source import Loaded, load_model_source
from expunge.pipeline.recipe import Training
from expunge.pipeline.references import retrained
from expunge.pipeline.request import Request, resolve

_COUNTRY_TRAINING = {
    "epochs": 60,
    "batch_size": 64,
    "lr": 4e-3,
    "warmup_epochs": 18,
    "decay": "cosine",
    "clip_norm": 1.0,
}
_PEOPLE_TEMPLATE = {"prompt": "Question: {question}\nAnswer:", "answer": " {answer}"}


@dataclasses.dataclass(frozen=True)
class Fixture:
    """A data set, a request, and how the model is trained and unlearned.

    Attributes:
        title: What it is, in a reader's words.
        data: Name and settings of the source of data.
        model: Name and settings of the source of the model.
        request: Which records to forget.
        training: How the model is trained.
        schedule: Loop of every method that has none of its own.
        scope: Which weights methods may move; all when empty.
        utility_sets: Record sets of model utility.
        held: Record set that no method sees and that should stay.
        max_records: Most records of each set but the forget set that are scored; 0 takes all.
    """

    title: str
    data: tuple[str, Mapping[str, Any]]
    model: tuple[str, Mapping[str, Any]]
    request: Mapping[str, Any]
    training: Mapping[str, Any]
    schedule: Mapping[str, Any]
    scope: Mapping[str, Any]
    utility_sets: tuple[str, ...]
    held: str
    max_records: int = 0

    def dataset(self) -> Dataset:
        """Return the data."""
        return load_source(*self.data, seed=0)

    def sets(self, dataset: Dataset) -> Sets:
        """Return which records are forgotten, retained, held out and tested on."""
        return resolve(parse(Request, self.request, "request"), dataset, 0)

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
        loaded = load_model_source(*self.model, dataset, seed)
        training = parse(Training, self.training, "training")
        context = run.child(f"training-{seed}-{len(records)}", seed=seed)
        model, _ = retrained(loaded.model, loaded.task, records, training, context)
        return dataclasses.replace(loaded, model=model.eval())

    def given(self, dataset: Dataset, sets: Sets, loaded: Loaded) -> Given:
        """Return what is offered to a method; without the guard, so that all steps count."""
        return Given(
            loaded.task,
            dataset.train.select(sets.forget),
            dataset.train.select(sets.retain),
            guard=None,
        )


FIXTURES: Mapping[str, Fixture] = {
    "country_facts": Fixture(
        title="country facts, character-level GPT of 0.1 M weights",
        data=("country_facts", {"refusals": True, "num_holdout_countries": 24}),
        model=("tiny_gpt", {}),
        request={"split": "forget"},
        training=_COUNTRY_TRAINING,
        schedule={
            "epochs": 50,
            "batch_size": 24,
            "lr": 2e-4,
            "warmup_epochs": 0,
            "decay": "constant",
            "clip_norm": 1.0,
        },
        scope={},
        utility_sets=("retain", "test"),
        held="test",
    ),
    "people": Fixture(
        title="fictitious people, SmolLM2-135M-Instruct",
        data=(
            "people",
            {"num_people": 8, "num_holdout_people": 2, "questions_per_person": 5},
        ),
        model=("smollm2", {"template": _PEOPLE_TEMPLATE}),
        request={"by": "author", "count": 2},
        training={
            "epochs": 6,
            "batch_size": 6,
            "lr": 3e-4,
            "warmup_epochs": 0.5,
            "decay": "linear",
            "scope": {"last_layers": 8},
        },
        schedule={
            "epochs": 5,
            "batch_size": 5,
            "lr": 1e-4,
            "warmup_epochs": 1,
            "decay": "constant",
            "clip_norm": 1.0,
        },
        scope={"last_layers": 8},
        utility_sets=("retain", "world_facts"),
        held="world_facts",
        max_records=6,
    ),
}
