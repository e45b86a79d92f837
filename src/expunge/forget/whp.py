"""Who's Harry Potter: subtract what a model that was taught the forget set would add."""

from __future__ import annotations

import copy
from typing import Annotated

from pydantic import Field
from torch import nn

from expunge.core.config import config
from expunge.engine.loop import Stream
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope
from expunge.forget.method import Sight, method
from expunge.train.supervised import likelihood


@config
class WHPConfig:
    """Settings of Who's Harry Potter."""

    alpha: Annotated[float, Field(ge=0)] = 1.0
    """How much is subtracted (α); MUSE chooses among 1 to 256."""
    scope: Scope = Scope()
    """Which weights of the reinforced model may move."""
    schedule: Schedule = Schedule(epochs=10, lr=1e-5)
    """Settings of the loop that reinforces."""


@method(
    "whp",
    kinds={"causal_lm"},
    needs={"forget", "labels"},
    source="Who's Harry Potter (Eldan & Russinovich, 2023); MUSE (Shi et al., 2025)",
    evidence="output-suppressed",
)
def whp(model: nn.Module, sight: Sight, config: WHPConfig) -> nn.Module:
    """Lower the logits that rise when the model is taught the forget set even more.

    ``z = z_b - α relu(z_r - z_b)`` with z_b the model's logits and z_r those of a copy trained
    further on the forget set. The model's weights stay as they are, and both are kept.

    Source: Eldan & Russinovich, 2023, eq. 1; MUSE (Shi et al., 2025), section 3.
    Needs: forget records with labels.
    Units: nats per target position (training).
    When to use: a baseline for suppression at inference time; it needs both models to run.
    Cost: one forward and backward pass over forget records; twice the inference and the memory.
    Differs from the official code: the paper also rewrites anchor terms and trains on the result;
        this is the form that benchmarks use.
    """
    from expunge.engine.composites.logit_difference import LogitDifference

    reinforced = sight.fit(
        copy.deepcopy(model),
        {"forget": Stream(sight.forget)},
        [likelihood(sight.task, "forget")],
        config,
        guarded=False,
    )
    return LogitDifference(model, reinforced, alpha=config.alpha, rule="offset")
