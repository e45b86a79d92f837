"""Greedy answers, generated once per set of prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from torch import nn

from expunge.core.errors import UnsupportedModelError
from expunge.core.progress import Progress
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.decoding import Encoded, by_length, keeps_cache
from expunge.engine.modes import evaluating
from expunge.engine.task import Task


@runtime_checkable
class Generates(Protocol):
    """A task whose models write answers."""

    def generate(
        self,
        model: nn.Module,
        records: Records,
        rows: Sequence[int],
        max_new_tokens: int,
    ) -> list[str]:
        """Return the greedy answers to the prompts of the given rows."""


@runtime_checkable
class Continues(Protocol):
    """A task whose records are tokens, so that answers to several sets are written together."""

    def encoded(self, records: Records) -> list[Encoded]:
        """Return tokens and the index of the first answer token of every record."""

    def greedy(
        self,
        model: nn.Module,
        encoded: Sequence[Encoded],
        max_new_tokens: Sequence[int],
        known: Sequence[int] | None = None,
    ) -> list[str]:
        """Return greedy answers; see ``CausalLM``."""


@dataclasses.dataclass(frozen=True, eq=False)
class Asked:
    """Records whose prompts are to be answered.

    Attributes:
        task: How to read them.
        records: The records.
        max_new_tokens: Longest answer in tokens.
        known_R: How many tokens of each true answer the model is known to write first, from its
            scores; they are not written again.
    """

    task: Task
    records: Records
    max_new_tokens: int
    known_R: np.ndarray | None = None


def generate_answers(
    model: nn.Module,
    task: Task,
    records: Records,
    run: Run,
    *,
    max_new_tokens: int,
    batch_size: int = 32,
) -> list[str]:
    """Return the greedy answer to every record's prompt, in record order.

    Args:
        model: The model, put in eval mode for the moment and moved to ``run.device``.
        task: How to run it.
        records: Whose prompts to answer.
        run: Context: device, progress, cancellation.
        max_new_tokens: Longest answer in tokens.
        batch_size: Prompts per batch.

    Raises:
        UnsupportedModelError: Models of this kind write no answers.
        Interrupted: Cancelled, or the budget is spent.
    """
    asked = Asked(task, records, max_new_tokens)
    return answer_together(model, [asked], run, batch_size=batch_size)[0]


def answer_together(
    model: nn.Module, asked: Sequence[Asked], run: Run, *, batch_size: int = 32
) -> list[list[str]]:
    """Return the greedy answers to the prompts of several sets.

    Prompts whose answers should have similar lengths share a batch, since these end together.

    Args:
        model: The model, put in eval mode for the moment and moved to ``run.device``.
        asked: What to answer.
        run: Context: device, progress, cancellation.
        batch_size: Prompts per batch; four times as many where the model keeps a cache.

    Raises:
        UnsupportedModelError: Models of this kind write no answers.
        Interrupted: Cancelled, or the budget is spent.
    """
    for one in asked:
        if not isinstance(one.task, Generates):
            raise UnsupportedModelError(
                f"a {one.task.kind!r} model writes no answers; use a language model"
            )
    model.to(run.device)
    total = sum(len(one.records) for one in asked)
    with evaluating(model), run.progress("answering", total) as bar:
        together = keeps_cache(model) and all(isinstance(one.task, Continues) for one in asked)
        if together:
            return _continued(model, asked, run, 4 * batch_size, bar)
        return [_written(model, one, run, batch_size, bar) for one in asked]


def _continued(
    model: nn.Module, asked: Sequence[Asked], run: Run, batch_size: int, bar: Progress
) -> list[list[str]]:
    encoded: list[Encoded] = []
    known: list[int] = []
    limits: list[int] = []
    for one in asked:
        size = len(one.records)
        encoded += one.task.encoded(one.records)  # type: ignore[attr-defined]
        known += [0] * size if one.known_R is None else one.known_R.tolist()
        limits += [one.max_new_tokens] * size
    left = [len(tokens) - start - k for (tokens, start), k in zip(encoded, known, strict=True)]
    texts = [""] * len(encoded)
    for rows in by_length(range(len(encoded)), left, batch_size):
        run.check()
        found = asked[0].task.greedy(  # type: ignore[attr-defined]
            model, [encoded[r] for r in rows], [limits[r] for r in rows], [known[r] for r in rows]
        )
        for row, text in zip(rows, found, strict=True):
            texts[row] = text
        bar.advance(len(rows))
    ends = np.cumsum([len(one.records) for one in asked]).tolist()
    return [texts[end - len(one.records) : end] for end, one in zip(ends, asked, strict=True)]


def _written(model: nn.Module, one: Asked, run: Run, batch_size: int, bar: Progress) -> list[str]:
    texts = [""] * len(one.records)
    for rows in by_length(range(len(texts)), one.task.num_targets(one.records), batch_size):
        run.check()
        found = one.task.generate(  # type: ignore[attr-defined]
            model, one.records, rows, one.max_new_tokens
        )
        for row, text in zip(rows, found, strict=True):
            texts[row] = text
        bar.advance(len(rows))
    return texts
