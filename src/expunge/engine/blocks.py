"""The blocks of a network: the stack of equal layers that most architectures are made of."""

from __future__ import annotations

from torch import nn

from expunge.core.errors import ConfigError


def block_names(model: nn.Module) -> list[str]:
    """Return the names of a model's blocks, from input to output.

    The longest ``nn.ModuleList`` is the stack of blocks; a model without one has a block for every
    layer with parameters.
    """
    stacks = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    if stacks:
        prefix, stack = max(stacks, key=lambda item: len(item[1]))
        return [f"{prefix}.{i}" for i in range(len(stack))]
    leaves = [(n, m) for n, m in model.named_modules() if not list(m.children())]
    return [name for name, m in leaves if list(m.parameters(recurse=False))]


def require_blocks(model: nn.Module, count: int, setting: str) -> list[str]:
    """Return the names of all blocks after checking that there are at least ``count``.

    Args:
        model: The model.
        count: How many are asked for.
        setting: Name of the setting that asks, for the message.

    Raises:
        ConfigError: There are fewer.
    """
    names = block_names(model)
    if count > len(names):
        raise ConfigError(f"{setting} = {count} but the model has {len(names)} layers")
    return names
