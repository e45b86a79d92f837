"""``Scope``: which weights may move during unlearning. Its parts combine freely.

Layers or name patterns choose parameters; LoRA adds low-rank adapters beside linear layers and
freezes the rest; a mask lets only chosen entries of the chosen parameters move.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from expunge.core.config import config
from expunge.core.errors import ConfigError, listing
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.blocks import require_blocks
from expunge.engine.masks.mask import Mask, WeightMask, make_mask
from expunge.engine.task import Task


@config
class Lora:
    """Low-rank adapters (Hu et al., 2021), merged into the weights when training ends."""

    rank: Annotated[int, Field(ge=1)] = 8
    """Rank r of each adapter."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """Scale: an adapter contributes alpha / rank times its product."""
    targets: tuple[str, ...] = ("*",)
    """Name patterns of the linear layers that get an adapter."""


@config
class Scope:
    """Which weights may move; by default all of them."""

    last_layers: Annotated[int, Field(ge=1)] | None = None
    """Only the last k blocks and what follows them; all layers when absent."""
    patterns: tuple[str, ...] = ()
    """Only parameters whose name matches one of these shell patterns, such as ``*.mlp.*``."""
    lora: Lora | None = None
    """Train low-rank adapters instead of the weights themselves."""
    mask: Mask | None = None
    """Only the entries that a mask selects."""


@dataclasses.dataclass
class Selection:
    """What a scope selected in one model.

    Attributes:
        parameters: The parameters that may move, by name.
        mask: Entries of them that may move; ``None`` is all.
    """

    parameters: dict[str, nn.Parameter]
    mask: WeightMask | None


@contextmanager
def scoped(
    model: nn.Module, task: Task, scope: Scope, sources: Mapping[str, Records], run: Run
) -> Iterator[Selection]:
    """Freeze everything outside the scope for the block; merge adapters and thaw afterwards.

    What is frozen is out of the graph: it gets no gradient and costs no backward pass.

    Args:
        model: The model, changed in place.
        task: How to run it (a mask may need gradients).
        scope: Which weights may move.
        sources: Record sets that a mask may read, by role.
        run: Context; adapters start from its random streams.

    Raises:
        ConfigError: The scope selects nothing.
    """
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    allowed = _allowed(model, scope)
    adapters = _inject(model, scope.lora, run) if scope.lora else None
    try:
        chosen = {}
        for name, parameter in model.named_parameters():
            if adapters is None:
                moves = name in allowed
            else:
                layer, adapter, _ = name.partition(".lora_")
                moves = bool(adapter) and f"{layer}.weight" in allowed
            parameter.requires_grad_(moves)
            if moves:
                chosen[name] = parameter
        if not chosen:
            raise ConfigError(
                f"scope selects no parameter; the model's parameters are called {listing(flags, 8)}"
            )
        mask = make_mask(scope.mask, model, task, sources, run) if scope.mask else None
        yield Selection(chosen, mask)
    finally:
        if adapters is not None:
            adapters.merge_and_unload()  # type: ignore[operator]
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags[name])


def _allowed(model: nn.Module, scope: Scope) -> set[str]:
    names = [name for name, _ in model.named_parameters()]
    if scope.last_layers is not None:
        names = _last_layers(model, scope.last_layers)
    if scope.patterns:
        names = [n for n in names if any(fnmatch.fnmatchcase(n, p) for p in scope.patterns)]
    return set(names)


def _last_layers(model: nn.Module, count: int) -> list[str]:
    """Name the parameters of the last ``count`` blocks and of everything registered after them."""
    blocks = require_blocks(model, count, "scope.last_layers")
    names = [name for name, _ in model.named_parameters()]
    first = next(i for i, name in enumerate(names) if name.startswith(f"{blocks[-count]}."))
    return names[first:]


def _inject(model: nn.Module, lora: Lora, run: Run) -> nn.Module:
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel
    from transformers.pytorch_utils import Conv1D

    find = getattr(model, "get_output_embeddings", None)
    head = find() if find is not None else None
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    ]
    targets = [n for n in linear if any(fnmatch.fnmatchcase(n, p) for p in lora.targets)]
    if not targets:
        raise ConfigError(
            f"scope.lora.targets = {list(lora.targets)} matches no linear layer; "
            f"the model has {listing(linear, 8)}"
        )
    transposed = any(isinstance(module, Conv1D) for module in model.modules())
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        target_modules=targets,
        fan_in_fan_out=transposed,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.stream_seed("lora"))
        return LoraModel(model, settings, "default")


def frozen_entries(selection: Selection) -> dict[str, Tensor]:
    """Return copies of the masked parameters, from which frozen entries are restored each step."""
    if selection.mask is None:
        return {}
    return {name: selection.parameters[name].detach().clone() for name in selection.mask.tensors}
