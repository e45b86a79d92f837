"""Random weights: the baseline that every rule has to beat."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.masks.mask import Mask, masks
from expunge.engine.task import Task


@masks.register("random")
def random(
    model: nn.Module, task: Task, sources: Mapping[str, Records], settings: Mask, run: Run
) -> dict[str, Tensor]:
    """Return a score from the run's random streams for every entry of a trainable parameter.

    Source: WAGLE (Jia et al., 2024), section 5, baseline Random.
    """
    del task, sources, settings
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            generator = torch.Generator().manual_seed(run.stream_seed("random-mask", name))
            drawn = torch.rand(parameter.shape, generator=generator)
            found[name] = drawn.to(parameter.device)
    return found
