"""Batches of a single record, of which batch norm in train mode cannot take a mean."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from expunge.core.errors import UnsupportedModelError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.schedule import Schedule
from expunge.engine.task import Task


def require_batches(
    model: nn.Module, task: Task, streams: Mapping[str, Records], schedule: Schedule, run: Run
) -> None:
    """Try a batch of one record, which some batch norms refuse, before the first step needs it.

    A mixed epoch is not looked at: how many records of a stream its steps hold differs.

    Args:
        model: The model in the modes of training; it stays as it is.
        task: How to run it.
        streams: Records by stream; the first is the anchor of a paired epoch.
        schedule: Settings of the loop.
        run: Device.

    Raises:
        UnsupportedModelError: There will be such a batch, and the model cannot take it.
    """
    if not any(isinstance(m, _BatchNorm) and m.training for m in model.modules()):
        return
    for name, records in streams.items():
        # Partners of a paired epoch come as many at a time as its anchor's records.
        count = len(next(iter(streams.values())) if schedule.order == "paired" else records)
        if schedule.order == "mixed" or not _leaves_one(count, schedule):
            continue
        trial = copy.deepcopy(model)
        try:
            with torch.no_grad():
                task.predict(trial, task.batch(records, [0]).to(run.device))
        except UnsupportedModelError as error:
            raise UnsupportedModelError(
                f"{count} {name} records leave one for a batch of its own: {error}"
            ) from error


def _leaves_one(count: int, schedule: Schedule) -> bool:
    """Tell whether some batch, or part of one, of so many records holds a single record."""
    whole, rest = divmod(count, schedule.batch_size)
    batches = {rest, schedule.batch_size if whole else 0} - {0}
    part = schedule.micro_batch or schedule.batch_size
    return any(part == 1 or batch % part == 1 for batch in batches)
