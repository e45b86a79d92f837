"""Small convolutional network for pictures of about 8 x 8 to 64 x 64 pixels."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import nn

from expunge.core.config import config
from expunge.core.errors import DataError
from expunge.data.dataset import Dataset
from expunge.models.heads import Head, make_head
from expunge.models.source import Loaded, fresh_weights, model_source


@config
class CnnConfig:
    """Settings of a small convolutional network."""

    channels: tuple[Annotated[int, Field(ge=1)], ...] = (16, 32)
    """Channels of each block; every block halves the picture."""
    hidden: Annotated[int, Field(ge=1)] = 64
    """Width of the hidden layer before the head."""
    head: Head = Head()
    """What the network yields."""


@model_source("cnn", title="small convolutional network", kinds={"classifier", "regressor"})
def cnn(config: CnnConfig, dataset: Dataset, seed: int) -> Loaded:
    """Return blocks of convolution, ReLU and max-pooling, then two linear layers; fresh weights.

    Raises:
        DataError: Inputs are no pictures (channels, height, width), or too small for the blocks.
    """
    shape = dataset.facts["input_shape"]
    smallest = 2 ** len(config.channels)
    if len(shape) != 3 or min(shape[1:]) < smallest:
        raise DataError(
            f"model.cnn: inputs of shape {shape} do not fit; {len(config.channels)} blocks need "
            f"(channels, height, width) of at least {smallest} x {smallest} pixels. "
            "Use fewer channels entries, larger pictures, or the model mlp"
        )
    before = shape[0]
    layers: list[nn.Module] = []
    with fresh_weights(seed):
        for after in config.channels:
            layers += [nn.Conv2d(before, after, kernel_size=3, padding=1), nn.ReLU()]
            layers += [nn.MaxPool2d(2)]
            before = after
        cells = (shape[1] // smallest) * (shape[2] // smallest)
        layers += [nn.Flatten(), nn.Linear(before * cells, config.hidden), nn.ReLU()]
        layer, task = make_head(config.head, dataset, config.hidden)
    return Loaded(nn.Sequential(*layers, layer), task)
