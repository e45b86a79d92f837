"""Blindspot: copy a network that never saw the forget set, on the forget set only.

Shape legend: B records of a batch, P positions of an attention map.
"""

from __future__ import annotations

import warnings
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from expunge.core.config import config
from expunge.engine.loop import Stream, Term
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope
from expunge.engine.taps import attention_map, require_alike, require_layers, tapped
from expunge.engine.task import Batch, Estimates
from expunge.forget.method import Given, Sight, method
from expunge.train.supervised import likelihood

_MOSTLY_FORGOTTEN = 0.8


@config
class Blind:
    """How the blind network is trained on what is retained."""

    scope: Scope = Scope()
    """Which weights may move."""
    schedule: Schedule = Schedule(
        epochs=2, batch_size=256, lr=1e-2, weight_decay=0.0, freeze_norm_statistics=False
    )
    """Settings of the loop: few epochs of the normal training."""


@config
class BlindspotConfig:
    """Settings of Blindspot."""

    weight: Annotated[float, Field(ge=0)] = 50.0
    """Weight of the distance between attention maps (λ)."""
    layers: tuple[str, ...] = ()
    """Layers whose attention maps are compared; every hidden convolution, linear and recurrent
    layer when empty."""
    blind: Blind = Blind()
    """How the blind network is trained."""
    scope: Scope = Scope()
    """Which weights may move."""
    schedule: Schedule = Schedule(
        epochs=1, batch_size=256, order="mixed", lr=1e-3, weight_decay=0.0
    )
    """Settings of the loop; the paper passes once over everything, shuffled together."""


def _check(model: nn.Module, given: Given, config: BlindspotConfig) -> None:
    require_layers(model, config.layers, "forget.layers")
    forgotten, kept = len(given.forget), len(given.retain or ())
    if forgotten > _MOSTLY_FORGOTTEN * (forgotten + kept):
        warnings.warn(
            f"{forgotten} of {forgotten + kept} records are to be forgotten: retraining on the "
            "rest is cheaper than blindspot, and exact",
            stacklevel=2,
        )


@method(
    "blindspot",
    kinds={"regressor"},
    needs={"forget", "retain", "labels", "fresh"},
    source="Deep Regression Unlearning (Tarun et al., 2023)",
    check=_check,
)
def blindspot(model: nn.Module, sight: Sight, config: BlindspotConfig) -> nn.Module:
    """Fit retained targets, and on the forget set a network that is blind to it.

    A fresh network B learns the retain set for a few epochs. Then
    ``L = c (l(f(x), B(x)) + λ Σ_l mean (A_l(f) - A_l(B))²) + (1 - c) l(f(x), y)`` with c the share
    of forget records in a mixed batch and A_l the normalised activation energy of layer l.
    Forgotten targets are not read.

    Source: Deep Regression Unlearning (Tarun et al., 2023), section 4.2, eq. 3 to 6.
    Needs: forget records; retain records with targets; the model from before training.
    Units: the regressor's loss, in target units; attention maps have length one.
    When to use: regressors whose forgotten targets the rest of the data does not tell. Keep it
        short: a blind network is poor, and long copying makes the model as poor.
    Cost: a few epochs of training on retain records, then one forward and backward pass over all
        records, and a forward pass of the blind network over forget records.
    Differs from the official code: maps of flat layers have a position for each unit and maps of
        sequences one for each time; the public code averages those away, so that its loss is 0. A
        batch without forget records has no term for them, where the code divides by 0.
    """
    column = sight.task.labels  # type: ignore[attr-defined]
    width = getattr(sight.task, "num_targets_each", 1)
    unread = [0.0] * len(sight.forget) if width == 1 else [[0.0] * width] * len(sight.forget)
    forget = sight.forget.replace(**{column: unread})
    names = require_layers(model, config.layers, "forget.layers")
    retain = {"retain": Stream(sight.retain)}
    blind = sight.fit(
        sight.fresh(),
        retain,
        [likelihood(sight.task, "retain")],
        config.blind,
        guarded=False,
        part="blind network",
    )
    blind.requires_grad_(False).eval()

    def copied(model: nn.Module, batch: Batch) -> Tensor:
        with torch.no_grad(), tapped(blind, names) as wanted:
            target = sight.task.predict(blind, batch)
        with tapped(model, names) as own:
            found = sight.task.predict(model, batch)
        require_alike(own, wanted, names)
        assert isinstance(found, Estimates)
        distance_B = attention_distance(own, wanted, names)
        return found.loss(found.outputs_BD, target.logits_NV) + config.weight * distance_B

    streams = {"forget": Stream(forget), **retain}
    terms = [Term("forget", copied), likelihood(sight.task, "retain")]
    return sight.fit(model, streams, terms, config)


def attention_distance(
    own: dict[str, Tensor], wanted: dict[str, Tensor], names: list[str]
) -> Tensor:
    """Return each record's mean squared difference of attention maps, summed over layers.

    Args:
        own: Activations of the model by layer.
        wanted: The same of the blind network.
        names: The layers.

    Returns:
        Distances, (B,).

    Source: Deep Regression Unlearning (Tarun et al., 2023), eq. 6.
    """
    layers_BL = [
        ((attention_map(own[name]) - attention_map(wanted[name])) ** 2).mean(1) for name in names
    ]
    return torch.stack(layers_BL).sum(0)
