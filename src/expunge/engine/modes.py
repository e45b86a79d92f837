"""Modes of a model for the length of a block, restored exactly afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


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
def _restored(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
