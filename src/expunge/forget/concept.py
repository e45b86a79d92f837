"""Concepts: find what a class or an entity is known by, spoil it, and learn the spoiled records."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from pydantic import Field
from torch import nn

from expunge.core.config import config
from expunge.engine.loop import Stream
from expunge.engine.representation import split
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Lora, Scope
from expunge.forget.concept_answers import (
    WordSettings,
    check_answers,
    mask_answers,
    report_masking,
)
from expunge.forget.concept_bank import BankSettings
from expunge.forget.concept_patches import Labels, PatchSettings
from expunge.forget.concept_pictures import (
    check_pictures,
    poison_pictures,
    report_concepts,
    report_confusion,
)
from expunge.forget.method import Given, Sight, method
from expunge.train.supervised import likelihood

_TEXT = "causal_lm"


@dataclasses.dataclass(frozen=True)
class _Loop:
    """What the loop reads of the settings once the scope is known."""

    scope: Scope
    schedule: Schedule


@config
class ConceptConfig:
    """Settings of concept inference and poisoning."""

    target: Annotated[int, Field(ge=0)] | None = None
    """Class that the forget set must be of; when absent each class in it goes its own way.
    Pictures only."""
    donor: Annotated[int, Field(ge=0)] | None = None
    """Class that stands in; when absent the one whose concepts are least like the target's.
    Pictures only."""
    labels: Labels = "targeted"
    """Label of poisoned records: ``targeted``: the donor's. ``random``: any but their own, which
    is unstable. ``keep``: their own, which forgets nothing. Pictures only."""
    top: Annotated[int, Field(ge=1)] = 3
    """Concepts of a class that are looked for in its pictures (M); the paper takes 3 to 5."""
    bank: BankSettings = BankSettings()
    """Concepts of pictures."""
    patch: PatchSettings = PatchSettings()
    """What is pasted over pictures; ``none`` is the arm to compare with."""
    words: WordSettings = WordSettings()
    """How words of answers are found and masked; language models only."""
    scope: Scope | None = None
    """Which weights may move; when absent the last linear layer of a classifier, and adapters of
    rank 8 of a language model."""
    schedule: Schedule = Schedule(
        epochs=20, batch_size=32, order="mixed", lr=2e-4, weight_decay=0.0
    )
    """Settings of the loop; ``mixed`` draws from forget and retain set together."""


def _check(model: nn.Module, given: Given, config: ConceptConfig) -> None:
    if given.task.kind == _TEXT:
        check_answers(given, config.words)
    else:
        check_pictures(model, given, config)


@method(
    "concept",
    kinds={"classifier", "causal_lm"},
    needs={"forget", "retain", "labels"},
    source="Concept inference and data poisoning (Chang et al., 2024)",
    check=_check,
)
def concept(model: nn.Module, sight: Sight, config: ConceptConfig) -> nn.Module:
    """Spoil what a class or an entity is known by, and learn the spoiled records.

    Minimises ``CE(spoiled forget ∪ retain)``. Pictures: concept vectors and a post-hoc concept
    bottleneck say what each class is told by; the place of its concepts is covered with the
    concepts of a donor class, and the donor's label is learned. Text: integrated gradients say
    which words of the model's own answer carry it; they are masked, and the rest is learned.
    Where patches and labels went stands in the run's events as ids and numbers.

    Source: Chang et al. (2024), Class Machine Unlearning for Complex Data via Concepts Inference
        and Data Poisoning, sections 4 and 5.
    Needs: forget and retain records with labels; all of the forgotten class.
    Units: nats per target position.
    When to use: a whole class of pictures must not be predicted any more, or answers about an
        entity must stay fluent. For classifiers the new label does the work: run patch.mode
        ``none`` beside it, and finetune with the same scope, which may forget as much. Only the
        last layer moves, so that the class is in the representation still: audit with relearn and
        probe. A word of an answer is found by what later words owe to it; one that ends an answer
        is not.
    Cost: training on forget and retain records (last layer or adapters); before that, for
        pictures one forward pass for each window (about 120) of each forgotten record and its
        donor; for text an answer and 32 gradients of each, in single precision.
    Differs from the official code: concepts are those of the model's own representation, not of
        CLIP, and found by occlusion; the donor is chosen by concept weights, not by hand; random
        labels are never the true one; gradients are taken at midpoints (off by 0.0085 where the
        official grid is off by 0.5645 on z1³ + z2³); batch-norm statistics stay frozen; AdamW at
        2e-4 serves both kinds (official: SGD at 1e-3 for pictures, AdamW at 2e-5 for text).
    """
    if sight.task.kind == _TEXT:
        masking = mask_answers(model, sight, config.words)
        report_masking(sight, masking)
        scope = Scope(lora=Lora()) if config.scope is None else config.scope
        return _learn(model, sight, Stream(masking.records), config, scope)
    poison = poison_pictures(model, sight, config)
    report_concepts(sight, poison, config.top)
    head = Scope(patterns=(f"{split(model).head}.*",))
    scope = head if config.scope is None else config.scope
    result = _learn(model, sight, Stream(poison.records), config, scope)
    report_confusion(result, sight, poison)
    return result


def _learn(
    model: nn.Module, sight: Sight, forget: Stream, config: ConceptConfig, scope: Scope
) -> nn.Module:
    streams = {"forget": forget, "retain": Stream(sight.retain)}
    terms = [likelihood(sight.task, name) for name in streams]
    return sight.fit(model, streams, terms, _Loop(scope, config.schedule))
