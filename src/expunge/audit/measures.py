"""Measures: numbers of each record beside its likelihood, taken while the model is at hand.

Only numbers are kept, never the text that they were taken of. A measure of a model may take a row
of numbers of each record, such as the probability of every class, as an array (R, D).
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import nn

from expunge.core.errors import UnsupportedModelError
from expunge.core.records import Records
from expunge.core.registry import Registry
from expunge.core.run import Run
from expunge.engine.task import Task

OfText = Callable[[Sequence[str], Sequence[str]], np.ndarray]
"""Takes generated and true answers, and returns one number per record."""
OfModel = Callable[[nn.Module, Task, Records, Run], np.ndarray]
"""Takes model, task and records, and returns one number per record, or a row of them."""


@dataclasses.dataclass(frozen=True)
class MeasureInfo:
    """A registered measure: of generated text, or of the model; exactly one of the two."""

    of_text: OfText | None = None
    of_model: OfModel | None = None


measures: Registry[MeasureInfo] = Registry("measures", "expunge.audit")


def of_text(name: str) -> Callable[[OfText], OfText]:
    """Register a measure of generated answers; a reading that asks for it must generate some."""

    def file(function: OfText) -> OfText:
        measures.register(name)(MeasureInfo(of_text=function))
        return function

    return file


def of_model(name: str) -> Callable[[OfModel], OfModel]:
    """Register a measure of model and records."""

    def file(function: OfModel) -> OfModel:
        measures.register(name)(MeasureInfo(of_model=function))
        return function

    return file


@of_text("rouge_l")
def rouge_l_recall(answers: Sequence[str], truths: Sequence[str]) -> np.ndarray:
    """Return the ROUGE-L recall of each answer: the share of the truth's words it has in order.

    Args:
        answers: What the model wrote.
        truths: The true answers.

    Source: ROUGE (Lin, 2004), section 3, with Porter stemming, as TOFU measures it.
    """
    return np.array([score.recall for score in _rouge(answers, truths, stem=True)])


@of_text("rouge_l_f")
def rouge_l_f(answers: Sequence[str], truths: Sequence[str]) -> np.ndarray:
    """Return the ROUGE-L F-measure of each answer, without stemming.

    Args:
        answers: What the model wrote.
        truths: The true answers.

    Source: ROUGE (Lin, 2004), section 3, with β = 1, as MUSE measures it.
    """
    return np.array([score.fmeasure for score in _rouge(answers, truths, stem=False)])


@of_model("zlib")
def zlib_bytes(model: nn.Module, task: Task, records: Records, run: Run) -> np.ndarray:
    """Return the length of each record's scored text after compression, in bytes.

    Source: Carlini et al. (2021), section 5.2.

    Raises:
        UnsupportedModelError: The records are not text.
    """
    del model, run
    texts = texts_of(task, records)
    return np.array([float(len(zlib.compress(text.encode("utf-8")))) for text in texts])


def texts_of(task: Task, records: Records) -> list[str]:
    """Return the text of every record's answer.

    Raises:
        UnsupportedModelError: The task's records are not text.
    """
    find: Any = getattr(task, "answers", None)
    if find is None:
        raise UnsupportedModelError(f"records of a {task.kind!r} have no text; leave this out")
    return list(find(records))


def _rouge(answers: Sequence[str], truths: Sequence[str], *, stem: bool) -> list[Any]:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=stem)
    return [
        scorer.score(truth, answer)["rougeL"] for answer, truth in zip(answers, truths, strict=True)
    ]
