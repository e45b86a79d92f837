"""SalUn-soft: random labelling that is pulled back to the original weights after every step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from expunge.core.config import config
from expunge.engine.loop import AfterStep
from expunge.forget.method import Sight, method
from expunge.forget.random_label import RandomLabelConfig, check_labels, random_labels


@config
class SalUnSoftConfig(RandomLabelConfig):
    """Settings of SalUn-soft."""

    rho: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the weights that the first step leaves as they were (ρ); it falls to 0 linearly."""


@method(
    "salun_soft",
    kinds={"causal_lm", "classifier"},
    needs={"forget", "retain", "labels", "neutral"},
    source="SalUn (Fan et al., 2024), SalUn-soft",
    check=check_labels,
)
def salun_soft(model: nn.Module, sight: Sight, config: SalUnSoftConfig) -> nn.Module:
    """Random labelling in which small changes of weights are taken back after every step.

    With ``Δ = θ - θ_0`` each step is followed by ``Δ ← sign(Δ) max(|Δ| - τ_t, 0)``, where τ_t is
    the ``floor(ρ_t n)``-th smallest of all n values ``|Δ|`` and ``ρ_t = ρ (1 - t/T)`` for step t of
    T, counted from 0. So ever more weights may move.

    Source: SalUn (Fan et al., 2024), eq. 6 and algorithm 3.
    Needs: forget and retain records with labels; neutral answers.
    Units: nats per target position.
    When to use: as salun, where the share of weights that must move is not known beforehand.
    Cost: as random_label, and one selection over all weights in each step.
    Differs from the official code: θ_0 is that of the whole run, where the code takes it anew every
        epoch; ρ falls with every step, not every epoch, and is a setting; the start of 0.5 is ours.
    """
    streams, terms = random_labels(sight, config)
    return sight.fit(model, streams, terms, config, after=pull_back(config.rho))


def pull_back(rho: float) -> AfterStep:
    """Return what follows each step.

    Args:
        rho: Share of the weights that the first step leaves as they were (ρ).
    """

    def after(weights: Mapping[str, Tensor], start: Mapping[str, Tensor], done: float) -> None:
        sizes = torch.cat([(w - start[name]).abs().flatten() for name, w in weights.items()])
        rank = math.floor(rho * (1 - done) * sizes.numel())
        if rank == 0:
            return
        threshold = sizes.kthvalue(rank).values
        for name, weight in weights.items():
            change = soft_threshold(weight - start[name], threshold)
            # What is put back has the bits of the original.
            weight.copy_(torch.where(change == 0, start[name], start[name] + change))

    return after


def soft_threshold(values: Tensor, threshold: Tensor | float) -> Tensor:
    """Return ``sign(v) max(|v| - τ, 0)`` of each value."""
    return values.sign() * (values.abs() - threshold).clamp(min=0)
