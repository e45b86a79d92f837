"""GS-LoRA++: GS-LoRA that also drives features of forgotten classes from where they were."""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from expunge.core.config import config
from expunge.engine.loop import Term
from expunge.engine.representation import represent, split
from expunge.engine.task import Batch
from expunge.forget.gs_lora import GSLoraConfig, check_groups, forget_in_groups, hinge_slope
from expunge.forget.method import Sight, method


@config
class GSLoraPPConfig(GSLoraConfig):
    """Settings of GS-LoRA++."""

    push: Annotated[float, Field(ge=0)] = 0.05
    """Weight of the term that drives forgotten classes from their prototypes; the paper takes 0.005
    to 0.5."""
    pull: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the term that holds retained classes at theirs; 0 in the public scripts."""
    prototype_bound: Annotated[float, Field(gt=0)] | None = None
    """Divergence from which on forgotten classes are driven no further, in nats; when absent 3 ln D
    for features of size D, which is 19 for the 512 of the paper, where it takes 18."""


@method(
    "gs_lora_pp",
    kinds={"classifier"},
    needs={"forget", "retain", "labels", "reference", "reference_model"},
    source="GS-LoRA++ (Zhao et al., 2025)",
    check=check_groups,
)
def gs_lora_pp(model: nn.Module, sight: Sight, config: GSLoraPPConfig) -> nn.Module:
    """Forget as GS-LoRA does, and move features away from the prototypes of forgotten classes.

    Adds ``w_f ReLU(BND_p - KL(forget)) + w_r KL(retain)`` to GS-LoRA's loss, where KL compares
    softmax(p_c), the prototype of a record's class, with softmax(e), its features. A prototype is
    the mean of the features, the head's input, over all records of a class, forgotten and retained,
    under the model before unlearning.

    Source: Practical Continual Forgetting (Zhao et al., 2025), eq. 11 to 14.
    Needs: forget records and a few retain records, both with labels; the model before unlearning.
    Units: nats per record.
    When to use: as gs_lora, with one or two records of each class, or where the features themselves
        are to change.
    Cost: as gs_lora, two forward and one backward pass more over forget records, one of each over
        retain records with ``pull``, and a second model for one pass over both.
    Differs from the official code: as gs_lora; prototypes are those of the model that this request
        is given, computed over all records that it is given; a class without any has none.
    """
    head = split(model).head
    prototypes_KD = _prototypes(sight, head)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        features_BD = represent(model, sight.task, batch, head)[0]
        return divergence(prototypes_KD[batch.targets_N].to(features_BD), features_BD)

    bound = config.prototype_bound or 3 * math.log(prototypes_KD.shape[1])
    push = Term("forget", loss, config.push, name="push", slope=hinge_slope(bound))
    pull = Term("retain", loss, config.pull, name="pull")
    return forget_in_groups(model, sight, config, [t for t in (push, pull) if t.weight])


def divergence(
    prototypes_BD: Float[Tensor, "B D"], features_BD: Float[Tensor, "B D"]
) -> Float[Tensor, " B"]:
    """Return KL(softmax(prototype) ‖ softmax(features)) of each record, in nats."""
    wide = torch.promote_types(features_BD.dtype, torch.float32)
    target_BD = F.log_softmax(prototypes_BD.to(wide), dim=-1)
    current_BD = F.log_softmax(features_BD.to(wide), dim=-1)
    return (target_BD.exp() * (target_BD - current_BD)).sum(-1)


@torch.no_grad()
def _prototypes(sight: Sight, head: str) -> Float[Tensor, "K D"]:
    """Return the mean feature of each class under the original model; NaN for absent classes."""
    features, classes = [], []
    for records in (sight.forget, sight.retain):
        for start in range(0, len(records), 256):
            rows = range(start, min(start + 256, len(records)))
            batch = sight.task.batch(records, rows).to(sight.run.device)
            features_BD, _ = represent(sight.reference_model, sight.task, batch, head)
            features.append(features_BD.double())
            classes.append(batch.targets_N)
    features_ND, classes_N = torch.cat(features), torch.cat(classes)
    members_KN = F.one_hot(classes_N, sight.task.num_classes).T.double()  # type: ignore[attr-defined]
    return members_KN @ features_ND / members_KN.sum(1, keepdim=True)
