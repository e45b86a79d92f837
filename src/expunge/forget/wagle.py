"""WAGLE: NPO on the weights to which the forget set is attributed."""

from __future__ import annotations

from torch import nn

from expunge.core.config import config
from expunge.engine.masks.mask import Mask
from expunge.engine.scope import Scope
from expunge.forget.method import Need, Sight, method
from expunge.forget.npo import NPOConfig, npo
from expunge.forget.retain_terms import RetainTerm, retain_needs


@config
class WagleConfig(NPOConfig):
    """Settings of WAGLE. Any other method takes the same mask through its own ``scope.mask``."""

    retain: RetainTerm = "nll"
    """Retain term: ``nll`` or ``kl``; the mask reads retain records, so ``none`` cannot do."""
    scope: Scope = Scope(mask=Mask(by="attribution", fraction=0.95))
    """Which weights may move: 95 % of them, by attribution."""


def _needs(config: WagleConfig) -> set[Need]:
    return {"forget", "labels", "reference", "retain", *retain_needs(config.retain)}


@method(
    "wagle",
    kinds={"causal_lm", "classifier"},
    needs=_needs,
    source="WAGLE (Jia et al., 2024)",
)
def wagle(model: nn.Module, sight: Sight, config: WagleConfig) -> nn.Module:
    """Run NPO on the weights whose removal would hurt the memory of the forget set most.

    Minimises NPO's loss, ``L = γ (2/β) mean_i log(1 + (π_θ/π_ref)^β) + α R(retain)``, over the
    entries with the largest ``|(θ - g_r/κ) g_f|``, with g_f and g_r the gradients of the cross
    entropy on forget and retain set and κ the curvature ``scope.mask.curvature`` (the paper's γ).
    All other entries keep their bits.

    Source: WAGLE (Jia et al., 2024), eq. 9.
    Needs: forget and retain records with labels; likelihoods under the original model.
    Units: nats, summed over the target positions of a record.
    When to use: few weights are to change, or it is to be known which ones hold the records.
    Cost: as npo, and one forward and backward pass over both sets before the first step.
    Differs from the official code: NPO works on the sum over each record, not on a batch mean;
        gradients are means, not sums; clipping sees masked gradients only; weight decay does not
        move entries outside the mask.
    """
    return npo(model, sight, config)
