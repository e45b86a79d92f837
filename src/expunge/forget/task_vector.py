"""Task vectors: learn the forget set, then go the other way."""

from __future__ import annotations

import copy
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from expunge.core.config import config
from expunge.engine.loop import Stream
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope
from expunge.forget.method import Sight, method
from expunge.train.supervised import likelihood


@config
class TaskVectorConfig:
    """Settings of task vectors."""

    alpha: Annotated[float, Field(gt=0)] = 1.0
    """How far to go back (α); MUSE chooses among 1 to 16."""
    scope: Scope = Scope()
    """Which weights may move."""
    schedule: Schedule = Schedule(epochs=10, lr=1e-5)
    """Settings of the loop that learns the forget set."""


@method(
    "task_vector",
    kinds={"causal_lm", "classifier", "regressor"},
    needs={"forget", "labels"},
    source="Task arithmetic (Ilharco et al., 2023); MUSE (Shi et al., 2025)",
)
def task_vector(model: nn.Module, sight: Sight, config: TaskVectorConfig) -> nn.Module:
    """Subtract what training on the forget set would add to the weights.

    ``θ_new = θ - α (θ_ft - θ)`` with θ_ft the model trained further by ``L = CE(forget)``.

    Source: Ilharco et al., 2023, section 3 (negation); MUSE (Shi et al., 2025), section 3.
    Needs: forget records with labels.
    Units: nats per target position (training).
    When to use: a quick baseline without retain records; expect utility to fall with α.
    Cost: one forward and backward pass over forget records, and one copy of the model.
    Differs from the official code: none known. A model that knows the forget set by heart has
        almost no gradient left, and then θ_ft says little.
    """
    taught = sight.fit(
        copy.deepcopy(model),
        {"forget": Stream(sight.forget)},
        [likelihood(sight.task, "forget")],
        config,
        guarded=False,
    )
    with torch.no_grad():
        for parameter, learned in zip(model.parameters(), taught.parameters(), strict=True):
            parameter.add_(parameter - learned, alpha=config.alpha)
    return model
