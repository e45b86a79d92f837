"""Modes of a model for the length of a block, restored exactly afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from expunge.core.errors import ConfigError

_CHECKPOINTING = ("gradient_checkpointing", "_gradient_checkpointing_func")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module in eval mode for the block."""
    with _restored(model):
        model.eval()
        yield


@contextmanager
def training(model: nn.Module, *, freeze_statistics: bool) -> Iterator[None]:
    """Put every module in train mode for the block.

    Args:
        model: The model.
        freeze_statistics: Keep batch-norm layers in eval mode: their running statistics are no
            parameters, so a weight mask would not hold them.
    """
    with _restored(model):
        model.train()
        if freeze_statistics:
            for module in model.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        yield


@contextmanager
def checkpointed(model: nn.Module) -> Iterator[None]:
    """Let a model of transformers compute activations again in backward passes of the block.

    The model's own switch would put hooks on embeddings, which reentrant checkpoints need and these
    do not: every adapter gets its gradient without them.

    Raises:
        ConfigError: The model cannot do so.
    """
    switch: Any = getattr(model, "_set_gradient_checkpointing", None)
    if switch is None or not getattr(model, "supports_gradient_checkpointing", False):
        raise ConfigError(
            f"schedule.gradient_checkpointing = true: a {type(model).__name__} cannot compute "
            "activations again; set it to false and lower schedule.micro_batch to save memory"
        )
    kept = [
        (m, {name: value for name, value in vars(m).items() if name in _CHECKPOINTING})
        for m in model.modules()
    ]
    try:
        switch(enable=True, gradient_checkpointing_func=partial(checkpoint, use_reentrant=False))
        yield
    finally:
        for module, values in kept:
            for name in _CHECKPOINTING:
                vars(module).pop(name, None)
            vars(module).update(values)


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
