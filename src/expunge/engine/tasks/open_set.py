"""Open-set recognition: classes are directions, and a stranger is nobody's.

Shape legend: B records of a batch, K classes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from expunge.core.errors import ConfigError
from expunge.engine.task import Batch, Predictions, task
from expunge.engine.tasks.classifier import Classifier


@dataclasses.dataclass(frozen=True)
class WithMargin(Predictions):
    """Predictions whose likelihood is that with a margin on the true class.

    Attributes:
        margin: Subtracted from the true class's logit before the softmax; the logits themselves
            stay as the model yields them, so that distances between models read no label.
    """

    margin: float

    @property
    def lowered_NV(self) -> Float[Tensor, "N V"]:
        """The logits, less the margin at the true class."""
        margins_NV = torch.zeros_like(self.logits_NV)
        return self.logits_NV - margins_NV.scatter_(1, self.targets_N[:, None], self.margin)

    def logprobs_N(self) -> Float[Tensor, " N"]:
        """Return the log-probability of each target under the margin, in nats."""
        lowered = Predictions(self.lowered_NV, self.targets_N, self.rows_N, self.num_rows)
        return lowered.logprobs_N()


@task("open_set", "any nn.Module that yields scaled cosines: inputs (B, ...) -> logits (B, K)")
class OpenSet(Classifier):
    """Classifier over enrolled people, trained with a margin on the true one.

    The margin enters the likelihood only, and in train mode only: logits, scores and audits are
    free of it. Everything that serves classifiers serves it.

    Args:
        num_classes: K, at least 2.
        margin: Subtracted from the true class's logit while training: s · m of CosFace.
        inputs: Column with the inputs.
        labels: Column with the class of each record.

    Raises:
        ConfigError: The margin is negative, or there are fewer than two classes.

    Source: CosFace (Wang et al., 2018), eq. 4; evaluated without the margin (card GS-LoRA).
    """

    def __init__(
        self, num_classes: int, *, margin: float, inputs: str = "x", labels: str = "y"
    ) -> None:
        super().__init__(num_classes, inputs=inputs, labels=labels)
        if not margin >= 0:
            raise ConfigError(f"margin = {margin} must be at least 0")
        self.margin = margin

    def predict(self, model: nn.Module, batch: Batch) -> Predictions:
        """Return the logits of every record; their likelihood has the margin in train mode."""
        found = super().predict(model, batch)
        if not model.training:
            return found
        return WithMargin(
            found.logits_NV, found.targets_N, found.rows_N, found.num_rows, self.margin
        )

    def identify(self, logits_BK: Tensor, threshold: float) -> Int[Tensor, " B"]:
        """Return who each record is, or -1 for a stranger.

        Args:
            logits_BK: The model's logits.
            threshold: Least logit that is somebody's; s times a cosine.
        """
        best = logits_BK.max(dim=1)
        return torch.where(best.values >= threshold, best.indices, -1)

    def fingerprint(self) -> dict[str, Any]:
        """Return kind, classes, columns and margin."""
        return {**super().fingerprint(), "margin": self.margin}
