"""``Schedule``: the loop's settings, and the optimiser and learning rate that follow from them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from expunge.core.config import config
from expunge.engine.order import Order
from expunge.engine.sign_sgd import SignSgd


@config
class Schedule:
    """How long, in what order and with which optimiser to train."""

    epochs: Annotated[int, Field(ge=1)] = 10
    """Passes over the data (over the forget set, when paired)."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Records of one optimiser step."""
    micro_batch: Annotated[int, Field(ge=1)] | None = None
    """Records of one forward pass; the whole batch when absent. Changes memory, not results."""
    order: Order = "paired"
    """How streams are combined: ``paired``, ``sequential`` or ``mixed``."""
    optimizer: Literal["adamw", "sgd", "sign_sgd"] = "adamw"
    """AdamW, SGD with momentum, or steps of length ``lr`` along the signs of the gradient."""
    lr: Annotated[float, Field(gt=0)] = 1e-5
    """Peak learning rate."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Weight decay of AdamW and SGD."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    """Epochs in which the learning rate rises linearly from 0."""
    decay: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate falls after the warm-up; linear and cosine end at 0."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of the whole gradient; no clipping when absent."""
    freeze_norm_statistics: bool = True
    """Keep the running statistics of batch norm as they are; false when training from scratch."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of forward and backward passes; weights and losses keep the type they have."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time, the same result."""


def make_optimizer(schedule: Schedule, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Build the optimiser over the parameters that may move."""
    if schedule.optimizer == "adamw":
        moving = list(parameters)
        # One pass over memory in place of a dozen; it would ignore the gaps of a strided weight.
        fused = all(p.is_contiguous() and p.device.type in ("cpu", "cuda") for p in moving)
        return torch.optim.AdamW(
            moving, lr=schedule.lr, weight_decay=schedule.weight_decay, fused=fused or None
        )
    if schedule.optimizer == "sign_sgd":
        return SignSgd(parameters, schedule.lr)
    return torch.optim.SGD(
        parameters, lr=schedule.lr, momentum=schedule.momentum, weight_decay=schedule.weight_decay
    )


def learning_rate(schedule: Schedule, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step.

    Args:
        schedule: The settings.
        step: Which step, from 0.
        steps_per_epoch: Steps of one epoch.
    """
    total = schedule.epochs * steps_per_epoch
    warmup = schedule.warmup_epochs * steps_per_epoch
    if step < warmup:
        return schedule.lr * (step + 1) / math.ceil(warmup)
    done = (step - warmup) / max(total - warmup, 1)
    if schedule.decay == "linear":
        return schedule.lr * (1 - done)
    if schedule.decay == "cosine":
        return schedule.lr * 0.5 * (1 + math.cos(math.pi * done))
    return schedule.lr
