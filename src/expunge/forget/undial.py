"""UNDIAL: distil from the original model with the forgotten tokens turned down."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from expunge.core.config import config
from expunge.engine.loop import Stream, Term
from expunge.engine.losses import lowered_teacher
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope
from expunge.engine.task import Batch
from expunge.forget.method import Need, Sight, method
from expunge.forget.retain_terms import RetainTerm, retain_needs, retain_streams, retain_terms


@config
class UndialConfig:
    """Settings of UNDIAL."""

    beta: Annotated[float, Field(gt=0)] = 10.0
    """By how much the teacher's logit of a forgotten token is lowered (β; the paper tries 3 to
    30)."""
    retain: RetainTerm = "none"
    """Retain term: ``none``, ``nll`` or ``kl``."""
    gamma: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the forget term (γ)."""
    alpha: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the retain term (α)."""
    scope: Scope = Scope()
    """Which weights may move; the paper trains adapters of rank 8 (``scope.lora``)."""
    schedule: Schedule = Schedule(epochs=10, lr=1e-4, warmup_epochs=1)
    """Settings of the loop."""


def _needs(config: UndialConfig) -> set[Need]:
    return {"forget", "labels", "reference_model", *retain_needs(config.retain)}


@method(
    "undial",
    kinds={"causal_lm", "classifier"},
    needs=_needs,
    source="UNDIAL (Dong et al., 2025)",
)
def undial(model: nn.Module, sight: Sight, config: UndialConfig) -> nn.Module:
    """Learn from the original model as it would speak with the forgotten tokens made unlikely.

    Minimises ``L = γ mean -Σ_v q_v log p_θ(v) + α R(retain)`` over target positions, with
    ``q = softmax(z_ref - β onehot(y))``. The target never changes, so that the loss has a fixed
    point and nothing runs away.

    Source: UNDIAL (Dong et al., 2025), eq. 3.
    Needs: forget records with labels; the original model's distributions (a second model).
    Units: nats per target position.
    When to use: no retain records are at hand and training must be stable whatever its length.
    Cost: one forward and backward pass over forget records, and a forward pass of the original.
    Differs from the official code: prompt and padding positions do not enter, and ignored labels
        never index the vocabulary; the public implementation does both.
    """
    teacher_model = sight.reference_model

    def forget_loss(model: nn.Module, batch: Batch) -> Tensor:
        with torch.no_grad():
            teacher = sight.task.predict(teacher_model, batch)
        return lowered_teacher(teacher, sight.task.predict(model, batch), config.beta)

    streams = {"forget": Stream(sight.forget), **retain_streams(config.retain, sight)}
    terms = [
        Term("forget", forget_loss, config.gamma, "target"),
        *retain_terms(config.retain, config.alpha, sight),
    ]
    return sight.fit(model, streams, terms, config)
