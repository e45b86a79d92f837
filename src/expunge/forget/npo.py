"""Negative preference optimisation: ascent that fades once a record is forgotten."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from expunge.core.config import config
from expunge.engine.loop import Stream, Term
from expunge.engine.losses import npo as npo_loss
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope
from expunge.engine.task import Batch
from expunge.forget.method import Need, Sight, method
from expunge.forget.retain_terms import RetainTerm, retain_needs, retain_streams, retain_terms


@config
class NPOConfig:
    """Settings of NPO."""

    beta: Annotated[float, Field(gt=0)] = 0.1
    """Inverse temperature (β). It scales a sum over target positions: short answers want more."""
    retain: RetainTerm = "nll"
    """Retain term: ``none``, ``nll`` or ``kl``."""
    gamma: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the forget term (c_npo)."""
    alpha: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the retain term (c_rt or c_kl)."""
    scope: Scope = Scope()
    """Which weights may move."""
    schedule: Schedule = Schedule(epochs=10, lr=1e-5, warmup_epochs=1, decay="linear")
    """Settings of the loop."""


def _needs(config: NPOConfig) -> set[Need]:
    return {"forget", "labels", "reference", *retain_needs(config.retain)}


@method(
    "npo",
    kinds={"causal_lm", "classifier"},
    needs=_needs,
    source="NPO (Zhang et al., 2024)",
)
def npo(model: nn.Module, sight: Sight, config: NPOConfig) -> nn.Module:
    """Push each forget record below its likelihood under the original model, then let go.

    Minimises ``L = γ (2/β) mean_i log(1 + (π_θ/π_ref)^β) + α R(retain)``. The gradient of record i
    has weight ``W_i = 2 σ(-β (s_i - s_i^ref))``, which goes to 0 once the record is forgotten.

    Source: NPO (Zhang et al., 2024), eq. 3 and section 5 (retain terms).
    Needs: forget records with labels, their likelihoods under the original model (computed once,
        no second model); retain records, and the reference model for ``kl``.
    Units: nats, summed over the target positions of a record.
    When to use: the first choice when retain records are at hand, on any kind of model.
    Cost: one forward and backward pass over forget and retain records, and one scoring pass over
        the forget records before the first step.
    Differs from the official code: the reference is scored once in eval mode instead of at every
        step; KL runs over target positions only.
    """
    reference = sight.reference

    def forget_loss(model: nn.Module, batch: Batch) -> Tensor:
        nll_B = sight.task.predict(model, batch).nll_B()
        return npo_loss(nll_B, reference.of(batch.ids, nll_B), config.beta)

    streams = {"forget": Stream(sight.forget), **retain_streams(config.retain, sight)}
    terms = [
        Term("forget", forget_loss, config.gamma),
        *retain_terms(config.retain, config.alpha, sight),
    ]
    return sight.fit(model, streams, terms, config)
