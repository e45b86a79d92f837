"""Weighted gradient ascent: tokens that are forgotten already get no further push."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from expunge.core.config import config
from expunge.engine.loop import Stream, Term
from expunge.engine.losses import weighted_ascent
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope
from expunge.engine.task import Batch
from expunge.forget.method import Need, Sight, method
from expunge.forget.retain_terms import RetainTerm, retain_needs, retain_streams, retain_terms


@config
class WGAConfig:
    """Settings of weighted gradient ascent."""

    beta: Annotated[float, Field(ge=0)] = 1.0
    """Power of the token's probability that weighs its ascent (β); 0 is gradient difference."""
    retain: RetainTerm = "nll"
    """Retain term: ``none``, ``nll`` or ``kl``."""
    gamma: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the forget term (γ)."""
    alpha: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the retain term (α)."""
    scope: Scope = Scope()
    """Which weights may move."""
    schedule: Schedule = Schedule(epochs=5, lr=1e-5, warmup_epochs=1)
    """Settings of the loop."""


def _needs(config: WGAConfig) -> set[Need]:
    return {"forget", "labels", *retain_needs(config.retain)}


@method(
    "wga",
    kinds={"causal_lm", "classifier"},
    needs=_needs,
    source="WGA (Wang et al., 2025, Rethinking LLM Unlearning Objectives)",
)
def wga(model: nn.Module, sight: Sight, config: WGAConfig) -> nn.Module:
    """Climb the loss of each forgotten token in proportion to its remaining probability.

    Minimises ``L = -γ mean (p_t^β c_t) + α R(retain)`` over target positions, with c the cross
    entropy and the weight ``p^β`` not differentiated.

    Source: Wang et al., 2025, section 5 (WGA).
    Needs: forget records with labels; retain records.
    Units: nats per target position.
    When to use: as grad_diff, where ascent must fade token by token.
    Cost: one forward and backward pass over forget and retain records.
    Differs from the official code: the mean runs over the targets of the whole step.
    """

    def forget_loss(model: nn.Module, batch: Batch) -> Tensor:
        return weighted_ascent(sight.task.predict(model, batch), lambda p_N: p_N**config.beta)

    streams = {"forget": Stream(sight.forget), **retain_streams(config.retain, sight)}
    terms = [
        Term("forget", forget_loss, config.gamma, "target"),
        *retain_terms(config.retain, config.alpha, sight),
    ]
    return sight.fit(model, streams, terms, config)
