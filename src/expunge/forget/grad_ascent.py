"""Gradient ascent: the oldest baseline, kept because everybody compares with it."""

from __future__ import annotations

from torch import nn

from expunge.core.config import config
from expunge.engine.loop import Stream
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope
from expunge.forget.method import Sight, method
from expunge.train.supervised import likelihood


@config
class GradAscentConfig:
    """Settings of gradient ascent."""

    scope: Scope = Scope()
    """Which weights may move."""
    schedule: Schedule = Schedule(epochs=10, lr=1e-5, warmup_epochs=1)
    """Settings of the loop."""


@method(
    "grad_ascent",
    kinds={"causal_lm", "classifier"},
    needs={"forget", "labels"},
    source="Jang et al., 2023 (Knowledge Unlearning); TOFU (Maini et al., 2024), section 4",
)
def grad_ascent(model: nn.Module, sight: Sight, config: GradAscentConfig) -> nn.Module:
    """Climb the loss of the forget set.

    Minimises ``L = -CE(forget)``. The loss has no lower bound, so the model is destroyed sooner or
    later; the collapse guard stops it when retain records are there to watch.

    Source: Jang et al., 2023; TOFU (Maini et al., 2024), section 4.
    Needs: forget records with labels.
    Units: nats per target position.
    When to use: a baseline only; a handful of records and very few steps at most.
    Cost: one forward and backward pass over forget records.
    Differs from the official code: the mean runs over the targets of the whole step, not of each
        micro-batch.
    """
    streams = {"forget": Stream(sight.forget)}
    return sight.fit(model, streams, [likelihood(sight.task, "forget", -1.0)], config)
