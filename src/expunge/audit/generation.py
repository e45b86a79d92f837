"""Greedy answers, generated once per set of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from torch import nn

from expunge.core.errors import UnsupportedModelError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.modes import evaluating
from expunge.engine.task import Task


@runtime_checkable
class Generates(Protocol):
    """A task whose models write answers."""

    def generate(
        self, model: nn.Module, records: Records, rows: Sequence[int], max_new_tokens: int
    ) -> list[str]:
        """Return the greedy answers to the prompts of the given rows."""


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

    Records with answers of similar length share a batch, since their answers end together.

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
    if not isinstance(task, Generates):
        raise UnsupportedModelError(
            f"a {task.kind!r} model writes no answers; use a language model"
        )
    answers_R = np.array(task.num_targets(records))
    order = np.lexsort((np.array(task.lengths(records)) - answers_R, answers_R))
    answers = [""] * len(records)
    model.to(run.device)
    with evaluating(model), run.progress("answering", len(records)) as bar:
        for start in range(0, len(order), batch_size):
            run.check()
            rows = order[start : start + batch_size].tolist()
            for row, text in zip(
                rows, task.generate(model, records, rows, max_new_tokens), strict=True
            ):
                answers[row] = text
            bar.advance(len(rows))
    return answers
