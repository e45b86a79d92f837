"""TOFU's per-record metrics and model utility as pure functions of losses.

Shape legend: R records, J wrong answers. A loss is a negative log-likelihood per target, in nats;
NaN marks a wrong answer that a record lacks, and every record has at least one. Ratios are kept as
logarithms, since the losses of a destroyed model overflow their exponentials.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from scipy.special import logsumexp

from expunge.audit.stats import bootstrap_means, harmonic_mean

TITLES = {
    "probability": "Probability of the true answer",
    "rouge_l": "ROUGE-L recall of the generated answer",
    "truth_ratio": "Truth ratio",
    "truth_ratio_arithmetic": "Truth ratio (arithmetic mean, as in the paper)",
    "forget_quality": "Forget quality (p-value against retraining)",
    "forget_quality_log10": "Forget quality, decimal logarithm",
    "forget_quality_distance": "Largest distance D between the truth ratios' distributions",
}
UTILITY_METRICS = ("rouge_l", "probability", "truth_ratio")

Values = Mapping[str, np.ndarray]
"""One value per record, by metric; a metric that cannot be had is absent."""


def probability(loss_R: np.ndarray) -> np.ndarray:
    """Return the geometric mean probability per token of each answer."""
    return np.exp(-loss_R)


def choice_probability(loss_R: np.ndarray, wrong_RJ: np.ndarray) -> np.ndarray:
    """Return the true answer's share of the probability of all answers on offer.

    Args:
        loss_R: Loss of the true answer.
        wrong_RJ: Losses of the wrong ones.

    Source: TOFU (Maini et al., 2024), section 2.2.2, Probability.
    """
    offered = -np.column_stack([loss_R, wrong_RJ])
    return np.exp(-loss_R - logsumexp(np.where(np.isnan(offered), -np.inf, offered), axis=1))


def log_truth_ratio(paraphrase_R: np.ndarray, wrong_RJ: np.ndarray) -> np.ndarray:
    """Return log S: how much likelier the paraphrased truth is than wrong answers, geometrically.

    Args:
        paraphrase_R: Loss of the true answer in other words.
        wrong_RJ: Losses of the wrong answers.

    Source: TOFU (Maini et al., 2024), equation 1, inverted, with the geometric mean over wrong
        answers that the leaderboard uses.
    """
    return np.nanmean(wrong_RJ, axis=1) - paraphrase_R


def log_truth_ratio_arithmetic(paraphrase_R: np.ndarray, wrong_RJ: np.ndarray) -> np.ndarray:
    """Return log S with the arithmetic mean over wrong answers, as the paper prints it.

    Args:
        paraphrase_R: Loss of the true answer in other words.
        wrong_RJ: Losses of the wrong answers.

    Source: TOFU (Maini et al., 2024), equation 1, inverted.
    """
    present = ~np.isnan(wrong_RJ)
    total = logsumexp(np.where(present, -wrong_RJ, -np.inf), axis=1)
    return -paraphrase_R - (total - np.log(present.sum(axis=1)))


def cannot_tell(log_ratio_R: np.ndarray) -> np.ndarray:
    """Return min(S, 1/S): 1 where a model cannot tell truth from lies; for forgotten records.

    Args:
        log_ratio_R: Either log truth ratio.
    """
    return np.exp(-np.abs(log_ratio_R))


def prefers_truth(log_ratio_R: np.ndarray) -> np.ndarray:
    """Return max(0, 1 - 1/S): 1 where a model strongly prefers the truth; for other records.

    Args:
        log_ratio_R: Either log truth ratio.
    """
    return -np.expm1(-np.maximum(log_ratio_R, 0.0))


def utility(
    values: Mapping[str, Values], sets: Iterable[str], seed: int
) -> tuple[list[tuple[str, float]], np.ndarray]:
    """Return the named means whose harmonic mean is model utility, and the utility's draws.

    The draws are paired between models; where no mean can be had, there are none.

    Args:
        values: Values by record set.
        sets: The utility sets.
        seed: Seed of the bootstrap.

    Source: TOFU (Maini et al., 2024), section 2.2.3.
    """
    means, draws = [], []
    for name in sets:
        for metric in UTILITY_METRICS:
            if metric in values[name]:
                means.append((f"{metric} of {name}", float(values[name][metric].mean())))
                draws.append(bootstrap_means(values[name][metric], seed, name))
    return means, harmonic_mean(np.stack(draws)) if draws else np.empty(0)
