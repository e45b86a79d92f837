"""Last layers of ordinary networks, and the task that runs a network with such a head."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from expunge.core.config import config
from expunge.core.errors import ConfigError
from expunge.data.dataset import Dataset
from expunge.engine.task import Task
from expunge.engine.tasks.classifier import Classifier
from expunge.engine.tasks.open_set import OpenSet
from expunge.engine.tasks.regressor import RegressionLoss, Regressor


@config
class Head:
    """What a network yields."""

    kind: Literal["linear", "cosine"] = "linear"
    """``cosine`` compares directions, as face recognition does; for classifiers."""
    scale: Annotated[float, Field(gt=0)] = 16.0
    """Length of the logits of a cosine head (s); 64 for thousands of classes."""
    margin: Annotated[float, Field(ge=0, lt=2)] = 0.2
    """By how much the true class's cosine is lowered in training (m)."""
    loss: RegressionLoss = "l1"
    """Loss of a regressor: ``l1``, ``mse`` or ``quantile``."""
    quantiles: tuple[float, ...] = ()
    """Quantiles that a regressor yields, with ``quantile``."""


class CosineHead(nn.Linear):
    """Logits are the cosine between features and each class's direction, times a scale.

    A linear layer without bias, so that methods find it as one.

    Args:
        width: Size of the features.
        num_classes: K.
        scale: Factor of the cosine (s).

    Source: CosFace (Wang et al., 2018), eq. 4 without the margin, which the task subtracts.
    """

    def __init__(self, width: int, num_classes: int, scale: float) -> None:
        super().__init__(width, num_classes, bias=False)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Return scaled cosines, (B, K)."""
        return self.scale * F.linear(F.normalize(x, dim=-1), F.normalize(self.weight, dim=-1))


def make_head(head: Head, dataset: Dataset, width: int) -> tuple[nn.Module, Task]:
    """Return a network's last layer, with fresh weights, and its task.

    Args:
        head: Settings.
        dataset: Its kind and facts decide the size.
        width: Size of the features.

    Raises:
        ConfigError: Settings do not fit the kind of data.
    """
    facts = dataset.facts
    if dataset.kind == "regressor":
        if head.kind != "linear":
            raise ConfigError("model.head.kind = 'cosine' is for classes; regressors take 'linear'")
        task = Regressor(
            facts["num_outputs"],
            loss=head.loss,
            quantiles=head.quantiles,
            mean=facts.get("target_mean", ()),
            deviation=facts.get("target_std", ()),
        )
        return _centred(nn.Linear(width, task.num_outputs), task), task
    num_classes = facts["num_classes"]
    if head.kind == "linear":
        return nn.Linear(width, num_classes), Classifier(num_classes)
    layer = CosineHead(width, num_classes, head.scale)
    return layer, OpenSet(num_classes, margin=head.scale * head.margin)


@torch.no_grad()
def _centred(layer: nn.Linear, task: Regressor) -> nn.Linear:
    """Start at the training targets' mean, from which a network would first have to find it."""
    if task.mean:
        layer.bias.copy_(torch.tensor(task.mean).expand_as(layer.bias))
    return layer
