"""Unlearning by fine-tuning in which each record counts by how much of it is retained."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from expunge.core.digest import digest_json
from expunge.core.files import remove_tree
from expunge.core.records import Records, concatenate
from expunge.core.run import Run
from expunge.core.streams import stream_seed
from expunge.engine.loop import Stream, Term, fit
from expunge.engine.schedule import Schedule
from expunge.engine.task import Batch, Task


class Settings(Protocol):
    """What weighted tuning must know."""

    @property
    def epochs(self) -> int:
        """Passes over the data."""

    @property
    def lr(self) -> float:
        """By how much each step moves every weight."""

    @property
    def batch_size(self) -> int:
        """Records of one step."""


def weighted_tuning(
    model: nn.Module,
    task: Task,
    records: Records,
    beside: Records | None,
    settings: Settings,
    run: Run,
) -> Callable[[np.ndarray], nn.Module]:
    """Return a function from weights of the records to the model after unlearning by them.

    Every call starts from the model given and goes over all records, a record's loss times 1 minus
    its weight, with steps along the signs of the gradient.

    Args:
        model: The model before unlearning; stays untouched.
        task: How to run it.
        records: The records that have weights, 1 to be forgotten and 0 to be retained.
        beside: Records that are retained whatever the weights.
        settings: Of one unlearning.
        run: Gives seed, device and a folder for checkpoints.

    Source: Challenging Forgets (Fan et al., 2024), section 4, the weighted fine-tuning of its code.
    """
    whole = records if beside is None else concatenate([records, beside])
    schedule = Schedule(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        optimizer="sign_sgd",
        lr=settings.lr,
    )

    def unlearn(weights_R: np.ndarray) -> nn.Module:
        kept = dict(zip(records.ids, (1 - weights_R).tolist(), strict=True))

        def loss(moving: nn.Module, batch: Batch) -> Tensor:
            nll_B = task.predict(moving, batch).nll_B()
            share_B = torch.tensor([kept.get(i, 1.0) for i in batch.ids], dtype=nll_B.dtype)
            return nll_B * share_B.to(nll_B.device)

        moving = copy.deepcopy(model)
        name = digest_json([schedule.lr, schedule.epochs, list(kept.values()), whole.ids])[:16]
        seed = stream_seed(run.seed, "weighted-tuning", name)
        part = run.child(f"weighted-tuning-{name}", seed=seed)
        term = Term("train", loss)
        fit(moving, task, {"train": Stream(whole)}, (term,), schedule, part, label="unlearning")
        remove_tree(part.folder)
        return moving

    return unlearn
