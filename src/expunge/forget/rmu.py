"""RMU: steer hidden states of the forget set to a random direction, hold those of the rest."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from expunge.core.config import config
from expunge.core.errors import ConfigError
from expunge.engine.blocks import require_blocks
from expunge.engine.features import features_ND
from expunge.engine.loop import Stream, Term
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope
from expunge.engine.task import Batch
from expunge.forget.method import Given, Sight, method

_USUAL_LAYER = 7


@config
class RMUConfig:
    """Settings of RMU."""

    layer: Annotated[int, Field(ge=1)] | None = None
    """Block whose output is steered, counted from 1; when absent 7, or the middle one of a model
    with fewer than 14 blocks."""
    coefficient: Annotated[float, Field(gt=0)] = 2.0
    """Length of the control vector (c), to be compared with the length of hidden states."""
    gamma: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the forget term (γ)."""
    alpha: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the retain term (α)."""
    scope: Scope = Scope()
    """Which weights may move; blocks after the steered one never do."""
    schedule: Schedule = Schedule(epochs=10, lr=1e-5, warmup_epochs=1)
    """Settings of the loop."""


def _check(model: nn.Module, given: Given, config: RMUConfig) -> None:
    require_blocks(model, config.layer or 1, "forget.layer")


@method(
    "rmu",
    kinds={"causal_lm", "classifier"},
    needs={"forget", "retain", "labels", "reference_model"},
    source="RMU (Li et al., 2024, The WMDP Benchmark)",
    check=_check,
)
def rmu(model: nn.Module, sight: Sight, config: RMUConfig) -> nn.Module:
    """Make hidden states of the forget set point to one random vector.

    Minimises ``L = γ MSE(h_l(forget), c u) + α MSE(h_l(retain), h_l^ref(retain))`` with h_l the
    output of block l and u a random unit vector, drawn once. The mean runs over dimensions, then
    over the target positions of a record, then over records.

    Source: RMU (Li et al., 2024), section 4.
    Needs: forget and retain records with labels (they mark the positions); the original model.
    Units: squared hidden units.
    When to use: whole topics are to go and garbled answers on them are acceptable.
    Cost: forward and backward pass up to block l only, and a forward pass of the original as far.
    Differs from the official code: each record has its own mean (the public code mixes records by
        broadcasting); positions are those that predict targets; the vector comes from a named
        random stream; later blocks are not run;
        blocks are counted from 1, so that the public code's layer 7 is our 8.
    """
    names = require_blocks(model, config.layer or 1, "forget.layer")
    count = len(names)
    layer = config.layer or min(_USUAL_LAYER, -(-count // 2))
    block = names[layer - 1]
    reference_model = sight.reference_model
    generator = torch.Generator().manual_seed(sight.run.stream_seed("control-vector"))

    def steered(model: nn.Module, batch: Batch) -> Tensor:
        hidden_ND = features_ND(model, sight.task, batch, block)
        if torch.is_grad_enabled() and not hidden_ND.requires_grad:
            raise ConfigError(
                f"forget.scope selects no weight up to layer {layer}, and later ones do not change "
                "its output; choose a later layer, or earlier weights"
            )
        # A generator with its state put back: every batch sees the same vector.
        uniform_D = torch.rand(
            hidden_ND.shape[1], generator=generator.manual_seed(generator.initial_seed())
        )
        control_D = control_vector(uniform_D, config.coefficient).to(hidden_ND)
        return distance(hidden_ND, control_D.expand_as(hidden_ND), batch)

    def held(model: nn.Module, batch: Batch) -> Tensor:
        with torch.no_grad():
            wanted_ND = features_ND(reference_model, sight.task, batch, block)
        return distance(features_ND(model, sight.task, batch, block), wanted_ND, batch)

    streams = {"forget": Stream(sight.forget), "retain": Stream(sight.retain)}
    terms = [Term("forget", steered, config.gamma), Term("retain", held, config.alpha)]
    return sight.fit(model, streams, terms, config)


def control_vector(uniform_D: Float[Tensor, " D"], length: float) -> Float[Tensor, " D"]:
    """Return a vector in the direction of ``uniform_D`` with the given length (c)."""
    return length * uniform_D / uniform_D.norm()


def distance(
    hidden_ND: Float[Tensor, "N D"], wanted_ND: Float[Tensor, "N D"], batch: Batch
) -> Float[Tensor, " B"]:
    """Return each record's mean squared distance over dimensions and target positions.

    Args:
        hidden_ND: Hidden states at target positions.
        wanted_ND: Where they should be.
        batch: Says which record a position belongs to.
    """
    square_N = ((hidden_ND - wanted_ND) ** 2).mean(-1)
    sums_B = torch.zeros(len(batch), dtype=square_N.dtype, device=square_N.device)
    return sums_B.index_add(0, batch.rows_N, square_N) / batch.counts_B
