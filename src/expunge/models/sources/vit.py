"""Vision transformer for small pictures (ViT of transformers, with fresh weights)."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn

from expunge.core.config import config
from expunge.core.errors import ConfigError, DataError
from expunge.data.dataset import Dataset
from expunge.models.heads import Head, make_head
from expunge.models.source import Loaded, fresh_weights, model_source


@config
class VitConfig:
    """Settings of a vision transformer."""

    patch: Annotated[int, Field(ge=1)] = 4
    """Side of a patch in pixels; must divide height and width of the pictures."""
    dim: Annotated[int, Field(ge=1)] = 32
    """Size of the hidden state."""
    depth: Annotated[int, Field(ge=1)] = 4
    """Number of blocks."""
    heads: Annotated[int, Field(ge=1)] = 4
    """Attention heads of each block; must divide ``dim``."""
    mlp: Annotated[int, Field(ge=1)] = 64
    """Width of the feed-forward layers."""
    head: Head = Head()
    """What the network yields."""


@model_source("vit", title="small vision transformer", kinds={"classifier", "regressor"})
def vit(config: VitConfig, dataset: Dataset, seed: int) -> Loaded:
    """Return a vision transformer without dropout; the class token's state enters the head.

    Source: Dosovitskiy et al., An Image is Worth 16x16 Words (2021), section 3.1.

    Raises:
        ConfigError: ``heads`` does not divide ``dim``.
        DataError: Inputs are no pictures (channels, height, width), or not made of whole patches.
    """
    from transformers import ViTConfig, ViTForImageClassification

    if config.dim % config.heads:
        raise ConfigError(f"model.vit: heads = {config.heads} does not divide dim = {config.dim}")
    shape = dataset.facts["input_shape"]
    if len(shape) != 3 or any(side % config.patch for side in shape[1:]):
        raise DataError(
            f"model.vit: inputs of shape {shape} do not fit; patch = {config.patch} needs "
            f"(channels, height, width) with sides that are multiples of {config.patch}. "
            "Choose a patch that divides them, or the model mlp"
        )
    architecture = ViTConfig(
        image_size=tuple(shape[1:]),
        patch_size=config.patch,
        num_channels=shape[0],
        hidden_size=config.dim,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        intermediate_size=config.mlp,
    )
    with fresh_weights(seed):
        inner: Any = ViTForImageClassification(architecture)
        inner.classifier, task = make_head(config.head, dataset, config.dim)
    return Loaded(_Vit(inner), task)


class _Vit(nn.Module):
    """Takes pictures and returns a plain tensor.

    Args:
        inner: The transformer.
    """

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Return what the head yields, (B, K)."""
        outputs: Tensor = self.inner(pixel_values=x).logits
        return outputs
