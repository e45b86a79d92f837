"""SimNPO: NPO without a reference model, on the likelihood per token."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from expunge.core.config import config
from expunge.engine.loop import Stream, Term
from expunge.engine.losses import simnpo as simnpo_loss
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope
from expunge.engine.task import Batch
from expunge.forget.method import Need, Sight, method
from expunge.forget.retain_terms import RetainTerm, retain_needs, retain_streams, retain_terms


@config
class SimNPOConfig:
    """Settings of SimNPO."""

    beta: Annotated[float, Field(gt=0)] = 4.5
    """Inverse temperature (β), on a mean over target positions."""
    delta: float = 0.0
    """Margin (δ) in nats per target position."""
    retain: RetainTerm = "nll"
    """Retain term: ``none``, ``nll`` or ``kl``."""
    gamma: Annotated[float, Field(ge=0)] = 0.125
    """Weight of the forget term (γ)."""
    alpha: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the retain term (α)."""
    scope: Scope = Scope()
    """Which weights may move."""
    schedule: Schedule = Schedule(epochs=10, lr=1e-5, warmup_epochs=1)
    """Settings of the loop."""


def _needs(config: SimNPOConfig) -> set[Need]:
    return {"forget", "labels", *retain_needs(config.retain)}


@method(
    "simnpo",
    kinds={"causal_lm", "classifier"},
    needs=_needs,
    source="SimNPO (Fan et al., 2024)",
)
def simnpo(model: nn.Module, sight: Sight, config: SimNPOConfig) -> nn.Module:
    """Push the likelihood per token down until it is low, without a reference.

    Minimises ``L = γ (2/β) mean_i log(1 + e^{-β (s_i/n_i - δ)}) + α R(retain)`` with s the negative
    log-likelihood of the n target positions of a record.

    Source: SimNPO (Fan et al., 2024), eq. 4.
    Needs: forget records with labels; retain records.
    Units: nats per target position.
    When to use: as npo, where no reference can be scored or answers differ much in length.
    Cost: one forward and backward pass over forget and retain records.
    Differs from the official code: none known; the version of MUSE's repository used raw logits.
    """

    def forget_loss(model: nn.Module, batch: Batch) -> Tensor:
        nll_B = sight.task.predict(model, batch).nll_B()
        return simnpo_loss(nll_B, batch.counts_B, config.beta, config.delta)

    streams = {"forget": Stream(sight.forget), **retain_streams(config.retain, sight)}
    terms = [
        Term("forget", forget_loss, config.gamma),
        *retain_terms(config.retain, config.alpha, sight),
    ]
    return sight.fit(model, streams, terms, config)
