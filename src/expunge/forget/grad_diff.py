"""Gradient difference: ascent on the forget set, descent on the retain set."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import nn

from expunge.core.config import config
from expunge.engine.loop import Stream
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope
from expunge.forget.method import Need, Sight, method
from expunge.forget.retain_terms import RetainTerm, retain_needs, retain_streams, retain_terms
from expunge.train.supervised import likelihood


@config
class GradDiffConfig:
    """Settings of gradient difference."""

    retain: RetainTerm = "nll"
    """Retain term: ``nll`` or ``kl`` (``none`` is gradient ascent)."""
    gamma: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the forget term (γ)."""
    alpha: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the retain term (α)."""
    scope: Scope = Scope()
    """Which weights may move."""
    schedule: Schedule = Schedule(epochs=10, lr=1e-5, warmup_epochs=1)
    """Settings of the loop."""


def _needs(config: GradDiffConfig) -> set[Need]:
    return {"forget", "labels", *retain_needs(config.retain)}


@method(
    "grad_diff",
    kinds={"causal_lm", "classifier", "regressor"},
    needs=_needs,
    source="Liu et al., 2022; TOFU (Maini et al., 2024)",
)
def grad_diff(model: nn.Module, sight: Sight, config: GradDiffConfig) -> nn.Module:
    """Climb the loss of the forget set while holding the retain set.

    Minimises ``L = -γ CE(forget) + α R(retain)`` with R the cross entropy, or
    KL(reference ‖ model) at target positions.

    Source: Liu et al., 2022; TOFU (Maini et al., 2024), section 4.
    Needs: forget and retain records with labels; the reference model for ``kl``.
    Units: nats per target position.
    When to use: a baseline; short runs in which retain records hold the model together.
    Cost: one forward and backward pass over forget and retain records; ``kl`` adds a forward pass
        of the original model.
    Differs from the official code: KL is averaged over target positions only; the public
        implementations average over prompt and padding too.
    """
    streams = {"forget": Stream(sight.forget), **retain_streams(config.retain, sight)}
    terms = [
        likelihood(sight.task, "forget", -config.gamma),
        *retain_terms(config.retain, config.alpha, sight),
    ]
    return sight.fit(model, streams, terms, config)
