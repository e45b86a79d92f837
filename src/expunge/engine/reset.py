"""A model as its architecture is before training: weights drawn anew by the layers' own rules."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn

from expunge.core.errors import UnsupportedModelError, listing
from expunge.engine.device import forked_random


def redrawn(model: nn.Module, seed: int, names: Collection[str] | None = None) -> nn.Module:
    """Return a copy of a model whose parameters are drawn anew.

    Every layer at any depth is reset by its own ``reset_parameters``; models of transformers apply
    their initialisation on top. Buffers of the layers that are reset, such as the statistics of
    batch norm, start anew too. All else keeps its bits.

    Args:
        model: The model; it stays as it is.
        seed: Of the draws, which are made on the CPU; global random state is restored.
        names: Which parameters; all when absent.

    Raises:
        UnsupportedModelError: A parameter belongs to no layer that can reset it, so that the copy
            would still hold what was learned.
    """
    parameters = dict(model.named_parameters())
    device = next(iter(parameters.values())).device
    copied = copy.deepcopy(model).to("cpu")
    own = dict(copied.named_parameters())
    wanted = list(own) if names is None else [name for name in own if name in names]
    chosen = {id(own[name]) for name in wanted}
    with torch.no_grad(), forked_random("cpu"):
        torch.manual_seed(seed)
        for name in wanted:
            own[name].fill_(math.nan)  # so that what no layer resets is found out
        _reset(copied, chosen, None, whole=names is None)
        left = [name for name in wanted if bool(own[name].isnan().any())]
        for name in own.keys() - set(wanted):
            own[name].copy_(parameters[name])
    if left:
        raise UnsupportedModelError(
            f"{len(left)} parameters belong to no layer that can reset them ({listing(left)}); "
            "give the layer that owns them a method reset_parameters"
        )
    return copied.to(device)


def _reset(
    module: nn.Module, chosen: set[int], rule: Callable[[nn.Module], Any] | None, *, whole: bool
) -> None:
    """Reset the layers that own a chosen parameter; where all are, those without any too."""
    if hasattr(module, "config_class"):  # a model of transformers
        rule = getattr(module, "_init_weights", rule)
    for child in module.children():
        _reset(child, chosen, rule, whole=whole)
    own = {id(parameter) for parameter in module.parameters(recurse=False)}
    if not (own & chosen if own else whole):
        return
    for name in ("reset_parameters", "_reset_parameters"):
        if hasattr(module, name):
            getattr(module, name)()
            break
    if rule is not None:
        rule(module)
