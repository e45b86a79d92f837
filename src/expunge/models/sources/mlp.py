"""Multilayer perceptron for tables and small pictures."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from expunge.core.config import config
from expunge.core.records import Records
from expunge.data.dataset import Dataset
from expunge.models.heads import Head, make_head
from expunge.models.source import Loaded, fresh_weights, model_source


@config
class MlpConfig:
    """Settings of a multilayer perceptron."""

    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (128, 64)
    """Width of each hidden layer."""
    normalize: bool = False
    """Shift and scale each input by the mean and standard deviation of the training data."""
    head: Head = Head()
    """What the network yields."""


@model_source("mlp", title="multilayer perceptron", kinds={"classifier", "regressor"})
def mlp(config: MlpConfig, dataset: Dataset, seed: int) -> Loaded:
    """Return a perceptron with rectified linear units and fresh weights."""
    size = math.prod(dataset.facts["input_shape"])
    layers: list[nn.Module] = [nn.Flatten()]
    if config.normalize:
        layers.append(_Normalize(dataset.train, size))
    with fresh_weights(seed):
        for width in config.hidden:
            layers += [nn.Linear(size, width), nn.ReLU()]
            size = width
        layer, task = make_head(config.head, dataset, size)
    return Loaded(nn.Sequential(*layers, layer), task)


class _Normalize(nn.Module):
    """Standardise each input by statistics that are saved with the weights.

    Args:
        train: Records to take the statistics of; with none they stay 0 and 1 until loaded.
        size: Number of inputs.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, train: Records, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        if len(train):
            x = torch.stack([torch.as_tensor(value).flatten() for value in train["x"]]).float()
            self.mean.copy_(x.mean(dim=0))
            # An input that never varies says nothing; dividing it by one keeps it at zero.
            deviation = x.std(dim=0, correction=0)
            self.scale.copy_(torch.where(deviation > 0, deviation, torch.ones_like(deviation)))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.scale
