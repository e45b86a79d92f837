"""Gradient-based weight saliency (SalUn, Fan et al., 2024)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from expunge.core.errors import ConfigError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.masks.mask import Mask, masks
from expunge.engine.modes import evaluating
from expunge.engine.task import Task


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

    Raises:
        ConfigError: The method reads no forget records.
    """
    if "forget" not in sources:
        raise ConfigError(
            f"scope.mask.by = 'saliency' scores forget records, but this method reads only "
            f"{sorted(sources)}; leave scope.mask out, or choose a method that reads them"
        )
    forget = sources["forget"]
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad(set_to_none=True)
    with evaluating(model), run.progress("saliency", len(forget)) as bar:
        for start in range(0, len(forget), settings.batch_size):
            rows = range(start, min(start + settings.batch_size, len(forget)))
            batch = task.batch(forget, rows).to(run.device)
            mean = task.predict(model, batch).nll_B().sum() / batch.targets_N.numel()
            mean.backward()
            bar.advance(len(rows))
    scores = {
        n: p.grad.abs() if p.grad is not None else p.detach().new_zeros(p.shape)
        for n, p in parameters.items()
    }
    model.zero_grad(set_to_none=True)
    return scores
