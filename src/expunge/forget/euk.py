"""EU-k: draw the last layers anew and train them on what is retained."""

from __future__ import annotations

from torch import nn

from expunge.core.config import config
from expunge.core.errors import ConfigError
from expunge.engine.blocks import require_blocks
from expunge.engine.loop import Stream
from expunge.engine.reset import redrawn
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope, scoped
from expunge.forget.cfk import quiet_prefix
from expunge.forget.method import Given, Sight, method


@config
class EUkConfig:
    """Settings of EU-k."""

    scope: Scope = Scope(last_layers=1)
    """Which weights are drawn anew and may move: the last k layers (``last_layers``); all of them
    when it is absent, which is training from scratch."""
    schedule: Schedule = Schedule(
        epochs=10,
        batch_size=64,
        optimizer="sgd",
        lr=0.01,
        weight_decay=5e-4,
        freeze_norm_statistics=False,
    )
    """Settings of the loop; batch norm that is drawn anew learns its statistics anew."""


def _check(model: nn.Module, given: Given, config: EUkConfig) -> None:
    del given
    for name in ("mask", "lora"):
        if getattr(config.scope, name) is not None:
            raise ConfigError(
                f"forget.scope.{name} holds weights in place and euk draws whole layers anew; "
                "leave it out, or choose cfk"
            )
    if config.scope.last_layers is not None:
        require_blocks(model, config.scope.last_layers, "forget.scope.last_layers")


@method(
    "euk",
    kinds={"causal_lm", "classifier", "regressor"},
    needs={"retain", "labels"},
    source="Goel et al., 2022 (Towards Adversarial Evaluations for Inexact Unlearning), EU-k",
    check=_check,
)
def euk(model: nn.Module, sight: Sight, config: EUkConfig) -> nn.Module:
    """Train the last k layers from scratch on the retain set (exact unlearning of these layers).

    Draws the last k layers anew and minimises ``L = CE(retain)`` over them. What lies before them
    runs in eval mode, is outside the graph and keeps its bits: it was learned from the forget set
    too, so nothing about the whole model is exact.

    Source: Goel et al., 2022, section 4; Corrective Machine Unlearning (Goel et al., 2024).
    Needs: retain records with labels, enough to train k layers.
    Units: nats per target position; a regressor's own loss.
    When to use: what is to go sits in the last layers; a stronger baseline than cfk.
    Cost: as cfk, for as many epochs as the last layers need from scratch.
    Differs from the official code: layers are counted as blocks, see ``scope.last_layers``; every
        layer at any depth is drawn anew, and one that cannot be is an error, where a public
        implementation resets direct children only.
    """
    with scoped(model, sight.task, config.scope, {}, sight.run) as selection:
        names = list(selection.parameters)
    fresh = redrawn(model, sight.run.stream_seed("redrawn"), names)
    model.load_state_dict(fresh.state_dict())
    return sight.fit(model, {"retain": Stream(sight.retain)}, [quiet_prefix(sight.task)], config)
