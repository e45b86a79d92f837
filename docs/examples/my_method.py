"""Unlikelihood: make every forget target improbable, and train on the retain set."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from expunge.core.config import config
from expunge.engine.loop import Stream, Term
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope
from expunge.engine.task import Batch
from expunge.forget.method import Sight, method
from expunge.train.supervised import likelihood


@config
class UnlikelihoodConfig:
    """Settings of unlikelihood."""

    alpha: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the retain term (α)."""
    scope: Scope = Scope()
    """Which weights may move."""
    schedule: Schedule = Schedule(epochs=10, lr=1e-5, warmup_epochs=1)
    """Settings of the loop."""


@method(
    "unlikelihood",
    kinds={"causal_lm", "classifier"},
    needs={"forget", "retain", "labels"},
    source="Neural Text Generation with Unlikelihood Training (Welleck et al., 2020)",
    maturity="experimental",
)
def unlikelihood(model: nn.Module, sight: Sight, config: UnlikelihoodConfig) -> nn.Module:
    """Lower the probability of every forget target while holding the retain set.

    Minimises ``L = -mean log(1 - p_θ(y)) + α CE(retain)``. The first term is bounded below by 0,
    so that it fades once a target is improbable.

    Source: Welleck et al., 2020, eq. 4, with the forget targets as negative candidates.
    Needs: forget and retain records with labels.
    Units: nats per target position.
    When to use: an example; ceu is the same loss with a setting more.
    Cost: one forward and backward pass over forget and retain records.
    Differs from the official code: the negative candidates are the forget targets, not repeated
        tokens.
    """

    def forget_loss(model: nn.Module, batch: Batch) -> Tensor:
        predictions = sight.task.predict(model, batch)
        logits_NV = predictions.logits_NV
        others_NV = logits_NV.scatter(1, predictions.targets_N[:, None], -torch.inf)
        # log(1 - p) is the share of all other symbols; 1 - p itself would round to 0.
        log_rest_N = others_NV.logsumexp(dim=1) - logits_NV.logsumexp(dim=1)
        return predictions.sum_rows(-log_rest_N)

    streams = {"forget": Stream(sight.forget), "retain": Stream(sight.retain)}
    terms = [
        Term("forget", forget_loss, per="target"),
        likelihood(sight.task, "retain", config.alpha),
    ]
    return sight.fit(model, streams, terms, config)
