"""Ordinary supervised training: maximum likelihood on every record."""

from __future__ import annotations

from torch import nn

from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.loop import History, Stream, Term, fit
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope
from expunge.engine.task import Task


def likelihood(task: Task, stream: str, weight: float = 1.0) -> Term:
    """Return the term that teaches the records of a stream: mean NLL per target position.

    Args:
        task: How to run the model.
        stream: Name of the stream.
        weight: Factor of the term; -1 is gradient ascent.
    """
    return Term(stream, lambda model, batch: task.predict(model, batch).nll_B(), weight, "target")


def learn(
    model: nn.Module,
    task: Task,
    records: Records,
    schedule: Schedule,
    run: Run,
    *,
    scope: Scope | None = None,
    label: str = "training",
) -> History:
    """Train a model on records by maximum likelihood, in place; see ``engine.loop.fit``.

    Args:
        model: The model.
        task: How to run it.
        records: What to learn.
        schedule: Settings of the loop.
        run: Context.
        scope: Which weights may move; all when absent.
        label: Words beside the progress bar.
    """
    streams = {"train": Stream(records)}
    terms = (likelihood(task, "train"),)
    return fit(model, task, streams, terms, schedule, run, scope=scope, label=label)
