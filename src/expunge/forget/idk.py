"""Refusals in place of forgotten answers (IDK, preference optimisation of TOFU)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import nn

from expunge.core.config import config
from expunge.data.neutral import Neutral
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope
from expunge.forget.method import Need, Sight, method
from expunge.forget.retain_terms import RetainTerm, retain_needs, retain_streams, retain_terms
from expunge.train.supervised import likelihood


@config
class IdkConfig:
    """Settings of refusal training."""

    answers: Neutral = Neutral()
    """What the model learns to say."""
    retain: RetainTerm = "nll"
    """Retain term: ``none``, ``nll`` or ``kl``."""
    gamma: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the forget term (γ)."""
    alpha: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the retain term (α)."""
    scope: Scope = Scope()
    """Which weights may move."""
    schedule: Schedule = Schedule(epochs=10, lr=1e-5, warmup_epochs=1)
    """Settings of the loop."""


def _needs(config: IdkConfig) -> set[Need]:
    return {"forget", "neutral", *retain_needs(config.retain)}


@method("idk", kinds={"causal_lm"}, needs=_needs, source="TOFU (Maini et al., 2024), section 4")
def idk(model: nn.Module, sight: Sight, config: IdkConfig) -> nn.Module:
    """Teach refusals for the forget prompts while holding the retain set.

    Minimises ``L = γ CE(forget prompts, y_idk) + α R(retain)`` with y_idk a random refusal, drawn
    anew for each record and epoch. The forgotten answers themselves are never read.

    Source: TOFU (Maini et al., 2024), section 4, Preference Optimization.
    Needs: forget prompts, neutral answers; retain records.
    Units: nats per target position.
    When to use: a polite refusal is wanted, and prompts like the forgotten ones may be refused too.
    Cost: one forward and backward pass over forget and retain records.
    Differs from the official code: refusals and retained answers have a mean of their own; the
        official code takes one mean over both, in which long answers dominate.
    """
    streams = {"neutral": sight.neutral(config.answers), **retain_streams(config.retain, sight)}
    terms = [
        likelihood(sight.task, "neutral", config.gamma),
        *retain_terms(config.retain, config.alpha, sight),
    ]
    return sight.fit(model, streams, terms, config)
