"""Hidden activations of several layers, taken while a model runs.

Shape legend: B records of a batch, P positions of an attention map.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from expunge.core.errors import ConfigError, UnsupportedModelError, listing, near_matches

_TAPPED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.LSTM, nn.GRU)


def layer_names(model: nn.Module) -> list[str]:
    """Return the names of convolutions, linear and recurrent layers, but for the last of them."""
    return [name for name, module in model.named_modules() if isinstance(module, _TAPPED)][:-1]


def require_layers(model: nn.Module, wanted: tuple[str, ...], setting: str) -> list[str]:
    """Return the layers that are asked for, or all but the last when none is.

    Args:
        model: The model.
        wanted: Names of layers.
        setting: Name of the setting, for the message.

    Raises:
        ConfigError: A layer is unknown.
        UnsupportedModelError: The model has no hidden layer.
    """
    known = [name for name, _ in model.named_modules() if name]
    for name in wanted:
        if name not in known:
            raise ConfigError(
                f"{setting}: the model has no layer {name!r}; {near_matches(name, known)}"
            )
    names = list(wanted) or layer_names(model)
    if not names:
        raise UnsupportedModelError(
            "the model has no hidden convolution, linear or recurrent layer to compare"
        )
    return names


@contextmanager
def tapped(model: nn.Module, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """Fill a mapping with the outputs of layers whenever the model runs in the block.

    Raises:
        UnsupportedModelError: A layer yields no tensor.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            if not isinstance(hidden, Tensor):
                raise UnsupportedModelError(
                    f"layer {name!r} yields {type(hidden).__name__}, no tensor"
                )
            found[name] = hidden

        return hook

    handles = [model.get_submodule(n).register_forward_hook(keep(n)) for n in names]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def attention_map(hidden: Tensor) -> Float[Tensor, "B P"]:
    """Return where a layer is active: squared activations of each record, of length one.

    Convolutions are averaged over channels, sequences over features; a flat layer has a position
    for every unit.

    Args:
        hidden: (B, C, H, W), (B, T, D) or (B, D).

    Source: Deep Regression Unlearning (Tarun et al., 2023), eq. 5. Its code averages flat layers
        to one number, which is always 1 after normalising, and sequences over time.
    """
    square = hidden**2
    if square.ndim == 3:
        square = square.mean(2)
    elif square.ndim > 3:
        square = square.mean(1)
    return F.normalize(square.flatten(1), dim=1, eps=1e-12)


def require_alike(own: dict[str, Tensor], other: dict[str, Tensor], names: list[str]) -> None:
    """Check that two models ran the same layers with outputs of the same shape.

    Raises:
        UnsupportedModelError: They did not.
    """
    wrong = [
        name
        for name in names
        if name not in own or name not in other or own[name].shape != other[name].shape
    ]
    if wrong:
        raise UnsupportedModelError(
            f"layers {listing(wrong)} do not run in both models with outputs of one shape; "
            "name others in forget.layers"
        )
