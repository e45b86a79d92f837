"""Retraining from before the data: the oracle that every other method is compared with."""

from __future__ import annotations

from torch import nn

from expunge.core.config import config
from expunge.engine.loop import Stream
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope
from expunge.forget.method import Sight, method
from expunge.train.supervised import likelihood


@config
class RetrainConfig:
    """Settings of retraining; a recipe fills them from its ``train`` section."""

    scope: Scope = Scope()
    """Which weights may move."""
    schedule: Schedule = Schedule(freeze_norm_statistics=False)
    """Settings of the loop; those of the original training."""


@method(
    "retrain",
    kinds={"causal_lm", "classifier", "regressor"},
    needs={"retain", "labels", "fresh"},
    source="the definition of exact unlearning (Cao & Yang, 2015; Bourtoule et al., 2021)",
    guarantee="exact",
)
def retrain(model: nn.Module, sight: Sight, config: RetrainConfig) -> nn.Module:
    """Train again on the retain set, from the model that never saw the forget set.

    The result does not depend on the forget records at all.

    Source: Bourtoule et al., 2021 (SISA), section 3.
    Needs: retain records with labels (all that was trained on but the forget set); the model from
        before training.
    Units: nats per target position.
    When to use: the records must be gone beyond doubt and the original training can be repeated.
    Cost: the original training.
    Differs from the official code: there is none.
    """
    del model
    streams = {"train": Stream(sight.kept)}
    return sight.fit(
        sight.fresh(), streams, [likelihood(sight.task, "train")], config, guarded=False
    )
