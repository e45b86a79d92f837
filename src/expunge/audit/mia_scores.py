"""Scores of membership inference attacks: how much each record looks as if it was trained on.

Higher means "member" for every score, as ``stats.auc`` takes it. Every target counts, the end of
text included.

Shape legend: R records, N targets, S other models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from expunge.audit.measures import of_model
from expunge.audit.scores import Scores
from expunge.core.errors import NumericalError, UnsupportedModelError, listing
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.modes import evaluating
from expunge.engine.task import Task

LEAST_VARIANCE = 1e-6
"""Where the model's own distribution has all but one outcome, no target would have a spread."""
LEAST_LOSS = 2.0**-25
"""Half of what single precision can tell a probability from 1; keeps a confidence finite."""
LEAST_SPREAD = 1e-6
"""Where models agree on a record to the last digit, their spread would be nothing."""


def loss(scores: Scores) -> np.ndarray:
    """Return minus the loss per target of each record.

    Source: Yeom et al. (2018), section 3.2.
    """
    return -scores.loss_R


def loss_per_byte(scores: Scores) -> np.ndarray:
    """Return minus the loss per target over the length of the compressed text.

    Text that is likely because it repeats itself compresses well, and so counts for less. The
    scores need the measure ``zlib``.

    Source: Carlini et al. (2021), section 5.2; MUSE (Shi et al., 2025) divides the mean loss, too.
    """
    return -scores.loss_R / scores.measured["zlib"]


def min_k(scores: Scores, k: float) -> np.ndarray:
    """Return the mean log-probability of the least likely targets of each record.

    Args:
        scores: What the model says.
        k: Share of the targets, rounded down, but at least one target.

    Source: Min-K% Prob (Shi et al., 2024), eq. 1.
    """
    return mean_of_lowest(scores.logprob_N.astype(np.float64), scores.offsets, k)


def min_k_plus(scores: Scores, k: float) -> np.ndarray:
    """Return the mean of the lowest standardised log-probabilities of each record.

    Each log-probability is set beside the mean and the standard deviation of the log-probability
    under the model's own distribution at that place.

    Args:
        scores: What the model says.
        k: Share of the targets, rounded down, but at least one target.

    Source: Min-K%++ (Zhang et al., 2024); the variance is at least 1e-6.
    """
    spread_N = np.sqrt(np.maximum(scores.variance_N.astype(np.float64), LEAST_VARIANCE))
    z_N = (scores.logprob_N.astype(np.float64) - scores.mean_N) / spread_N
    return mean_of_lowest(z_N, scores.offsets, k)


def mean_of_lowest(values_N: np.ndarray, offsets: np.ndarray, k: float) -> np.ndarray:
    """Return the mean of the lowest values of each record.

    Args:
        values_N: One value per target; those of one record lie next to each other.
        offsets: Where each record's targets begin, and the end: length R + 1.
        k: Share of the values, rounded down, but at least one.
    """
    n_R = np.diff(offsets)
    rows_N = np.repeat(np.arange(len(n_R)), n_R)
    # 0.29 * 100 is 28.999999999999996
    kept_R = np.maximum(np.floor(n_R * k + 1e-9).astype(np.int64), 1)
    place_N = np.arange(len(values_N)) - offsets[rows_N]
    lowest_N = values_N[np.lexsort((values_N, rows_N))]
    taken_N = np.where(place_N < kept_R[rows_N], lowest_N, 0.0)
    return np.bincount(rows_N, weights=taken_N, minlength=len(n_R)) / kept_R


def below_reference(scores: Scores, references: Sequence[Scores]) -> np.ndarray:
    """Return by how much each record's loss lies below its mean loss under other models.

    It takes out how hard a record is by nature.

    Args:
        scores: What the model says.
        references: What models say that never saw the records, at least one.

    Source: Watson et al. (2022), difficulty calibration.
    """
    reference_SR = np.stack([other.loss_R for other in references])
    return reference_SR.mean(axis=0) - scores.loss_R


def confidence(loss_R: np.ndarray) -> np.ndarray:
    """Return log(p / (1 - p)) of the mean probability p = exp(-loss) of a target.

    Args:
        loss_R: Loss per target of each record, in nats, at least 0.

    Source: Carlini et al. (2022), logit scaling.
    """
    floored_R = np.maximum(loss_R, LEAST_LOSS)
    value_R: np.ndarray = -floored_R - np.log(-np.expm1(-floored_R))
    return value_R


def above_shadows(
    confidence_R: np.ndarray, shadows_SR: np.ndarray, spread: float | None = None
) -> np.ndarray:
    """Return by how many standard deviations a confidence exceeds that of models without a record.

    The probability that such a model is less confident is Φ of it; that rounds to 1, and what
    rounds cannot be ranked.

    Args:
        confidence_R: Confidence of the model in question.
        shadows_SR: Confidence of models that never saw the records, at least two without a spread.
        spread: One standard deviation for all records; each record's own when absent.

    Source: Carlini et al. (2022), the offline attack: 1 - Pr[Z > φ].
    """
    spread_R = shadows_SR.std(axis=0, ddof=1) if spread is None else np.float64(spread)
    return (confidence_R - shadows_SR.mean(axis=0)) / np.maximum(spread_R, LEAST_SPREAD)


def pooled_spread(shadows_SR: np.ndarray) -> float:
    """Return the root of the mean of the records' variances over the models, at least two.

    Source: Carlini et al. (2022): one variance for all where models are few.
    """
    return float(np.sqrt(shadows_SR.var(axis=0, ddof=1).mean()))


@of_model("grad_norm")
def gradient_norm(model: nn.Module, task: Task, records: Records, run: Run) -> np.ndarray:
    """Return the norm of the gradient of each record's loss per target over all weights.

    Records are run one by one, in eval mode, so that a value does not depend on the others. Weights
    that a method has frozen count as well, so that models are compared on the same ones. Gradients,
    modes and what is frozen stay as they were.

    Raises:
        NumericalError: A gradient is not finite.
        UnsupportedModelError: No weight has a gradient.
        Interrupted: Cancelled, or the budget is spent.

    Source: Nasr et al. (2019), white-box inference.
    """
    model.to(run.device)
    weights = [weight for weight in model.parameters() if weight.is_floating_point()]
    frozen = [weight for weight in weights if not weight.requires_grad]
    norm_R = np.empty(len(records))
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        with evaluating(model), run.progress("gradient norms", len(records)) as bar:
            for row in range(len(records)):
                run.check()
                norm_R[row] = _norm(model, task, records, row, weights, run.device)
                bar.advance(1)
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
    if not np.isfinite(norm_R).all():
        wrong = [records.ids[row] for row in np.flatnonzero(~np.isfinite(norm_R))]
        raise NumericalError(
            f"{len(wrong)} records have a gradient that is not finite ({listing(wrong)}); the "
            "model's weights are damaged, or its type is too narrow: leave grad_norm out"
        )
    return norm_R


def _norm(
    model: nn.Module,
    task: Task,
    records: Records,
    row: int,
    weights: list[nn.Parameter],
    device: str,
) -> float:
    with torch.enable_grad():
        predictions = task.predict(model, task.batch(records, [row]).to(device))
        value = predictions.nll_B().sum() / len(predictions.targets_N)
        if not value.requires_grad:
            raise UnsupportedModelError(
                f"a {type(model).__name__} passes no gradient to its weights; leave grad_norm out"
            )
        gradients = torch.autograd.grad(value, weights, allow_unused=True)
    squares = [g.double().pow(2).sum() for g in gradients if g is not None]
    return float(torch.stack([square.cpu() for square in squares]).sum().sqrt())
