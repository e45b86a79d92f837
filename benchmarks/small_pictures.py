"""The world of the studies on small pictures: 2,000 of 14 x 14 pixels, and a perceptron."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

import expunge
from expunge.core.run import Run
from expunge.core.sets import Sets
from expunge.data.dataset import Dataset
from expunge.data.source import load_source
from expunge.engine.schedule import Schedule
from expunge.engine.task import Task
from expunge.models.source import load_model_source
from expunge.train.supervised import learn

COUNT = 200  # records to forget
SOURCES: dict[str, dict[str, int]] = {
    "mnist": {"num_holdout": 1000, "num_test": 2000},
    "fashion_mnist": {"num_train": 2000, "num_holdout": 2000, "num_test": 2000},
}
FITTED = Schedule(
    epochs=100, batch_size=64, optimizer="sgd", lr=0.1, weight_decay=1e-4, decay="cosine"
)

Numbers = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class World:
    """One seed's data, and a model that learned them.

    Attributes:
        seed: The seed.
        dataset: The pictures.
        schedule: How models are trained.
        task: How to run them.
        original: Trained on everything.
    """

    seed: int
    dataset: Dataset
    schedule: Schedule
    task: Task
    original: nn.Module

    def retrained(self, sets: Sets) -> nn.Module:
        """Return a model that never saw the forget set."""
        return taught(self.dataset, sets.retain, self.schedule, self.seed + 1)[0]

    def unlearned(
        self, sets: Sets, method: str, settings: Mapping[str, Any], *, guarded: bool = False
    ) -> nn.Module:
        """Return the original after a method."""
        return expunge.forget(
            self.original,
            self.dataset,
            sets.forget,
            method=method,
            settings=settings,
            guarded=guarded,
            seed=self.seed,
            quiet=True,
        ).model

    def numbers(self, model: nn.Module, retrained: Sequence[nn.Module], sets: Sets) -> Numbers:
        """Return UA, RA, TA, MIA in percent and, beside retrained models, the average gap."""
        findings = expunge.audit(
            model,
            self.dataset,
            sets,
            references=list(retrained),
            audits=["unlearning_gap"],
            seed=self.seed,
            batch_size=500,
            quiet=True,
        )
        return {f.metric: float(f.value or 0) for f in findings if f.subject == "after"}


def world(source: str, seed: int, schedule: Schedule) -> World:
    """Draw the pictures of one seed, and train on them."""
    whole = load_source(source, SOURCES[source], seed)
    dataset = dataclasses.replace(
        whole,
        train=whole.train.replace(x=_pooled(whole.train["x"])),
        holdout=whole.holdout.replace(x=_pooled(whole.holdout["x"])),
        test=whole.test.replace(x=_pooled(whole.test["x"])),
        facts={**whole.facts, "input_shape": [1, 14, 14]},
    )
    model, task = taught(dataset, dataset.train.ids, schedule, seed)
    return World(seed, dataset, schedule, task, model)


def taught(
    dataset: Dataset, ids: Sequence[str], schedule: Schedule, seed: int
) -> tuple[nn.Module, Task]:
    """Train a fresh network on some records."""
    loaded = load_model_source("mlp", {"hidden": [256, 256]}, dataset, seed)
    learn(loaded.model, loaded.task, dataset.train.select(ids), schedule, Run(seed))
    return loaded.model, loaded.task


def tuning(lr: float) -> dict[str, Any]:
    """Return the loop of every method that has no reason for another."""
    return {
        "epochs": 10,
        "batch_size": 64,
        "optimizer": "sgd",
        "lr": lr,
        "weight_decay": 5e-4,
        "warmup_epochs": 0.0,
    }


def _pooled(pictures: Any) -> np.ndarray:
    """Average 2 x 2 pixels of (rows, 1, 28, 28)."""
    whole = np.asarray(pictures)
    return whole.reshape(len(whole), 1, 14, 2, 14, 2).mean(axis=(3, 5), dtype=np.float32)
