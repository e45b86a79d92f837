"""Fine-tuning on what is retained, hoping that the rest fades."""

from __future__ import annotations

from torch import nn

from expunge.core.config import config
from expunge.engine.loop import Stream
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope
from expunge.forget.method import Sight, method
from expunge.train.supervised import likelihood


@config
class FinetuneConfig:
    """Settings of fine-tuning."""

    scope: Scope = Scope()
    """Which weights may move."""
    schedule: Schedule = Schedule(
        epochs=10,
        batch_size=64,
        optimizer="sgd",
        lr=0.01,
        weight_decay=5e-4,
        freeze_norm_statistics=False,
    )
    """Settings of the loop."""


@method(
    "finetune",
    kinds={"causal_lm", "classifier", "regressor"},
    needs={"retain", "labels"},
    source="SalUn (Fan et al., 2024), baseline FT; Warnecke et al., 2023",
)
def finetune(model: nn.Module, sight: Sight, config: FinetuneConfig) -> nn.Module:
    """Train on the retain set only (FT).

    Minimises ``L = CE(retain)``. Cheap and harmless to utility; forgets little in few epochs.

    Source: SalUn (Fan et al., 2024), section 5, baseline FT.
    Needs: retain records with labels.
    Units: nats per target position.
    When to use: retained records are many and forgetting may be slight; a lower bound for others.
    Cost: one forward and backward pass over retain records.
    Differs from the official code: none known.
    """
    streams = {"retain": Stream(sight.retain)}
    return sight.fit(model, streams, [likelihood(sight.task, "retain")], config)
