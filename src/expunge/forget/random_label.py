"""Random labelling: teach the forget set wrong, and the retain set right."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from pydantic import Field
from torch import nn

from expunge.core.config import config
from expunge.engine.loop import Stream
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope
from expunge.forget.method import Sight, method
from expunge.train.supervised import likelihood


@config
class RandomLabelConfig:
    """Settings of random labelling."""

    alpha: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the retain term (α)."""
    scope: Scope = Scope()
    """Which weights may move."""
    schedule: Schedule = Schedule(
        epochs=10, batch_size=64, order="sequential", optimizer="sgd", lr=0.013, weight_decay=5e-4
    )
    """Settings of the loop; ``sequential`` passes over the forget set, then over the retain set."""


@method(
    "random_label",
    kinds={"causal_lm", "classifier", "regressor"},
    needs={"forget", "retain", "labels", "neutral"},
    source="SalUn (Fan et al., 2024), baseline RL; Golatkar et al., 2020",
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
        over all classes).
    """
    streams = {
        "forget": dataclasses.replace(sight.neutral(), records=sight.forget),
        "retain": Stream(sight.retain),
    }
    terms = [likelihood(sight.task, "forget"), likelihood(sight.task, "retain", config.alpha)]
    return sight.fit(model, streams, terms, config)
