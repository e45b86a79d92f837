"""SalUn: random labelling that may only move the salient weights."""

from __future__ import annotations

from torch import nn

from expunge.core.config import config
from expunge.engine.masks.mask import Mask
from expunge.engine.scope import Scope
from expunge.forget.method import Sight, method
from expunge.forget.random_label import RandomLabelConfig, check_labels, random_label


@config
class SalUnConfig(RandomLabelConfig):
    """Settings of SalUn. Any other method takes the same mask through its own ``scope.mask``."""

    scope: Scope = Scope(mask=Mask(by="saliency", fraction=0.5))
    """Which weights may move: half of them, by saliency (s = 0.5)."""


@method(
    "salun",
    kinds={"causal_lm", "classifier"},
    needs={"forget", "retain", "labels", "neutral"},
    source="SalUn (Fan et al., 2024)",
    check=check_labels,
)
def salun(model: nn.Module, sight: Sight, config: SalUnConfig) -> nn.Module:
    """Random labelling on the weights with the largest forgetting gradient.

    ``θ_u = m ⊙ (θ_0 + Δθ) + (1 - m) ⊙ θ_0`` with m the top share s of ``|∇_θ CE(forget)|`` over all
    weights, and Δθ from random labelling. Weights outside the mask keep their bits.

    Source: SalUn (Fan et al., 2024), eq. 2 to 5.
    Needs: forget and retain records with labels; neutral answers.
    Units: nats per target position.
    When to use: classifiers, and wherever random labelling would destroy too much.
    Cost: as random_label, and one forward and backward pass over the forget set for the mask.
    Differs from the official code: masked weights are restored after every step (momentum and
        weight decay would move them); ties in the ranking are broken by index; y' is
        never the true label, unless ``exclude_true_label`` is false.
    """
    return random_label(model, sight, config)
