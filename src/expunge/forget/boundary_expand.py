"""Boundary expanding: give the forget set a class of its own, then drop that class."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from expunge.core.config import config
from expunge.engine.loop import Stream, Term
from expunge.engine.representation import represent, split
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope
from expunge.engine.task import Batch
from expunge.forget.method import Given, Sight, method

_WEIGHT, _BIAS = "expanded_weight", "expanded_bias"


@config
class BoundaryExpandConfig:
    """Settings of boundary expanding."""

    scope: Scope = Scope()
    """Which weights may move; those of the added class count as the last layer's."""
    schedule: Schedule = Schedule(
        epochs=10,
        batch_size=64,
        optimizer="sgd",
        lr=2e-4,
        weight_decay=5e-4,
        freeze_norm_statistics=False,
    )
    """Settings of the loop. The learning rate was chosen on 2,000 small pictures of Fashion-MNIST:
    average gap to retraining 8.3 points, 8.8 at 3e-5 and 12.6 at 1e-3
    (``benchmarks/baselines.py``)."""


def _check(model: nn.Module, given: Given, config: BoundaryExpandConfig) -> None:
    del given, config
    split(model)


@method(
    "boundary_expand",
    kinds={"classifier"},
    needs={"forget", "labels"},
    source="Boundary Unlearning (Chen et al., 2023)",
    check=_check,
)
def boundary_expand(model: nn.Module, sight: Sight, config: BoundaryExpandConfig) -> nn.Module:
    """Teach the forget set a new class K+1, and take the old K classes of the result.

    Minimises ``CE(forget, K+1)`` with a row added to the last linear layer, and removes that row.

    Source: Chen et al., 2023, section 3.3; SalUn (Fan et al., 2024), baseline BE.
    Needs: forget records (their batches carry labels, which enter no loss); a model whose last
        layer is linear.
    Units: nats.
    When to use: whole classes are to go and no retain records are left; faster than
        boundary_shrink, which finds a target for each record.
    Cost: one forward and backward pass over forget records.
    Differs from the official code: the added row never enters the model's own output, so that there
        is nothing to prune.
    """
    place = split(model)
    head = model.get_submodule(place.head)
    _expand(head, place.width, sight.run.stream_seed("expanded-class"))

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        features_BD, predictions = represent(model, sight.task, batch, place.head)
        own = {name.rpartition(".")[2]: p for name, p in model.named_parameters()}
        row: dict[str, Tensor] = {"weight": own[_WEIGHT]}
        if _BIAS in own:
            row["bias"] = own[_BIAS]
        # The head's own way with its weights: those of open sets compare directions.
        added_B1 = functional_call(model.get_submodule(place.head), row, (features_BD,))
        logits = torch.cat([predictions.logits_NV, added_B1], 1)
        targets = torch.full((len(batch),), logits.shape[1] - 1, device=logits.device)
        return F.cross_entropy(logits, targets, reduction="none")

    try:
        return sight.fit(model, {"forget": Stream(sight.forget)}, [Term("forget", loss)], config)
    finally:
        for name in (_WEIGHT, _BIAS):
            head._parameters.pop(name, None)


def _expand(head: nn.Module, width: int, seed: int) -> None:
    """Put a further row beside a linear layer's weights, drawn as torch draws such layers."""
    like: Tensor = head.weight  # type: ignore[assignment]
    generator, bound = torch.Generator().manual_seed(seed), 1 / math.sqrt(width)
    shapes = {_WEIGHT: (1, width)} | ({} if head.bias is None else {_BIAS: (1,)})
    for name, shape in shapes.items():
        drawn = (2 * torch.rand(shape, generator=generator) - 1) * bound
        head.register_parameter(name, nn.Parameter(drawn.to(like)))
