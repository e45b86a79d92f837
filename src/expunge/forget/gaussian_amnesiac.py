"""Gaussian Amnesiac: learn random targets for the forget set, as likely as any."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import nn

from expunge.core.config import config
from expunge.engine.loop import Stream
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope
from expunge.forget.method import Given, Sight, method
from expunge.train.supervised import likelihood


@config
class GaussianAmnesiacConfig:
    """Settings of Gaussian Amnesiac."""

    alpha: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the retain term (α)."""
    scope: Scope = Scope()
    """Which weights may move."""
    schedule: Schedule = Schedule(
        epochs=1, batch_size=256, order="mixed", optimizer="adamw", lr=1e-3, weight_decay=0.0
    )
    """Settings of the loop; the paper passes once over everything, shuffled together."""


def _check(model: nn.Module, given: Given, config: GaussianAmnesiacConfig) -> None:
    del model, config
    given.task.neutral(given.forget.take([0]), 0, 0)  # raises where no Gaussian is known


@method(
    "gaussian_amnesiac",
    kinds={"regressor"},
    needs={"forget", "retain", "labels", "neutral"},
    source="Deep Regression Unlearning (Tarun et al., 2023)",
    check=_check,
)
def gaussian_amnesiac(model: nn.Module, sight: Sight, config: GaussianAmnesiacConfig) -> nn.Module:
    """Fine-tune a short time on everything, with random targets for the forget set.

    Minimises ``L = l(forget, y') + α l(retain, y)`` over mixed batches, with y' drawn once from a
    Gaussian of the training targets' mean and standard deviation. Forgotten targets are not read.

    Source: Deep Regression Unlearning (Tarun et al., 2023), section 4.1.
    Needs: forget and retain records, the latter's targets; mean and deviation of all targets.
    Units: the regressor's loss, in target units.
    When to use: a quick baseline. It pushes outputs to the mean of all targets, which is farther
        from retraining than doing nothing where the rest of the data tells the forgotten targets.
    Cost: one forward and backward pass over forget and retain records.
    Differs from the official code: none known.
    """
    streams = {
        "forget": Stream(sight.neutral().records),  # drawn once, not anew each epoch
        "retain": Stream(sight.retain),
    }
    terms = [likelihood(sight.task, "forget"), likelihood(sight.task, "retain", config.alpha)]
    return sight.fit(model, streams, terms, config)
