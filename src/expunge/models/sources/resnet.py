"""Residual network with batch norm for small pictures (ResNet with a 3 x 3 stem)."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from expunge.core.config import config
from expunge.core.errors import DataError
from expunge.data.dataset import Dataset
from expunge.models.heads import Head, make_head
from expunge.models.source import Loaded, fresh_weights, model_source


@config
class ResnetConfig:
    """Settings of a residual network."""

    widths: tuple[Annotated[int, Field(ge=1)], ...] = (16, 32, 64)
    """Channels of each stage; every stage but the first halves the picture. ResNet-18 has 64, 128,
    256 and 512."""
    blocks: Annotated[int, Field(ge=1)] = 2
    """Blocks of each stage, of two convolutions."""
    head: Head = Head()
    """What the network yields."""


@model_source("resnet", title="residual network with batch norm", kinds={"classifier", "regressor"})
def resnet(config: ResnetConfig, dataset: Dataset, seed: int) -> Loaded:
    """Return a residual network with a 3 x 3 stem and fresh weights.

    Source: He et al., Deep Residual Learning (2016), section 4.2 (small pictures), with learned
        projections where a block changes its shape.

    Raises:
        DataError: Inputs are no pictures (channels, height, width), or too small for the stages.
    """
    shape = dataset.facts["input_shape"]
    smallest = 2 ** (len(config.widths) - 1)
    if len(shape) != 3 or min(shape[1:]) < smallest:
        raise DataError(
            f"model.resnet: inputs of shape {shape} do not fit; {len(config.widths)} stages need "
            f"(channels, height, width) of at least {smallest} x {smallest} pixels. "
            "Use fewer widths, larger pictures, or the model mlp"
        )
    with fresh_weights(seed):
        layer, task = make_head(config.head, dataset, config.widths[-1])
        model = _ResNet(shape[0], config.widths, config.blocks, layer)
    return Loaded(model, task)


class _ResNet(nn.Module):
    def __init__(self, channels: int, widths: tuple[int, ...], count: int, head: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        self.blocks = nn.ModuleList()
        before = widths[0]
        for stage, after in enumerate(widths):
            for place in range(count):
                self.blocks.append(_Block(before, after, 2 if stage and not place else 1))
                before = after
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            hidden = block(hidden)
        pooled: Tensor = self.head(hidden.mean(dim=(2, 3)))
        return pooled


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(after)
        self.second = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(after)
        self.shortcut: nn.Module = nn.Identity()
        if before != after or stride > 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        inner = self.second_norm(self.second(F.relu(self.first_norm(self.first(x)))))
        return F.relu(inner + self.shortcut(x))
