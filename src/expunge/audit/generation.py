"""Greedy answers, generated once per set of prompts, and ROUGE-L recall against the true ones."""

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

    Prompts of similar length share a batch.

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
    prompts_R = np.subtract(task.lengths(records), task.num_targets(records))
    order = np.argsort(prompts_R, kind="stable")
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


def rouge_l_recall(answers: Sequence[str], truths: Sequence[str]) -> np.ndarray:
    """Return the ROUGE-L recall of each answer: the share of the truth's words it has in order.

    Args:
        answers: What the model wrote.
        truths: The true answers.

    Source: ROUGE (Lin, 2004), section 3, with Porter stemming, as TOFU measures it.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return np.array(
        [
            scorer.score(truth, answer)["rougeL"].recall
            for answer, truth in zip(answers, truths, strict=True)
        ]
    )
