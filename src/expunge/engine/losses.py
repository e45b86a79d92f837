"""Losses as pure functions of per-record and per-position values; nothing is reduced over records.

Shape legend: B records of a batch, N target positions, V classes or vocabulary. All in nats.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from expunge.core.errors import ConfigError
from expunge.engine.task import Estimates, Predictions


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


def preference(
    preferred_B: Float[Tensor, " B"],
    preferred_reference_B: Float[Tensor, " B"],
    nll_B: Float[Tensor, " B"],
    reference_B: Float[Tensor, " B"],
    beta: float,
) -> Float[Tensor, " B"]:
    """Return the preference loss of each record: its other answer is to win over its own.

    Args:
        preferred_B: Negative log-likelihood of the other answer, summed over its positions.
        preferred_reference_B: The same under the frozen model before unlearning.
        nll_B: Negative log-likelihood of the record's own answer, summed over its positions.
        reference_B: The same under the frozen model before unlearning.
        beta: Inverse temperature (β).

    Source: DPO (Rafailov et al., 2023), eq. 7, times 2/β as in NPO (Zhang et al., 2024).
    """
    gain_B = (preferred_reference_B - preferred_B) - (reference_B - nll_B)
    return (2.0 / beta) * F.softplus(-beta * gain_B)


def simnpo(
    nll_B: Float[Tensor, " B"], counts_B: Tensor, beta: float, delta: float
) -> Float[Tensor, " B"]:
    """Return NPO's loss with the likelihood per position in place of a reference.

    Args:
        nll_B: Negative log-likelihood, summed over the record's positions.
        counts_B: Number of positions of each record.
        beta: Inverse temperature (β).
        delta: Margin (δ), subtracted inside, in nats per position.

    Source: SimNPO (Fan et al., 2024), eq. 4.
    """
    return (2.0 / beta) * F.softplus(-beta * (nll_B / counts_B - delta))


def weighted_ascent(
    predictions: Predictions, weight: Callable[[Tensor], Tensor]
) -> Float[Tensor, " B"]:
    """Return minus the weighted cross entropy of each record, summed over its positions.

    Args:
        predictions: What the model says.
        weight: From the target's probability at each position to its weight; not differentiated.
    """
    logprobs_N = predictions.logprobs_N()
    weight_N = weight(logprobs_N.detach().exp())
    return predictions.sum_rows(weight_N * logprobs_N)


def unlikelihood(predictions: Predictions, skip: int = 0) -> Float[Tensor, " B"]:
    """Return -log(1 - p) of the targets of each record, summed over its positions.

    Its gradient is that of the cross entropy to the model's own distribution without the target.

    Args:
        predictions: What the model says.
        skip: Leave out the first positions of each record, but never all of them.

    Source: CE-U (Yang, 2025); Neural Text Generation with Unlikelihood Training (Welleck et al.,
        2020), eq. 4.
    """
    logits_NV = _wide(predictions.logits_NV)
    others_NV = logits_NV.scatter(1, predictions.targets_N[:, None], -torch.inf)
    # log(1 - p) is the share of all other symbols; 1 - p itself would round to 0.
    value_N = logits_NV.logsumexp(dim=1) - others_NV.logsumexp(dim=1)
    if skip:
        counts_B = torch.bincount(predictions.rows_N, minlength=predictions.num_rows)
        starts_B = counts_B.cumsum(0) - counts_B
        place_N = torch.arange(len(value_N), device=value_N.device) - starts_B[predictions.rows_N]
        skipped_N = place_N < (counts_B - 1).clamp(max=skip)[predictions.rows_N]
        value_N = value_N.masked_fill(skipped_N, 0.0)
    return predictions.sum_rows(value_N)


def lowered_teacher(teacher: Predictions, current: Predictions, beta: float) -> Float[Tensor, " B"]:
    """Return the cross entropy to the teacher's distribution with each target's logit lowered.

    Args:
        teacher: Predictions of the frozen model; no gradient flows into them.
        current: Predictions of the model being trained.
        beta: By how much the target's logit is lowered (β).

    Source: UNDIAL (Dong et al., 2025), eq. 3, at target positions only.
    """
    lowered_NV = _wide(teacher.logits_NV.detach()).clone()
    lowered_NV.scatter_add_(
        1, teacher.targets_N[:, None], torch.full_like(lowered_NV[:, :1], -beta)
    )
    shares_NV = lowered_NV.softmax(dim=-1)
    return current.sum_rows(-(shares_NV * F.log_softmax(_wide(current.logits_NV), -1)).sum(-1))


def to_uniform(predictions: Predictions) -> Float[Tensor, " B"]:
    """Return KL(uniform ‖ model) of each record, summed over its positions.

    Source: ULD (Ji et al., 2024), eq. 4.
    """
    logprobs_NV = F.log_softmax(_wide(predictions.logits_NV), dim=-1)
    return predictions.sum_rows(-logprobs_NV.mean(-1) - math.log(logprobs_NV.shape[1]))


def spread(predictions: Predictions) -> Float[Tensor, " B"]:
    """Return the squared distance of the largest logit to the mean, summed over positions.

    Source: PDU (Entesari et al., 2025), logit-margin flattening.
    """
    logits_NV = _wide(predictions.logits_NV)
    return predictions.sum_rows((logits_NV.amax(-1) - logits_NV.mean(-1)) ** 2)


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def divergence(reference: Predictions, current: Predictions) -> Float[Tensor, " B"]:
    """Return KL(reference ‖ current) of each record, summed over its target positions.

    Prompt and padding positions do not enter, since predictions exist at target positions only.

    Args:
        reference: Predictions of the frozen model; no gradient flows into them.
        current: Predictions of the model being trained.

    Raises:
        ConfigError: They are a regressor's, which are no distributions.
    """
    if isinstance(current, Estimates):
        raise ConfigError(
            "a regressor yields no distribution, so `kl` has nothing to compare; choose the retain "
            "term `nll`"
        )
    reference_NV = F.log_softmax(_wide(reference.logits_NV.detach()), dim=-1)
    current_NV = F.log_softmax(_wide(current.logits_NV), dim=-1)
    kl_N = (reference_NV.exp() * (reference_NV - current_NV)).sum(-1)
    return current.sum_rows(kl_N)


def softened_divergence(
    reference: Predictions, current: Predictions, temperature: float
) -> Float[Tensor, " B"]:
    """Return KL(softmax(z_ref / T) ‖ softmax(z / T)) of each record, summed over its positions.

    Args:
        reference: Predictions of the frozen model; no gradient flows into them.
        current: Predictions of the model being trained.
        temperature: T; the higher, the flatter both distributions.

    Source: Distilling the Knowledge in a Neural Network (Hinton et al., 2015), section 2, without
        the factor T².
    """
    soft = [
        dataclasses.replace(p, logits_NV=_wide(p.logits_NV) / temperature)
        for p in (reference, current)
    ]
    return divergence(*soft)
