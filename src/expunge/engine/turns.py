"""Two objectives that take turns on the same weights, each with an optimiser state of its own.

The loop has one optimiser. A model in turns has several sets of *changes* to the same weights, and
in a step only one set is part of the graph. An optimiser skips parameters without gradient, so it
keeps one state for each set, as separate optimisers would.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope


class Turns(nn.Module):
    """A model with weights ``θ + Σ_k s_k Δ_k``, of whose changes Δ_k one set moves at a time.

    Args:
        model: The model with weights θ, which stay as they are until ``settle``.
        names: Its parameters that may move.
        rates: Learning rate of each turn, as a multiple of the schedule's.
        schedule: Settings of the loop that will train the changes; says what s_k must be for that
            rate: AdamW's steps have one length whatever the gradient's, those of SGD grow with it.
            Weight decay draws changes, not weights, to 0; AdamW's epsilon is divided by the rate.

    Attributes:
        turn: Whose turn it is, from 0; only that set gets gradients.
        scope: The scope with which the changes, and nothing else, move.
    """

    scope = Scope(patterns=("changes.*",))

    def __init__(
        self, model: nn.Module, names: Sequence[str], rates: Sequence[float], schedule: Schedule
    ) -> None:
        super().__init__()
        self.model, self.names, self.turn = model, tuple(names), 0
        self.scales = [math.sqrt(r) if schedule.optimizer == "sgd" else r for r in rates]
        own = dict(model.named_parameters())
        self.changes = nn.ModuleList(
            nn.ParameterList(torch.zeros_like(own[name]) for name in self.names) for _ in rates
        )
        self.training = model.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model with its changed weights."""
        return functional_call(self.model, dict(self._weights()), args, kwargs)

    def begin(self, steps: Sequence[Mapping[str, float]]) -> float:
        """Say whose turn it is, from the steps so far; the weight 1 of a term.

        The loop asks each term for its weight before anything else of a step.
        """
        self.turn = len(steps) % len(self.scales)
        return 1.0

    @torch.no_grad()
    def settle(self) -> nn.Module:
        """Put the changes into the model's own weights and return it."""
        own = dict(self.model.named_parameters())
        for name, weight in self._weights():
            own[name].copy_(weight)
        return self.model

    def _weights(self) -> list[tuple[str, Tensor]]:
        own = dict(self.model.named_parameters())
        found = []
        for place, name in enumerate(self.names):
            weight: Tensor = own[name].detach()
            for turn, (scale, changes) in enumerate(zip(self.scales, self.changes, strict=True)):
                change = changes[place]  # type: ignore[index]
                weight = weight + scale * (change if turn == self.turn else change.detach())
            found.append((name, weight))
        return found
