"""Hidden states of one block at the target positions, from a forward pass that stops there.

Shape legend: N target positions, B records, T tokens, D hidden size.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from expunge.core.errors import UnsupportedModelError
from expunge.engine.task import Batch, Task


class _Reached(Exception):
    """The block has been run; what follows it is not needed."""


def features_ND(model: nn.Module, task: Task, batch: Batch, block: str) -> Float[Tensor, "N D"]:
    """Return the output of a block at the positions that predict targets.

    Layers after the block are not run, so that they cost nothing and get no gradient.

    Args:
        model: The model.
        task: How to run it.
        batch: The records.
        block: Name of the block; see ``engine.blocks.block_names``.

    Raises:
        UnsupportedModelError: The block is never run, or yields no tensor.
    """
    found: list[Tensor] = []

    def stop(module: nn.Module, args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if not isinstance(hidden, Tensor):
            raise UnsupportedModelError(
                f"block {block!r} yields {type(hidden).__name__}, no tensor"
            )
        found.append(hidden)
        raise _Reached

    handle = model.get_submodule(block).register_forward_hook(stop)
    try:
        task.predict(model, batch)
    except _Reached:
        pass
    finally:
        handle.remove()
    if not found:
        raise UnsupportedModelError(f"the model's forward pass never runs block {block!r}")
    hidden = found[0]
    return hidden[batch.positions] if batch.positions is not None else hidden.flatten(1)
