"""SatImp: ascent weighted by saturation and importance of each token."""

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
class SatImpConfig:
    """Settings of SatImp."""

    beta_saturation: Annotated[float, Field(ge=0)] = 5.0
    """Power of the token's probability (β1): tokens that are forgotten already get no push."""
    beta_importance: Annotated[float, Field(ge=0)] = 1.0
    """Power of one minus the probability (β2): tokens that are certain get little push."""
    retain: RetainTerm = "nll"
    """Retain term: ``none``, ``nll`` or ``kl``."""
    gamma: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the forget term (γ)."""
    alpha: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the retain term (α)."""
    scope: Scope = Scope()
    """Which weights may move."""
    schedule: Schedule = Schedule(epochs=5, lr=1e-5, warmup_epochs=1)
    """Settings of the loop."""


def _needs(config: SatImpConfig) -> set[Need]:
    return {"forget", "labels", *retain_needs(config.retain)}


@method(
    "satimp",
    kinds={"causal_lm", "classifier"},
    needs=_needs,
    source="SatImp (Yang et al., 2025)",
)
def satimp(model: nn.Module, sight: Sight, config: SatImpConfig) -> nn.Module:
    """Climb the loss of tokens that are neither forgotten already nor wholly certain.

    Minimises ``L = -γ mean (p_t^β1 (1 - p_t)^β2 c_t) + α R(retain)`` over target positions; the
    weight is not differentiated.

    Source: SatImp (Yang et al., 2025), eq. 8.
    Needs: forget records with labels; retain records.
    Units: nats per target position.
    When to use: as wga, where tokens that everybody would predict should be left alone. A model
        that is certain of every forgotten token hardly moves: (1 - p) is then near 0.
    Cost: one forward and backward pass over forget and retain records.
    Differs from the official code: γ = 1 and α = 0.1 as its README says; its shipped settings have
        them the other way round.
    """

    def weight(p_N: Tensor) -> Tensor:
        return p_N**config.beta_saturation * (1 - p_N) ** config.beta_importance

    def forget_loss(model: nn.Module, batch: Batch) -> Tensor:
        return weighted_ascent(sight.task.predict(model, batch), weight)

    streams = {"forget": Stream(sight.forget), **retain_streams(config.retain, sight)}
    terms = [
        Term("forget", forget_loss, config.gamma, "target"),
        *retain_terms(config.retain, config.alpha, sight),
    ]
    return sight.fit(model, streams, terms, config)
