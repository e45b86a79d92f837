"""Low-rank adapters in groups, one for each block: where they sit, and how large they are.

A group is what is trained in one block: the adapters of its feed-forward layers. Blocks without
any that are known by name, such as the layers of a perceptron, count with all their linear layers;
the head of a model is in no group.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from expunge.core.errors import UnsupportedModelError
from expunge.engine.blocks import block_names
from expunge.engine.representation import split

FEED_FORWARD = (
    "*mlp.*",
    "*ffn.*",
    "*feed_forward.*",
    "*intermediate.dense",
    "*output.dense",
    "*linear1",
    "*linear2",
)
"""Names of feed-forward layers within a block, in the common libraries."""

Groups = Mapping[str, tuple[str, ...]]
"""Names of the linear layers of each block, by the block's name."""


def find_groups(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return the layers of each group, from input to output; blocks without any are left out.

    Raises:
        UnsupportedModelError: No block has a linear layer.
    """
    head, kinds = split(model).head, _linear_kinds()
    found = {}
    for block in block_names(model):
        inside = [
            f"{block}.{name}" if name else block
            for name, module in model.get_submodule(block).named_modules()
            if isinstance(module, kinds)
        ]
        linear = [name for name in inside if name != head]
        feed_forward = [name for name in linear if _feeds_forward(name)]
        if linear:
            found[block] = tuple(feed_forward or linear)
    if not found:
        raise UnsupportedModelError(
            f"no block of the {type(model).__name__} has a linear layer below the head, so that "
            "there is no place for adapters; give a transformer or a perceptron"
        )
    return found


def group_norm(tensors: Iterable[Tensor]) -> Float[Tensor, ""]:
    """Return the Frobenius norm of tensors taken as one, with a gradient of 0 where all are 0.

    Source: GS-LoRA (Zhao et al., 2024), eq. 9; the small constant is ours, since the derivative of
        a root at exactly zero is not finite.
    """
    return torch.sqrt(torch.stack([(tensor**2).sum() for tensor in tensors]).sum() + 1e-12)


def group_lasso(model: nn.Module, groups: Groups) -> Float[Tensor, ""]:
    """Return the sum of the norms of all groups' adapters, as they are while they are trained.

    Args:
        model: The model with adapters in it.
        groups: See ``find_groups``.
    """
    adapters: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        layer, adapter, _ = name.partition(".lora_")
        if adapter:
            adapters.setdefault(layer, []).append(parameter)
    norms = [
        group_norm(tensor for layer in layers for tensor in adapters[layer])
        for layers in groups.values()
    ]
    return torch.stack(norms).sum()


class Change:
    """What adapters changed in a model, group by group, once they are merged.

    Args:
        model: The model before the change.
        groups: See ``find_groups``.
    """

    def __init__(self, model: nn.Module, groups: Groups) -> None:
        self._groups = groups
        self._before = {
            layer: model.get_parameter(f"{layer}.weight").detach().clone()
            for layers in groups.values()
            for layer in layers
        }

    @torch.no_grad()
    def norms(self, model: nn.Module) -> dict[str, float]:
        """Return the Frobenius norm of the change of each group: that of all its s·B·A."""
        return {
            block: math.sqrt(sum(float((self._difference(model, x) ** 2).sum()) for x in layers))
            for block, layers in self._groups.items()
        }

    @torch.no_grad()
    def swap(self, model: nn.Module, blocks: Iterable[str]) -> None:
        """Put the weights of some groups back as they were; a second call undoes the first."""
        for block in blocks:
            for layer in self._groups[block]:
                weight = model.get_parameter(f"{layer}.weight")
                now = weight.detach().clone()
                weight.copy_(self._before[layer])
                self._before[layer] = now

    def _difference(self, model: nn.Module, layer: str) -> Tensor:
        now = model.get_parameter(f"{layer}.weight").detach()
        return (now - self._before[layer].to(now)).double()


def _feeds_forward(name: str) -> bool:
    inside = not fnmatch.fnmatchcase(name, "*attention*")
    return inside and any(fnmatch.fnmatchcase(name, pattern) for pattern in FEED_FORWARD)


def _linear_kinds() -> tuple[type[nn.Module], ...]:
    from transformers.pytorch_utils import Conv1D

    return (nn.Linear, Conv1D)
