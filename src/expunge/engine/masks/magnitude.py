"""Weight magnitude: the baseline that looks at no data."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.masks.mask import Mask, masks
from expunge.engine.task import Task


@masks.register("magnitude")
def magnitude(
    model: nn.Module, task: Task, sources: Mapping[str, Records], settings: Mask, run: Run
) -> dict[str, Tensor]:
    """Return |θ| for every trainable parameter; see ``Scorer`` for the arguments.

    Source: WAGLE (Jia et al., 2024), section 5, baseline Magnitude.
    """
    del task, sources, settings, run
    return {n: p.detach().abs() for n, p in model.named_parameters() if p.requires_grad}
