"""The collapse guard: unlearning that destroys the model is stopped, not reported as success."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from expunge.core.config import config
from expunge.core.records import Records
from expunge.core.streams import stream
from expunge.engine.modes import evaluating
from expunge.engine.task import Task


@config
class GuardSettings:
    """When the loop must stop because what should be retained is being lost."""

    max_increase: Annotated[float, Field(gt=0)] = 1.0
    """Largest rise of the mean loss per target on retained records, in nats."""
    num_records: Annotated[int, Field(ge=1)] = 32
    """How many retained records are watched, drawn once from the run's streams."""


@dataclasses.dataclass(frozen=True)
class Guard:
    """Watches the loss on a fixed sample of retained records.

    Attributes:
        records: The sample.
        max_increase: Bound on the rise of its mean loss per target, in nats.
    """

    records: Records
    max_increase: float

    @classmethod
    def of(cls, settings: GuardSettings, retain: Records, seed: int) -> Guard:
        """Draw the sample from the retained records."""
        count = min(settings.num_records, len(retain))
        rows = stream(seed, "guard").permutation(len(retain))[:count]
        return cls(retain.take(sorted(rows)), settings.max_increase)

    @torch.no_grad()
    def measure(self, model: nn.Module, task: Task, device: str, batch_size: int) -> float:
        """Return the mean loss per target on the sample, in nats.

        Args:
            model: The model, put in eval mode for the moment.
            task: How to run it.
            device: Torch device.
            batch_size: Records per forward pass.
        """
        total, count = 0.0, 0
        with evaluating(model):
            for start in range(0, len(self.records), batch_size):
                rows = range(start, min(start + batch_size, len(self.records)))
                batch = task.batch(self.records, rows).to(device)
                total += float(task.predict(model, batch).nll_B().double().sum())
                count += batch.targets_N.numel()
        return total / count
