"""Losses as pure functions of per-record and per-position values; nothing is reduced over records.

Shape legend: B records of a batch, N target positions, V classes or vocabulary. All in nats.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from expunge.engine.task import Predictions


def npo(
    nll_B: Float[Tensor, " B"], reference_B: Float[Tensor, " B"], beta: float
) -> Float[Tensor, " B"]:
    """Return the negative preference loss of each record.

    Args:
        nll_B: Negative log-likelihood under the model, summed over the record's positions.
        reference_B: The same under the frozen model before unlearning.
        beta: Inverse temperature (β); towards 0 the gradient becomes gradient ascent's.

    Source: NPO (Zhang et al., 2024), eq. 3: (2/β) log(1 + (π_θ/π_ref)^β).
    """
    return (2.0 / beta) * F.softplus(-beta * (nll_B - reference_B))


def npo_weight(
    nll_B: Float[Tensor, " B"], reference_B: Float[Tensor, " B"], beta: float
) -> Float[Tensor, " B"]:
    """Return the weight W = 2 σ(-β d) that NPO puts on each record's gradient; a progress meter.

    Source: NPO (Zhang et al., 2024), eq. 4.
    """
    return 2.0 * (-beta * (nll_B - reference_B)).sigmoid()


def divergence(reference: Predictions, current: Predictions) -> Float[Tensor, " B"]:
    """Return KL(reference ‖ current) of each record, summed over its target positions.

    Prompt and padding positions do not enter, since predictions exist at target positions only.

    Args:
        reference: Predictions of the frozen model; no gradient flows into them.
        current: Predictions of the model being trained.
    """
    wide = torch.promote_types(current.logits_NV.dtype, torch.float32)
    reference_NV = F.log_softmax(reference.logits_NV.detach(), dim=-1, dtype=wide)
    current_NV = F.log_softmax(current.logits_NV, dim=-1, dtype=wide)
    kl_N = (reference_NV.exp() * (reference_NV - current_NV)).sum(-1)
    return current.sum_rows(kl_N)
