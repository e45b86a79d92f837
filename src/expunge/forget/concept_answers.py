"""The text side of ``concept``: find the words that carry an answer, and mask them.

Shape legend: T tokens of an answer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Protocol, runtime_checkable

from pydantic import Field
from torch import nn

from expunge.core.config import config
from expunge.core.errors import DataError, UnsupportedModelError, listing
from expunge.core.records import Records
from expunge.data.dataset import require_columns
from expunge.engine.decoding import Encoded
from expunge.engine.modes import evaluating
from expunge.engine.task import Task
from expunge.forget.attributions import (
    Baseline,
    answer_attributions,
    require_captum,
    widened,
)
from expunge.forget.concept_words import masked, pieces_of, ranked_words, word_shares
from expunge.forget.method import Given, Sight

_AT_ONCE = 64  # answers that are written together


@config
class WordSettings:
    """How the words that carry an answer are found and masked."""

    count: Annotated[int, Field(ge=1)] = 5
    """Most words of an answer that are masked (k); stop-words never are."""
    entity: str | None = None
    """Column that names whom a record is about: its words are ranked over all answers about the
    same, and names are masked too. When absent each record stands for itself."""
    mask: Annotated[str, Field(min_length=1)] = "***"
    """What stands in place of a masked word."""
    steps: Annotated[int, Field(ge=2)] = 32
    """Points between baseline and answer at which gradients are taken (S)."""
    baseline: Baseline = "pad"
    """What an answer's embeddings are compared with: ``zero``, or that of the padding token. Where
    a model normalises its embeddings, gradients near zero are steep and attributions do not add up
    (a small Llama: 12 to 17 nats off, against 1 to 2 with ``pad``)."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 64
    """Longest answer of the model's own, in tokens."""


@runtime_checkable
class Speaker(Protocol):
    """What is asked of a task beside the usual; see ``CausalLM``."""

    tokenizer: Any

    def answered(self, records: Records, answers: Sequence[str]) -> Records:
        """Return the records with other answers."""

    def encoded(self, records: Records) -> list[Encoded]:
        """Return tokens and the index of the first answer token of every record."""

    def generate(
        self, model: nn.Module, records: Records, rows: Sequence[int], max_new_tokens: int
    ) -> list[str]:
        """Return the answers to the prompts of the given rows."""


@dataclasses.dataclass(frozen=True)
class Masking:
    """The forget set under masked answers of the model's own.

    Attributes:
        records: The records as they are learned.
        ranked: Words of each record's entity, the foremost first. They tell what is forgotten.
        places: How many places of each answer were masked.
        errors: By how much each answer's attributions are off their sum, in nats.
    """

    records: Records
    ranked: tuple[tuple[str, ...], ...]
    places: tuple[int, ...]
    errors: tuple[float, ...]


def check_answers(given: Given, words: WordSettings) -> None:
    """Refuse what cannot work before any work; see ``Raises`` of ``concept``."""
    require_speaker(given.task)
    require_captum("concept on a language model")
    if words.entity is not None:
        require_columns(given.forget, [words.entity], "the forget set")


def require_speaker(task: Task) -> Speaker:
    """Return the task when it writes answers.

    Raises:
        UnsupportedModelError: It does not.
    """
    if not isinstance(task, Speaker):
        raise UnsupportedModelError(
            f"concept needs a classifier or a model that writes answers, not a {task.kind!r}"
        )
    return task


def mask_answers(model: nn.Module, sight: Sight, words: WordSettings) -> Masking:
    """Let the model answer the forget set, and mask the words its answers hang on.

    Args:
        model: The model before unlearning; only its device may change.
        sight: What the method may see.
        words: Settings.

    Raises:
        DataError: The model writes nothing for a record, or nothing of its answer was masked.
    """
    task, forget = require_speaker(sight.task), sight.forget
    model.to(sight.run.device)
    answers = _own_answers(model, sight, words.max_new_tokens)
    told = task.answered(forget, answers)
    found = _attributed(model, sight, told, words)
    entities = list(forget.ids if words.entity is None else map(str, forget[words.entity]))
    groups: dict[str, list[dict[str, float]]] = {}
    for entity, (shares, _) in zip(entities, found, strict=True):
        groups.setdefault(entity, []).append(shares)
    ranked = {entity: ranked_words(group) for entity, group in groups.items()}
    taught, places = [], []
    for entity, answer in zip(entities, answers, strict=True):
        name = "" if words.entity is None else entity
        text, count = masked(answer, ranked[entity], words.count, words.mask, name)
        taught.append(text)
        places.append(count)
    bare = [i for i, count in zip(forget.ids, places, strict=True) if not count]
    if bare:
        raise DataError(
            f"nothing was masked in the model's own answers to {len(bare)} records "
            f"({listing(bare)}): no word of them has a positive attribution, or all are "
            "stop-words. Name a column forget.words.entity, or drop these records"
        )
    return Masking(
        task.answered(forget, taught),
        tuple(tuple(ranked[entity]) for entity in entities),
        tuple(places),
        tuple(error for _, error in found),
    )


def report_masking(sight: Sight, masking: Masking) -> None:
    """Write to the run's events what was masked: ids and numbers, never words."""
    sight.run.emit(
        "masking",
        columns=["record", "places", "completeness_error"],
        rows=[
            list(row)
            for row in zip(masking.records.ids, masking.places, masking.errors, strict=True)
        ],
    )


def _own_answers(model: nn.Module, sight: Sight, longest: int) -> list[str]:
    task, forget, run = require_speaker(sight.task), sight.forget, sight.run
    answers: list[str] = []
    with evaluating(model), run.progress("reading own answers", len(forget)) as bar:
        for start in range(0, len(forget), _AT_ONCE):
            run.check()
            rows = range(start, min(start + _AT_ONCE, len(forget)))
            answers += task.generate(model, forget, rows, longest)
            bar.advance(len(rows))
    empty = [i for i, answer in zip(forget.ids, answers, strict=True) if not answer.strip()]
    if empty:
        raise DataError(
            f"the model writes nothing for {len(empty)} records ({listing(empty)}), so that there "
            "is no answer to mask; drop these records"
        )
    return answers


def _attributed(
    model: nn.Module, sight: Sight, told: Records, words: WordSettings
) -> list[tuple[dict[str, float], float]]:
    """Return each answer's shares by word, and by how much its attributions are off their sum."""
    task, run = require_speaker(sight.task), sight.run
    tokenizer, precise, found = task.tokenizer, widened(model), []
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    with run.progress("attributing answers", len(told)) as bar:
        for row, (tokens, start) in enumerate(task.encoded(told)):
            run.check()
            batch = sight.task.batch(told, [row]).to(run.device)
            one = answer_attributions(
                precise, sight.task, batch, words.steps, words.baseline, int(pad)
            )
            pieces = pieces_of(tokenizer, tokens[start:])
            found.append((word_shares(pieces, one.scores_T.tolist()), one.error))
            bar.advance()
    return found
