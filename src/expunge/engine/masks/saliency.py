"""Gradient-based weight saliency (SalUn, Fan et al., 2024)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from torch import Tensor, nn

from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.masks.gradients import set_gradient
from expunge.engine.masks.mask import Mask, masks
from expunge.engine.task import Task

_MOST_ZEROS = 0.99


@masks.register("saliency")
def saliency(
    model: nn.Module, task: Task, sources: Mapping[str, Records], settings: Mask, run: Run
) -> dict[str, Tensor]:
    """Return |Σ_j ∇ mean NLL of batch j| over the forget set for every trainable parameter.

    Gradients are summed with their sign and only then made absolute; the model is in eval mode.

    Args:
        model: The model before unlearning; parameters that need no gradient are left out.
        task: How to run it.
        sources: Reads ``"forget"``.
        settings: Batch size.
        run: Device and progress.

    Source: SalUn (Fan et al., 2024), eq. 2.

    Warns where hardly any score is not zero: a model that knows the forget set by heart has no
    gradient left to rank by.

    Raises:
        ConfigError: The method reads no forget records.
    """
    found = set_gradient(model, task, sources, "forget", settings, run, over="batches")
    scores = {name: gradient.abs() for name, gradient in found.items()}
    total = sum(score.numel() for score in scores.values())
    zeros = total - sum(int(score.count_nonzero()) for score in scores.values())
    if zeros > _MOST_ZEROS * total:
        warnings.warn(
            f"{zeros / total:.1%} of the saliency scores are zero, so that which weights may move "
            "is decided by their order; forget records that the model knows less well have "
            "gradients, and scope.mask.by = 'magnitude' needs none",
            stacklevel=2,
        )
    return scores
