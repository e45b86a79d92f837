"""Random labelling: teach the forget set wrong, and the retain set right."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field
from torch import nn

from expunge.core.config import config
from expunge.core.errors import ConfigError
from expunge.core.records import Records
from expunge.core.streams import stream
from expunge.engine.loop import Stream, Term
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope
from expunge.forget.method import Given, Sight, method
from expunge.train.supervised import likelihood


@config
class RandomLabelConfig:
    """Settings of random labelling."""

    alpha: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the retain term (α)."""
    exclude_true_label: bool = True
    """Never draw a record's own class, as in the paper; its code draws over all classes."""
    scope: Scope = Scope()
    """Which weights may move."""
    schedule: Schedule = Schedule(
        epochs=10,
        batch_size=64,
        order="sequential",
        optimizer="sgd",
        lr=0.013,
        weight_decay=5e-4,
        freeze_norm_statistics=False,
    )
    """Settings of the loop; ``sequential`` passes over the forget set, then over the retain set (in
    the paper's code on CIFAR-10), ``mixed`` over both shuffled together (on CIFAR-100)."""


def check_labels(model: nn.Module, given: Given, config: RandomLabelConfig) -> None:
    """Refuse to draw over all classes where there are none."""
    if not config.exclude_true_label and not hasattr(given.task, "num_classes"):
        raise ConfigError(
            "forget.exclude_true_label = false draws over all classes, and a "
            f"{given.task.kind!r} has none; leave it out"
        )


@method(
    "random_label",
    kinds={"causal_lm", "classifier", "regressor"},
    needs={"forget", "retain", "labels", "neutral"},
    source="SalUn (Fan et al., 2024), baseline RL; Golatkar et al., 2020",
    check=check_labels,
)
def random_label(model: nn.Module, sight: Sight, config: RandomLabelConfig) -> nn.Module:
    """Learn random wrong labels for the forget set and true ones for the retain set (RL).

    Minimises ``CE(forget, y') + α CE(retain, y)`` with y' random, drawn anew every epoch, and
    different from y. A language model learns random refusals instead.

    Source: SalUn (Fan et al., 2024), eq. 5 without the mask.
    Needs: forget and retain records with labels; neutral answers.
    Units: nats per target position.
    When to use: classifiers; for language models idk says the same in its own words.
    Cost: one forward and backward pass over forget and retain records.
    Differs from the official code: y' is never the true label (as in the paper; the code draws
        over all classes, as ``exclude_true_label: false`` does).
    """
    streams, terms = random_labels(sight, config)
    return sight.fit(model, streams, terms, config)


def random_labels(
    sight: Sight, config: RandomLabelConfig
) -> tuple[Mapping[str, Stream], list[Term]]:
    """Return streams and terms of random labelling, for methods that change how weights move."""
    num_classes = getattr(sight.task, "num_classes", None)
    if config.exclude_true_label:
        if num_classes == 2:
            warnings.warn(
                "of two classes only one is not the true one, so that random labels are flipped "
                "labels; set forget.exclude_true_label to false to draw over both",
                stacklevel=2,
            )
        forget = dataclasses.replace(sight.neutral(), records=sight.forget)
    else:
        forget = _any_label(sight)
    streams = {"forget": forget, "retain": Stream(sight.retain)}
    terms = [likelihood(sight.task, "forget"), likelihood(sight.task, "retain", config.alpha)]
    return streams, terms


def _any_label(sight: Sight) -> Stream:
    """Return the forget records under classes drawn from all, anew every epoch."""
    records, task, seed = sight.forget, sight.task, sight.run.seed
    column, num_classes = task.labels, task.num_classes  # type: ignore[attr-defined]

    def at_epoch(epoch: int) -> Records:
        drawn = [
            int(stream(seed, "any-label", epoch, i).integers(num_classes)) for i in records.ids
        ]
        return records.replace(**{column: drawn})

    return Stream(records, at_epoch)
