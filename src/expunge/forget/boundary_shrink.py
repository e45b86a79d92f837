"""Boundary shrinking: give each forget record the class that lies nearest to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from expunge.core.config import config
from expunge.core.errors import DataError, listing
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.loop import Stream
from expunge.engine.modes import evaluating
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope
from expunge.engine.task import Task
from expunge.forget.method import Given, Sight, method
from expunge.train.supervised import likelihood

_LEVELS = 255  # grey levels of a picture, to which shifted inputs are rounded


@config
class BoundaryShrinkConfig:
    """Settings of boundary shrinking."""

    step: Annotated[float, Field(gt=0, le=1)] = 0.1
    """How far each input value is shifted to find the nearest class (ε); inputs lie in [0, 1]."""
    scope: Scope = Scope()
    """Which weights may move."""
    schedule: Schedule = Schedule(
        epochs=10,
        batch_size=64,
        optimizer="sgd",
        lr=3e-4,
        weight_decay=5e-4,
        freeze_norm_statistics=False,
    )
    """Settings of the loop. The learning rate was chosen on 2,000 small pictures of Fashion-MNIST:
    average gap to retraining 6.8 points, 8.5 at 1e-4 and 21 at 1e-3
    (``benchmarks/baselines.py``)."""


def _check(model: nn.Module, given: Given, config: BoundaryShrinkConfig) -> None:
    del model, config
    wrong = []
    for rows in _chunks(len(given.forget), 256):
        batch = given.task.batch(given.forget, rows, targets=False)
        x = batch.inputs["x"].flatten(1)
        fits_B = ((x >= 0) & (x <= 1)).all(1)
        wrong += [name for name, fits in zip(batch.ids, fits_B.tolist(), strict=True) if not fits]
    if wrong:
        raise DataError(
            f"boundary_shrink shifts inputs within [0, 1], and {len(wrong)} forget records have "
            f"values outside or NaN ({listing(wrong)}); scale inputs to [0, 1] and put any other "
            "normalisation into the model"
        )


@method(
    "boundary_shrink",
    kinds={"classifier"},
    needs={"forget", "labels"},
    source="Boundary Unlearning (Chen et al., 2023)",
    check=_check,
)
def boundary_shrink(model: nn.Module, sight: Sight, config: BoundaryShrinkConfig) -> nn.Module:
    """Train the forget set towards the class on the other side of the nearest boundary.

    Minimises ``CE(forget, y')`` with ``y' = argmax f_0(x')`` of the original model f_0 and
    ``x' = clip(x + ε sign ∇_x CE(f_0(x), y), 0, 1)`` rounded to grey levels of 1/255. Where one
    such step crosses no boundary, y' is the class that f_0 gave to x already.

    Source: Chen et al., 2023, eq. 3 to 5; SalUn (Fan et al., 2024), baseline BS.
    Needs: forget records with labels and inputs in [0, 1] (normalisation belongs into the model).
    Units: nats.
    When to use: whole classes are to go and no retain records are left. On random records it
        teaches wrong classes, so that they stand out more than under retraining.
    Cost: one forward and backward pass over forget records for y', and one in each epoch.
    Differs from the official code: y' is found once, in eval mode, before the model changes (the
        original stays frozen there too).
    """
    forget = sight.forget
    model.to(sight.run.device)
    true = sight.task.batch(forget, range(len(forget))).targets_N
    with evaluating(model):
        nearest = torch.cat(
            [
                nearest_class(model, sight.task, forget, rows, config.step, sight.run)
                for rows in _chunks(len(forget), config.schedule.batch_size)
            ]
        )
    sight.run.emit("nearest", crossed=float((nearest != true).double().mean()))
    column = sight.task.labels  # type: ignore[attr-defined]
    records = forget.replace(**{column: nearest.tolist()})
    return sight.fit(model, {"forget": Stream(records)}, [likelihood(sight.task, "forget")], config)


def nearest_class(
    model: nn.Module, task: Task, records: Records, rows: Sequence[int], step: float, run: Run
) -> Int[Tensor, " B"]:
    """Return what a model says of inputs that were shifted against their labels.

    Args:
        model: The model, in eval mode.
        task: How to run it.
        records: The data.
        rows: Which of them.
        step: How far each value is shifted.
        run: Device.
    """
    batch = task.batch(records, rows).to(run.device)
    x = batch.inputs["x"].to(next(model.parameters()).dtype).requires_grad_()
    moved = dataclasses.replace(batch, inputs={**batch.inputs, "x": x})
    (slope,) = torch.autograd.grad(task.predict(model, moved).nll_B().sum(), x)
    shown = dataclasses.replace(
        batch, inputs={**batch.inputs, "x": shifted(x.detach(), slope, step)}
    )
    with torch.no_grad():
        return task.predict(model, shown).logits_NV.argmax(1).cpu()


def shifted(
    x: Float[Tensor, "B ..."], slope: Float[Tensor, "B ..."], step: float
) -> Float[Tensor, "B ..."]:
    """Return ``clip(x + step sign(slope), 0, 1)``, rounded to steps of 1/255."""
    return ((x + step * slope.sign()).clamp(0, 1) * _LEVELS).round() / _LEVELS


def _chunks(count: int, size: int) -> list[range]:
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
