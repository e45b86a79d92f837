"""The support-vector attack of the unlearning protocol, and what it looks at.

Shape legend: R records, D features, V classes.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from sklearn.svm import SVC

from expunge.audit.outputs import LABEL, PROBABILITIES, measured
from expunge.audit.scores import Scores
from expunge.core.streams import stream

Feature = Literal["confidence", "correctness", "entropy", "modified_entropy", "probabilities"]
"""What the attack looks at of each record."""

NEEDS: dict[Feature, tuple[str, ...]] = {
    "modified_entropy": (LABEL, PROBABILITIES),
    "probabilities": (PROBABILITIES,),
}
"""Measures that a feature is made of, for those that likelihoods do not tell."""

_LEAST = 1e-30  # stands for a probability of 0 in a logarithm


def feature(scores: Scores, name: Feature) -> np.ndarray:
    """Return one feature of each record, (R, D); D is 1 for all but ``probabilities``.

    Args:
        scores: What a classifier says.
        name: Which feature; see ``NEEDS``.

    Raises:
        DataError: A measure was not taken.
    """
    if name == "probabilities":
        return measured(scores, PROBABILITIES)
    if name == "modified_entropy":
        label_R = measured(scores, LABEL).astype(np.int64)
        return modified_entropy(measured(scores, PROBABILITIES), label_R)[:, None]
    values = {
        "confidence": np.exp(scores.logprob_N),
        "correctness": scores.greedy_N.astype(np.float64),
        "entropy": -scores.mean_N.astype(np.float64),
    }
    return values[name][:, None]


def modified_entropy(probabilities_RV: np.ndarray, label_R: np.ndarray) -> np.ndarray:
    """Return the entropy that falls with the true class's probability and rises with others'.

    ``-(1 - p_y) ln p_y - sum over j != y of p_j ln(1 - p_j)``

    Args:
        probabilities_RV: Probability of every class.
        label_R: True class.

    Source: Song and Mittal (2021), Systematic Evaluation of Privacy Risks of Machine Learning
        Models, eq. 8. Public unlearning code takes ln p where ln(1 - p) is due.
    """
    rows = np.arange(len(label_R))
    true_R = probabilities_RV[rows, label_R]
    terms_RV = probabilities_RV * np.log(np.maximum(1 - probabilities_RV, _LEAST))
    terms_RV[rows, label_R] = (1 - true_R) * np.log(np.maximum(true_R, _LEAST))
    value_R: np.ndarray = -terms_RV.sum(axis=1)
    return value_R


def svc_nonmembers(
    members: np.ndarray,
    nonmembers: np.ndarray,
    targets: np.ndarray,
    gamma: Literal["auto", "scale"] = "auto",
) -> np.ndarray:
    """Return which targets a support-vector classifier calls non-members.

    Args:
        members: A feature, (R,) or (R, D), of records that were trained on.
        nonmembers: The same of records that were not.
        targets: The same of the records in question.
        gamma: Width of the kernel: ``auto`` is 1 / D, ``scale`` divides it by the variance.

    Source: SalUn (Fan et al., 2024), section 5: C = 3, RBF kernel, gamma = 1 / number of features.
    """
    known, unknown, asked = (
        values[:, None] if values.ndim == 1 else values for values in (members, nonmembers, targets)
    )
    labels = np.repeat([1, 0], [len(known), len(unknown)])
    attacker = SVC(C=3, kernel="rbf", gamma=gamma).fit(np.concatenate([known, unknown]), labels)
    called_R: np.ndarray = attacker.predict(asked) == 0
    return called_R


def drawn_alike(retain: int, test: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of as many retained as test records: the larger set is drawn from.

    Args:
        retain: How many retained records there are.
        test: How many test records there are.
        seed: The run's seed.
    """
    size = min(retain, test)
    members = stream(seed, "mia", "members").choice(retain, size, replace=False)
    strangers = stream(seed, "mia", "non-members").choice(test, size, replace=False)
    return members, strangers
