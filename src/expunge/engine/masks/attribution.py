"""Weight attribution (WAGLE, Jia et al., 2024)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, nn

from expunge.core.errors import NumericalError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.masks.gradients import set_gradient
from expunge.engine.masks.mask import Mask, masks
from expunge.engine.task import Task


@masks.register("attribution")
def attribution(
    model: nn.Module, task: Task, sources: Mapping[str, Records], settings: Mask, run: Run
) -> dict[str, Tensor]:
    """Return |(θ - g_r/κ) g_f| for every trainable parameter: what the forget set rests on.

    Gradients are those of the mean cross entropy per target, in eval mode. A method that reads
    neutral in place of forgotten answers is scored on these.

    Args:
        model: The model before unlearning; parameters that need no gradient are left out.
        task: How to run it.
        sources: Reads ``"forget"`` (or ``"neutral"``) and ``"retain"``.
        settings: Batch size and curvature κ (the paper's γ).
        run: Device and progress.

    Source: WAGLE (Jia et al., 2024), eq. 9, with the Hessian of the retain loss taken as κ I.

    Raises:
        ConfigError: The method reads no such records.
        NumericalError: The forget gradient is zero everywhere, so that nothing can be attributed.
    """
    role = "forget" if "forget" in sources or "neutral" not in sources else "neutral"
    forget = set_gradient(model, task, sources, role, settings, run, over="targets")
    if not any(bool(gradient.any()) for gradient in forget.values()):
        raise NumericalError(
            "no forget signal: the gradient on the forget set is zero everywhere, so a mask would "
            "be arbitrary; leave scope.mask out"
        )
    if settings.curvature == "infinite":
        retain = {name: gradient.new_zeros(gradient.shape) for name, gradient in forget.items()}
    else:
        retain = set_gradient(model, task, sources, "retain", settings, run, over="targets")
    curvature = _curvature(settings, retain)
    parameters = dict(model.named_parameters())
    return {
        name: scores(parameters[name].detach(), forget[name], retain[name], curvature)
        for name in forget
    }


def scores(weight: Tensor, forget: Tensor, retain: Tensor, curvature: float) -> Tensor:
    """Return |(θ - g_r/κ) g_f| of each entry.

    Args:
        weight: θ.
        forget: Gradient of the forget loss, g_f.
        retain: Gradient of the retain loss, g_r.
        curvature: κ; infinite gives pruning sensitivity.
    """
    return ((weight - retain / curvature) * forget).abs()


def _curvature(settings: Mask, retain: Mapping[str, Tensor]) -> float:
    if settings.curvature == "infinite":
        return math.inf
    if settings.curvature == "auto":
        total = sum(float((g.double() ** 2).sum()) for g in retain.values())
        mean = total / sum(g.numel() for g in retain.values())
        if mean == 0:
            raise NumericalError(
                "scope.mask.curvature = 'auto': the retain gradient is zero; give a number"
            )
        return mean
    return float(settings.curvature)
