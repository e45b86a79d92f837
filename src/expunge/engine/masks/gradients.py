"""Gradients of the mean cross entropy over a whole set, for rules that rank weights by them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from expunge.core.errors import ConfigError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.masks.mask import Mask
from expunge.engine.modes import evaluating
from expunge.engine.task import Task


def set_gradient(
    model: nn.Module,
    task: Task,
    sources: Mapping[str, Records],
    role: str,
    settings: Mask,
    run: Run,
    *,
    over: Literal["batches", "targets"],
) -> dict[str, Tensor]:
    """Return the signed gradient of the cross entropy on one set for every trainable weight.

    Args:
        model: The model, in eval mode for the moment; frozen parameters are left out.
        task: How to run it.
        sources: Record sets by role.
        role: Which of them.
        settings: Batch size and name of the rule.
        run: Device and progress.
        over: ``"targets"``: the mean over all target positions. ``"batches"``: the sum over batches
            of each batch's mean.

    Raises:
        ConfigError: The method reads no such records.
    """
    if role not in sources:
        raise ConfigError(
            f"scope.mask.by = {settings.by!r} scores {role} records, but this method reads only "
            f"{sorted(sources)}; leave scope.mask out, or choose a method that reads them"
        )
    records = sources[role]
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    total = sum(task.num_targets(records))
    model.zero_grad(set_to_none=True)
    with evaluating(model), run.progress(f"{settings.by}: {role} set", len(records)) as bar:
        for start in range(0, len(records), settings.batch_size):
            rows = range(start, min(start + settings.batch_size, len(records)))
            batch = task.batch(records, rows).to(run.device)
            count = batch.rows_N.numel() if over == "batches" else total
            (task.predict(model, batch).nll_B().sum() / count).backward()
            bar.advance(len(rows))
    found = {
        n: p.grad if p.grad is not None else p.detach().new_zeros(p.shape)
        for n, p in parameters.items()
    }
    model.zero_grad(set_to_none=True)
    return found
