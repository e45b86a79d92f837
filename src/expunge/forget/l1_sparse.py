"""l1-sparse: fine-tuning on what is retained while all weights are drawn towards zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from expunge.core.config import config
from expunge.core.errors import ConfigError
from expunge.engine.loop import Numbers, Stream, Term
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope
from expunge.engine.task import Batch
from expunge.engine.workers import workers
from expunge.forget.method import Sight, method
from expunge.train.supervised import likelihood


@config
class L1SparseConfig:
    """Settings of l1-sparse."""

    alpha: Annotated[float, Field(ge=0)] = 1e-4
    """Weight of the penalty in the first epoch (α); it falls linearly, by α / epochs an epoch. The
    paper searches 1e-6 to 1e-4."""
    scope: Scope = Scope()
    """Which weights may move, and are penalised."""
    schedule: Schedule = Schedule(
        epochs=10,
        batch_size=64,
        optimizer="sgd",
        lr=0.03,
        weight_decay=5e-4,
        freeze_norm_statistics=False,
    )
    """Settings of the loop. The learning rate was chosen on 2,000 small pictures of Fashion-MNIST:
    average gap to retraining 7.1 points, 8.2 at 0.01 and 6.0 at 0.1
    (``benchmarks/baselines.py``)."""


@method(
    "l1_sparse",
    kinds={"causal_lm", "classifier", "regressor"},
    needs={"retain", "labels"},
    source="Model Sparsity Can Simplify Machine Unlearning (Jia et al., 2023)",
)
def l1_sparse(model: nn.Module, sight: Sight, config: L1SparseConfig) -> nn.Module:
    """Train on the retain set with an l1 penalty that fades.

    Minimises ``L = CE(retain) + α_e Σ|θ|`` with ``α_e = α (1 - e/E)`` in epoch e of E, counted from
    0, over all parameters that may move, biases and batch norm included.

    Source: Jia et al., 2023, eq. 4 (l1-sparse MU); SalUn (Fan et al., 2024), baseline.
    Needs: retain records with labels.
    Units: nats per target position, and the penalty's own; a regressor's own loss.
    When to use: retained records are many and weights may become small; forgets more than finetune.
    Cost: as finetune, and a sum over all weights in each step.
    Differs from the official code: none known.
    """
    if (sharding := workers().sharding) != "none":
        raise ConfigError(
            f"l1_sparse sums over whole weights, and {sharding} divides them among processes; "
            "launch without it"
        )
    records = sight.retain
    steps_per_epoch = math.ceil(len(records) / config.schedule.batch_size)
    weight = faded(config.alpha, config.schedule.epochs, steps_per_epoch)
    terms = [
        likelihood(sight.task, "retain"),
        Term("retain", _size, weight, "record", name="l1"),
    ]
    return sight.fit(model, {"retain": Stream(records)}, terms, config)


def faded(alpha: float, epochs: int, steps_per_epoch: int) -> Callable[[Sequence[Numbers]], float]:
    """Return the weight of the penalty, α (1 - e/E), as a function of the steps so far.

    Args:
        alpha: Its weight in the first epoch.
        epochs: E.
        steps_per_epoch: Steps of one epoch.
    """
    return lambda steps: alpha * (1 - (len(steps) // steps_per_epoch) / epochs)


def _size(model: nn.Module, batch: Batch) -> Tensor:
    sums = [p.abs().sum() for p in model.parameters() if p.requires_grad]
    return torch.stack([s.to(sums[0].device) for s in sums]).sum().expand(len(batch))
