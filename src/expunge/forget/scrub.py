"""SCRUB: a student that disobeys its teacher on the forget set and obeys it elsewhere."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from expunge.core.config import config
from expunge.engine.loop import History, Stream, Term
from expunge.engine.losses import softened_divergence
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope
from expunge.engine.task import Batch
from expunge.forget.method import Sight, method


@config
class ScrubConfig:
    """Settings of SCRUB."""

    forget_epochs: Annotated[int, Field(ge=1)] = 2
    """Epochs that begin with a pass over the forget set (M); the rest read retain records only."""
    gamma: Annotated[float, Field(ge=0)] = 0.99
    """Weight of the retain set's cross entropy (γ)."""
    alpha: Annotated[float, Field(ge=0)] = 0.001
    """Weight of the retain set's distance to the teacher (α)."""
    temperature: Annotated[float, Field(gt=0)] = 4.0
    """Temperature of the distance (T)."""
    scope: Scope = Scope()
    """Which weights may move."""
    schedule: Schedule = Schedule(
        epochs=10,
        batch_size=64,
        order="sequential",
        optimizer="sgd",
        lr=0.025,
        weight_decay=5e-4,
        freeze_norm_statistics=False,
    )
    """Settings of the loop; ``sequential`` passes over the forget set, then over the retain set.
    The learning rate was chosen on 2,000 small pictures of Fashion-MNIST: average gap to retraining
    6.6 points, 7.6 at 0.02 (``benchmarks/baselines.py``)."""


@method(
    "scrub",
    kinds={"classifier"},
    needs={"forget", "retain", "labels", "reference_model"},
    source="SCRUB (Kurmanji et al., 2023)",
)
def scrub(model: nn.Module, sight: Sight, config: ScrubConfig) -> nn.Module:
    """Alternate between leaving the teacher on the forget set and learning the retain set.

    In each of the first M epochs a pass over the forget set minimises ``-KL_T``, and then one over
    the retain set minimises ``γ CE + α KL_T``; later epochs have the second pass only. Here
    ``KL_T = T² KL(softmax(t/T) ‖ softmax(s/T))`` with the original model as teacher t. At the start
    student and teacher are one and the divergence has no slope, so the first pass hardly moves.

    Source: Towards Unbounded Machine Unlearning (Kurmanji et al., 2023), eq. 3 and algorithm 1.
    Needs: forget and retain records, the latter's labels; the original model (a second model).
    Units: nats.
    When to use: retained records are at hand and forgetting should be strong; check that the rest
        recovered, and for privacy that the forget set is not worse than under retraining.
    Cost: a forward and backward pass over retain records in each epoch and over forget records in
        M of them, with a forward pass of the original beside each.
    Differs from the official code: one batch size and learning rate serve both passes; momentum
        starts anew when the forget passes end.
    """
    teacher_model, task, square = sight.reference_model, sight.task, config.temperature**2

    def distance(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            teacher = task.predict(teacher_model, batch)
        student = task.predict(model, batch)
        kl_B = square * softened_divergence(teacher, student, config.temperature)
        return kl_B, student.nll_B()

    def leave(model: nn.Module, batch: Batch) -> Tensor:
        return distance(model, batch)[0]

    def obey(model: nn.Module, batch: Batch) -> Tensor:
        kl_B, nll_B = distance(model, batch)
        return config.gamma * nll_B + config.alpha * kl_B

    retain, kept = Stream(sight.retain), Term("retain", obey, 1.0, "target")
    first = min(config.forget_epochs, config.schedule.epochs)
    sight.fit(
        model,
        {"forget": Stream(sight.forget), "retain": retain},
        [Term("forget", leave, -1.0, "target"), kept],
        _lasting(config, first),
        part="both",
    )
    if first < config.schedule.epochs:
        before = sight.history
        rest = _lasting(config, config.schedule.epochs - first)
        sight.fit(model, {"retain": retain}, [kept], rest, part="retain")
        sight.history = _joined(before, sight.history)
    return model


def _lasting(config: ScrubConfig, epochs: int) -> ScrubConfig:
    schedule = dataclasses.replace(config.schedule, epochs=epochs)
    return dataclasses.replace(config, schedule=schedule)


def _joined(first: History, second: History) -> History:
    """Return the numbers of two loops, one after the other, with steps counted on."""
    done = len(first.steps)
    later = [{**numbers, "step": numbers["step"] + done} for numbers in second.steps]
    return History(
        [*first.steps, *later], first.stopped or second.stopped, first.guarded or second.guarded
    )
