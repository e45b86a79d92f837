"""CE-U: cross entropy to the model's own distribution without the forgotten token."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from expunge.core.config import config
from expunge.engine.loop import Stream, Term
from expunge.engine.losses import unlikelihood
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope
from expunge.engine.task import Batch
from expunge.forget.method import Need, Sight, method
from expunge.forget.retain_terms import RetainTerm, retain_needs, retain_streams, retain_terms


@config
class CEUConfig:
    """Settings of CE-U."""

    skip: Annotated[int, Field(ge=0)] = 1
    """First target positions of a record that are left alone; its last one never is."""
    retain: RetainTerm = "none"
    """Retain term: ``none``, ``nll`` or ``kl``."""
    gamma: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the forget term (γ)."""
    alpha: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the retain term (α)."""
    scope: Scope = Scope()
    """Which weights may move."""
    schedule: Schedule = Schedule(epochs=10, lr=1e-5, warmup_epochs=1)
    """Settings of the loop."""


def _needs(config: CEUConfig) -> set[Need]:
    return {"forget", "labels", *retain_needs(config.retain)}


@method("ceu", kinds={"causal_lm", "classifier"}, needs=_needs, source="CE-U (Yang, 2025)")
def ceu(model: nn.Module, sight: Sight, config: CEUConfig) -> nn.Module:
    """Move the probability of each forgotten token to what the model would say otherwise.

    Minimises ``L = γ mean -log(1 - p_θ(y)) + α R(retain)`` over target positions. Its gradient is
    that of the cross entropy to ``softmax(z with z_y = -inf)``; its value is easier to read: it
    goes to 0 as the token is forgotten.

    Source: CE-U (Yang, 2025), eq. 6.
    Needs: forget records with labels.
    Units: nats per target position.
    When to use: a bounded loss on forget records alone; with a retain term where one can be had.
    Cost: one forward and backward pass over forget records.
    Differs from the official code: the value shown is the unlikelihood; at least one position of
        each record takes part, so that single-token targets are forgotten too.
    """

    def forget_loss(model: nn.Module, batch: Batch) -> Tensor:
        return unlikelihood(sight.task.predict(model, batch), config.skip)

    def taking_part(counts: np.ndarray) -> np.ndarray:
        return counts - np.minimum(config.skip, counts - 1)

    streams = {"forget": Stream(sight.forget), **retain_streams(config.retain, sight)}
    terms = [
        Term("forget", forget_loss, config.gamma, taking_part),
        *retain_terms(config.retain, config.alpha, sight),
    ]
    return sight.fit(model, streams, terms, config)
