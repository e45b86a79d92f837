"""CF-k: fine-tune the last layers on what is retained, hoping that the rest fades."""

from __future__ import annotations

from torch import Tensor, nn

from expunge.core.config import config
from expunge.engine.loop import Stream, Term
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope
from expunge.engine.task import Batch, Task
from expunge.forget.method import Sight, method


@config
class CFkConfig:
    """Settings of CF-k."""

    scope: Scope = Scope(last_layers=1)
    """Which weights may move: the last k layers (``last_layers``); all of them when it is absent,
    which is fine-tuning."""
    schedule: Schedule = Schedule(
        epochs=10, batch_size=64, optimizer="sgd", lr=0.01, weight_decay=5e-4
    )
    """Settings of the loop."""


@method(
    "cfk",
    kinds={"causal_lm", "classifier", "regressor"},
    needs={"retain", "labels"},
    source="Goel et al., 2022 (Towards Adversarial Evaluations for Inexact Unlearning), CF-k",
)
def cfk(model: nn.Module, sight: Sight, config: CFkConfig) -> nn.Module:
    """Train the last k layers further on the retain set (catastrophic forgetting).

    Minimises ``L = CE(retain)`` over the last k layers. What lies before them is frozen: it runs in
    eval mode, is outside the graph and keeps its bits, and with them all that it knows.

    Source: Goel et al., 2022, section 4; Corrective Machine Unlearning (Goel et al., 2024).
    Needs: retain records with labels.
    Units: nats per target position; a regressor's own loss.
    When to use: a cheap baseline; it proves nothing about the frozen layers.
    Cost: one forward pass over retain records, and a backward pass through the last k layers.
    Differs from the official code: layers are counted as blocks, see ``scope.last_layers``;
        batch-norm statistics stay frozen by default in the last layers too.
    """
    return sight.fit(model, {"retain": Stream(sight.retain)}, [quiet_prefix(sight.task)], config)


def quiet_prefix(task: Task) -> Term:
    """Return the likelihood of retain records with all layers before the moving ones in eval mode.

    Args:
        task: How to run the model.
    """

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        for module in frozen_prefix(model):
            module.eval()  # until the loop ends, which restores all modes
        return task.predict(model, batch).nll_B()

    return Term("retain", loss, 1.0, "target")


def frozen_prefix(model: nn.Module) -> list[nn.Module]:
    """Return the modules that are registered before the first one that owns a moving parameter."""
    found = []
    for module in model.modules():
        if any(p.requires_grad for p in module.parameters(recurse=False)):
            break
        if not any(p.requires_grad for p in module.parameters()):
            found.append(module)
    return found
