"""TOFU's per-record values of one model, read off its scores, and its model utility.

Shape legend: R records, J wrong answers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from expunge.audit import tofu_metrics as metrics
from expunge.audit.evidence import Subject
from expunge.audit.readings import PARAPHRASE, PERTURBED, Reading
from expunge.audit.scores import Scores
from expunge.audit.stats import harmonic_mean
from expunge.audit.tofu_metrics import UTILITY_METRICS, Values
from expunge.core.sets import ROLES


def record_values(subject: Subject, plain: Reading) -> Values:
    """Return every metric of one record set.

    Args:
        subject: The model.
        plain: The set's reading of the true answers; the other views are found beside it.
    """
    truth = subject.scores.get(plain)
    if truth is None or not len(truth):
        return {}
    values = {"probability": metrics.probability(truth.loss_R)}
    if truth.rouge_R is not None:
        values["rouge_l"] = truth.rouge_R
    true_R, wrong_RJ = answer_losses(subject, plain)
    if not len(true_R):
        return values
    if plain.record_set not in ROLES:  # general questions are scored as multiple choice
        choice = answer_losses(subject, plain, paraphrased=False)
        values["probability"] = metrics.choice_probability(*choice)
    ratio = metrics.cannot_tell if plain.record_set == "forget" else metrics.prefers_truth
    values["truth_ratio"] = ratio(metrics.log_truth_ratio(true_R, wrong_RJ))
    values["truth_ratio_arithmetic"] = ratio(metrics.log_truth_ratio_arithmetic(true_R, wrong_RJ))
    return values


def answer_losses(
    subject: Subject, plain: Reading, *, paraphrased: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Return losses of true (R,) and wrong (R, J) answers of the records that have both.

    Args:
        subject: The model.
        plain: The set's reading of the true answers.
        paraphrased: Take the true answers in other words, unless the set has none.
    """
    truth = subject.scores[plain]
    others = {
        reading.view: _aligned(truth, scores)
        for reading, scores in subject.scores.items()
        if reading.view.startswith((PARAPHRASE, PERTURBED))
        and dataclasses.replace(reading, view=plain.view) == plain
    }
    true_R = others.pop(PARAPHRASE, np.full(len(truth), np.nan))
    if not paraphrased or np.isnan(true_R).all():
        true_R = truth.loss_R
    wrong_RJ = np.column_stack([np.full(len(truth), np.nan), *others.values()])
    whole_R = ~np.isnan(true_R) & ~np.isnan(wrong_RJ).all(axis=1)
    return true_R[whole_R], wrong_RJ[whole_R]


@dataclasses.dataclass(frozen=True, eq=False)
class Utility:
    """Model utility of one model.

    Attributes:
        value: The harmonic mean; ``None`` when there is nothing to measure it on.
        draws: Its bootstrap draws, paired between models.
        n: Records it rests on.
        absent: Numbers that could not be had.
    """

    value: float | None
    draws: np.ndarray
    n: int
    absent: tuple[str, ...]


def model_utility(values: Mapping[str, Values], sets: Sequence[str], seed: int) -> Utility:
    """Return the harmonic mean of ROUGE-L, probability and truth ratio over the utility sets.

    Args:
        values: Values by record set.
        sets: The utility sets.
        seed: Seed of the bootstrap.

    Source: TOFU (Maini et al., 2024), section 2.2.3.
    """
    means, draws = metrics.utility(values, sets, seed)
    absent = tuple(
        f"{metric} of {name}"
        for name in sets
        for metric in UTILITY_METRICS
        if metric not in values[name]
    )
    n = sum(max((len(one) for one in values[name].values()), default=0) for name in sets)
    value = float(harmonic_mean([mean for _, mean in means])) if means else None
    return Utility(value, draws, n, absent)


def _aligned(truth: Scores, view: Scores) -> np.ndarray:
    """Return a view's losses at the rows of the true answers, NaN where a record lacks it."""
    loss_R = np.full(len(truth), np.nan)
    loss_R[truth.rows(view.ids)] = view.loss_R
    return loss_R
