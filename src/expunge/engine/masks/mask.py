"""``WeightMask``: the entries of the parameters that may move, shared by every masked method."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from expunge.core.config import config
from expunge.core.errors import ConfigError, DataError, NumericalError, Problems
from expunge.core.records import Records
from expunge.core.registry import Registry
from expunge.core.run import Run
from expunge.engine.task import Task


@config
class Mask:
    """How to choose the entries that may move."""

    by: str = "saliency"
    """Registered rule that scores every entry; the highest scores may move."""
    fraction: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share s of all entries in scope that may move; 1 is no mask."""
    curvature: Annotated[float, Field(gt=0)] | Literal["auto", "infinite"] = 1e-6
    """Curvature of the retain loss for ``attribution`` (the paper's γ): how little the conflict
    with retain gradients counts. ``auto``: the mean squared retain gradient. ``infinite``: not at
    all, which is pruning sensitivity (SNIP)."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Records per forward pass while scoring."""

    @property
    def reads(self) -> frozenset[Literal["forget", "retain"]]:
        """The record sets that the rule scores, even where the method itself does not read them."""
        if self.by not in ("saliency", "attribution"):
            return frozenset()
        compares = self.by == "attribution" and self.curvature != "infinite"
        return frozenset({"forget", "retain"} if compares else {"forget"})


@dataclasses.dataclass(frozen=True)
class WeightMask:
    """Boolean tensors by parameter name: ``True`` may move, ``False`` stays bit-identical."""

    tensors: Mapping[str, Tensor]

    def check(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Check that the mask covers exactly these parameters with their shapes.

        Raises:
            DataError: It does not; a mask that fits nothing would silently do nothing.
        """
        problems = Problems("weight mask", DataError)
        for name in sorted(self.tensors.keys() ^ parameters.keys()):
            where = "the mask" if name in self.tensors else "the model's scope"
            problems.add(f"parameter {name!r} is only in {where}")
        for name in sorted(self.tensors.keys() & parameters.keys()):
            if self.tensors[name].shape != parameters[name].shape:
                problems.add(
                    f"{name} has shape {tuple(self.tensors[name].shape)}, "
                    f"the parameter {tuple(parameters[name].shape)}"
                )
        problems.raise_if_any()

    @property
    def fraction(self) -> float:
        """Share of entries that may move."""
        total = sum(t.numel() for t in self.tensors.values())
        return sum(int(t.sum()) for t in self.tensors.values()) / total


Scorer = Callable[[nn.Module, Task, Mapping[str, Records], Mask, Run], dict[str, Tensor]]
"""Scores every entry of the trainable parameters; higher moves first."""

masks: Registry[Scorer] = Registry("masks", "expunge.engine.masks")


def make_mask(
    settings: Mask, model: nn.Module, task: Task, sources: Mapping[str, Records], run: Run
) -> WeightMask:
    """Score the trainable parameters by the registered rule and keep the top share.

    Raises:
        ConfigError: The rule is unknown, or the share is less than one entry.
        NumericalError: A score is not finite.
    """
    scores = masks.get(settings.by)(model, task, sources, settings, run)
    mask = top_entries(scores, settings.fraction)
    for name, moves in mask.tensors.items():
        # Among zeros the rank is arbitrary, so their share says how much of the choice is.
        shares = {"density": moves, "zeros": scores[name] == 0}
        told = {what: float(share.double().mean()) for what, share in shares.items()}
        run.emit("mask", by=settings.by, parameter=name, **told)
    return mask


def top_entries(scores: Mapping[str, Tensor], fraction: float) -> WeightMask:
    """Select the ``floor(fraction * n)`` highest scores over all tensors together.

    Ties go to the lower flattened index, in the order of ``scores``, so the choice is unique.

    Args:
        scores: Non-negative scores by parameter name.
        fraction: Share s of all n entries.

    Source: SalUn (Fan et al., 2024), eq. 3 with a global ranking.

    Raises:
        ConfigError: The share is less than one entry.
        NumericalError: A score is not finite.
    """
    flat = torch.cat([score.flatten() for score in scores.values()])
    if not torch.isfinite(flat).all():
        raise NumericalError(
            "a mask score is NaN or infinite; the model's gradients are not usable"
        )
    keep = math.floor(fraction * flat.numel())
    if keep == 0:
        raise ConfigError(
            f"scope.mask.fraction = {fraction} selects none of {flat.numel()} entries; raise it"
        )
    cut = flat.kthvalue(flat.numel() - keep + 1).values
    chosen = flat > cut
    ties = (flat == cut).nonzero()[:, 0]
    chosen[ties[: keep - int(chosen.sum())]] = True
    pieces = chosen.split([score.numel() for score in scores.values()])
    return WeightMask(
        {
            name: piece.view_as(score)
            for (name, score), piece in zip(scores.items(), pieces, strict=True)
        }
    )
