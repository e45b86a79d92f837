"""PDU: flatten the logits of what is forgotten, under a bound on the retain loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from expunge.core.config import config
from expunge.engine.loop import Numbers, Stream, Term
from expunge.engine.losses import spread
from expunge.engine.order import epoch_steps
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope
from expunge.engine.task import Batch
from expunge.forget.method import Sight, method
from expunge.train.supervised import likelihood


@config
class PDUConfig:
    """Settings of primal-dual unlearning."""

    epsilon: Annotated[float, Field(ge=0)] = 0.3
    """Bound on the retain loss (ε), in nats per target; a little above the original model's."""
    dual_step: Annotated[float, Field(ge=0)] = 5.0
    """Step size of the dual variable (η)."""
    dual_warmup_epochs: Annotated[int, Field(ge=0)] = 5
    """Epochs before the dual variable moves."""
    gamma: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the forget term (γ)."""
    alpha: Annotated[float, Field(ge=0)] = 100.0
    """Start of the dual variable, the weight of the retain term (λ_0)."""
    scope: Scope = Scope()
    """Which weights may move."""
    schedule: Schedule = Schedule(epochs=10, lr=1e-5, warmup_epochs=1)
    """Settings of the loop."""


@method(
    "pdu",
    kinds={"causal_lm", "classifier"},
    needs={"forget", "retain", "labels"},
    source="PDU (Entesari et al., 2025)",
)
def pdu(model: nn.Module, sight: Sight, config: PDUConfig) -> nn.Module:
    """Flatten the predictions on the forget set as far as a bound on the retain loss allows.

    Minimises ``L = γ mean (max_v z - mean_v z)² + λ (R - ε)`` over target positions with R the
    cross entropy of the retain set. After the warm-up, each step moves the dual variable:
    ``λ ← max(0, λ + η (R - ε))``.

    Source: PDU (Entesari et al., 2025), section 4.
    Needs: forget and retain records with labels.
    Units: nats per target position (retain), squared logits (forget).
    When to use: the largest acceptable loss on retained records is known beforehand.
    Cost: one forward and backward pass over forget and retain records.
    Differs from the official code: the mask covers the positions that predict targets (the public
        one is not shifted); λ follows the whole step's loss, not that of each micro-batch or
        process.
    """

    def forget_loss(model: nn.Module, batch: Batch) -> Tensor:
        return spread(sight.task.predict(model, batch))

    streams = {"forget": Stream(sight.forget), "retain": Stream(sight.retain)}
    schedule = config.schedule
    sizes = {name: len(stream.records) for name, stream in streams.items()}
    per_epoch = len(epoch_steps(schedule.order, sizes, schedule.batch_size, sight.run.seed, 0))
    warmup = config.dual_warmup_epochs * per_epoch

    def dual(steps: Sequence[Numbers]) -> float:
        losses = [numbers["retain"] for numbers in steps[warmup:] if "retain" in numbers]
        return dual_variable(config.alpha, losses, config.dual_step, config.epsilon)

    terms = [
        Term("forget", forget_loss, config.gamma, "target"),
        Term("retain", likelihood(sight.task, "retain").loss, dual, "target"),
    ]
    return sight.fit(model, streams, terms, config)


def dual_variable(start: float, losses: Sequence[float], step: float, bound: float) -> float:
    """Return the dual variable after a series of losses.

    Args:
        start: Its first value.
        losses: Retain losses, one per step, in nats.
        step: Step size (η).
        bound: Bound on the loss (ε), in nats.
    """
    value = start
    for loss in losses:
        value = max(0.0, value + step * (loss - bound))
    return value
