"""Concepts of a classifier: directions of its representation, and what each class makes of them.

A concept is named by the classes that show it. Its vector is the normal of a linear support vector
machine between records that show it and records that do not; a post-hoc concept bottleneck then
says by which concepts the classes are told apart. Both analyse a model and change nothing in it.

Shape legend: N records, D width of the representation, K concepts, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field

from expunge.core.config import config
from expunge.core.errors import ConfigError, DataError, Problems, listing
from expunge.core.streams import stream, stream_seed

Rows = Float[np.ndarray, "N D"]

PENALTIES = (1e-3, 1e-2, 0.1, 1.0, 10.0)
_USUAL_PENALTY = 0.1
_HELD_OUT = 5  # every fifth example
_STRENGTH, _L1_RATIO, _PASSES = 1e-5, 0.99, 10_000


@config
class BankSettings:
    """The concepts of a classifier, and from how many records they are learned."""

    concepts: dict[str, tuple[Annotated[int, Field(ge=0)], ...]] | None = None
    """Concepts by name, each with the classes that show it; each class is its own when absent."""
    per_class: Annotated[int, Field(ge=1)] = 500
    """Most records of each class, drawn, from which concepts and their weights are learned."""
    examples: Annotated[int, Field(ge=1)] = 100
    """Most records that show a concept, and most that do not, from which its vector is learned."""
    penalty: Annotated[float, Field(gt=0)] | None = None
    """Penalty C of the support vector machines; when absent the best of 0.001 to 10 on held-out
    examples."""


@dataclasses.dataclass(frozen=True, eq=False)
class Bank:
    """What was learned.

    Attributes:
        names: Names of the concepts.
        vectors_KD: Their directions.
        intercepts_K: Their offsets.
        weights_CK: Weight of every concept for every class; zeros for a class without records.
        accuracy: Share of the records at hand that the bottleneck alone puts into their class.
    """

    names: tuple[str, ...]
    vectors_KD: Float[np.ndarray, "K D"]
    intercepts_K: Float[np.ndarray, " K"]
    weights_CK: Float[np.ndarray, "C K"]
    accuracy: float

    def ranked(self, target: int) -> list[int]:
        """Return the concepts of a class, the one that speaks most for it first."""
        return np.argsort(-self.weights_CK[target], kind="stable").tolist()

    def direction(self, target: int, top: int) -> Float[np.ndarray, " D"]:
        """Return the weighted sum of a class's first concepts, each of length 1.

        Concepts that speak against the class do not enter; where all do, the first one stands.

        Args:
            target: The class.
            top: How many concepts (M).
        """
        chosen = self.ranked(target)[:top]
        weights = np.maximum(self.weights_CK[target][chosen], 0)
        if not weights.any():
            weights[0] = 1.0
        units = self.vectors_KD[chosen] / np.linalg.norm(self.vectors_KD[chosen], axis=1)[:, None]
        return weights @ units


def margins(
    features_ND: Rows, vectors_KD: Float[np.ndarray, "K D"], intercepts_K: Float[np.ndarray, " K"]
) -> Float[np.ndarray, "N K"]:
    """Return each record's signed distance from every concept's plane.

    Raises:
        DataError: A concept has the zero vector.
    """
    lengths_K = np.linalg.norm(vectors_KD, axis=1)
    if not lengths_K.all():
        raise DataError(
            f"concepts {listing(np.flatnonzero(lengths_K == 0))} have a vector of length 0, which "
            "has no direction; give examples that the model tells apart, or drop the concept"
        )
    return (features_ND @ vectors_KD.T + intercepts_K) / lengths_K


def shown_by(
    settings: BankSettings, labels_N: Int[np.ndarray, " N"], num_classes: int
) -> dict[str, tuple[int, ...]]:
    """Return the classes that show each concept.

    Raises:
        ConfigError: A concept names a class that the model lacks.
        DataError: A concept is shown by no record, or by all.
    """
    present = set(labels_N.tolist())
    concepts: Mapping[str, tuple[int, ...]] = settings.concepts or {
        f"class {c}": (c,) for c in sorted(present)
    }
    wrong, bare = Problems("bank.concepts"), Problems("bank.concepts", DataError)
    for name, classes in concepts.items():
        unknown = sorted({c for c in classes if c >= num_classes})
        if unknown:
            wrong.add(f"{name!r} names classes {unknown}; the model has 0..{num_classes - 1}")
        for few, which in ((present & {*classes}, "shown by"), (present - {*classes}, "absent in")):
            if not few:
                bare.add(
                    f"{name!r} is {which} no record at hand; a concept needs records that show it "
                    "and records that do not"
                )
    wrong.raise_if_any()
    bare.raise_if_any()
    return dict(concepts)


def sample(labels_N: Int[np.ndarray, " N"], per_class: int, seed: int) -> Int[np.ndarray, " S"]:
    """Return row numbers of up to ``per_class`` records of each class, drawn at random."""
    rows = []
    for label in np.unique(labels_N):
        own = np.flatnonzero(labels_N == label)
        rows.append(stream(seed, "concept-sample", int(label)).permutation(own)[:per_class])
    return np.sort(np.concatenate(rows))


def learn_bank(
    features_ND: Rows,
    labels_N: Int[np.ndarray, " N"],
    num_classes: int,
    settings: BankSettings,
    seed: int,
) -> Bank:
    """Learn concept vectors, and the weights of the concepts for the classes.

    Args:
        features_ND: Representations of the records.
        labels_N: Their classes; at least two.
        num_classes: C.
        settings: The concepts.
        seed: Seed of the draws.

    Raises:
        ConfigError: A concept names a class that the model lacks.
        DataError: A concept is shown by no record, or by all, or has the zero vector.

    Source: Yuksekgonul, Wang and Zou (2023), Post-hoc Concept Bottleneck Models, section 2.
    """
    concepts = shown_by(settings, labels_N, num_classes)
    vectors, intercepts = [], []
    for name, classes in concepts.items():
        shows_N = np.isin(labels_N, classes)
        draw = stream(seed, "concept-examples", name)
        sides = [
            features_ND[np.sort(draw.permutation(np.flatnonzero(side))[: settings.examples])]
            for side in (shows_N, ~shows_N)
        ]
        vector_D, intercept = concept_vector(sides[0], sides[1], settings.penalty, name)
        vectors.append(vector_D)
        intercepts.append(intercept)
    vectors_KD, intercepts_K = np.stack(vectors), np.array(intercepts)
    margins_NK = margins(features_ND, vectors_KD, intercepts_K)
    weights_CK, accuracy = bottleneck(margins_NK, labels_N, num_classes, seed)
    return Bank(tuple(concepts), vectors_KD, intercepts_K, weights_CK, accuracy)


def concept_vector(
    positives_PD: Rows, negatives_QD: Rows, penalty: float | None, name: str
) -> tuple[Float[np.ndarray, " D"], float]:
    """Return normal and offset of the plane between records with and without a concept.

    Args:
        positives_PD: Representations of records that show it.
        negatives_QD: Of records that do not.
        penalty: C; chosen on every fifth example when absent, where each side has five.
        name: The concept, for messages.

    Raises:
        DataError: A side is empty, or the model makes no difference between them.
    """
    if not len(positives_PD) or not len(negatives_QD):
        raise DataError(
            f"concept {name!r} has {len(positives_PD)} records that show it and "
            f"{len(negatives_QD)} that do not; it needs both"
        )
    x = np.concatenate([positives_PD, negatives_QD])
    y = np.repeat([1, 0], [len(positives_PD), len(negatives_QD)])
    if penalty is None:
        penalty = _best_penalty(positives_PD, negatives_QD)
    fitted = _machine(penalty).fit(x, y)
    vector_D, intercept = fitted.coef_[0], float(fitted.intercept_[0])
    # Where all records are alike, what is left is rounding of the sum over support vectors.
    rounding = 1e-12 * np.abs(fitted.dual_coef_).sum() * np.linalg.norm(x, axis=1).max()
    if np.linalg.norm(vector_D) <= rounding:
        raise DataError(
            f"concept {name!r} has a vector of length 0: the model represents records with and "
            "without it alike; drop it, or choose other classes that show it"
        )
    return vector_D, intercept


def bottleneck(
    margins_NK: Float[np.ndarray, "N K"],
    labels_N: Int[np.ndarray, " N"],
    num_classes: int,
    seed: int,
) -> tuple[Float[np.ndarray, "C K"], float]:
    """Return each class's weight of every concept, and how often the concepts alone are right.

    One logistic regression for each class, with an elastic net.

    Args:
        margins_NK: Signed distances; see ``margins``.
        labels_N: Classes.
        num_classes: C.
        seed: Seed of the order in which records are read.
    """
    from sklearn.linear_model import SGDClassifier

    fitted = SGDClassifier(
        loss="log_loss",
        penalty="elasticnet",
        alpha=_STRENGTH,
        l1_ratio=_L1_RATIO,
        max_iter=_PASSES,
        random_state=stream_seed(seed, "concept-bottleneck") % 2**32,
    ).fit(margins_NK, labels_N)
    found = fitted.coef_
    if len(fitted.classes_) == 2:
        found = np.concatenate([-found, found])
    weights_CK = np.zeros((num_classes, margins_NK.shape[1]))
    weights_CK[fitted.classes_] = found
    return weights_CK, float(fitted.score(margins_NK, labels_N))


def furthest(weights_CK: Float[np.ndarray, "C K"], target: int, others: Iterable[int]) -> int:
    """Return the class whose concept weights have the smallest cosine with the target's.

    Args:
        weights_CK: Weights; see ``Bank``.
        target: The class to be replaced.
        others: Classes to choose from; at least one.
    """
    lengths_C = np.maximum(np.linalg.norm(weights_CK, axis=1), np.finfo(float).tiny)
    units_CK = weights_CK / lengths_C[:, None]
    return min(sorted(others), key=lambda c: (round(float(units_CK[c] @ units_CK[target]), 12), c))


def require_donor(target: int, donor: int | None, available: Sequence[int]) -> None:
    """Refuse a class that cannot stand in for another.

    Args:
        target: The class to be replaced.
        donor: The class that is to stand in; any other when absent.
        available: Classes with retained records.

    Raises:
        ConfigError: The donor is the target itself.
        DataError: There is no retained record of the donor, or of any other class.
    """
    if donor == target:
        raise ConfigError(
            f"forget.donor = {donor} is the class to forget itself; choose another class"
        )
    if donor is not None and donor not in available:
        raise DataError(
            f"forget.donor = {donor}: no retained record is of that class; classes with retained "
            f"records: {listing(available, 12)}"
        )
    if not set(available) - {target}:
        raise DataError(
            f"all retained records are of class {target}, which is to be forgotten; give retained "
            "records of another class"
        )


def _best_penalty(positives_PD: Rows, negatives_QD: Rows) -> float:
    if min(len(positives_PD), len(negatives_QD)) < _HELD_OUT:
        return _USUAL_PENALTY
    held = [
        np.arange(len(side)) % _HELD_OUT == _HELD_OUT - 1 for side in (positives_PD, negatives_QD)
    ]
    sides = list(zip((positives_PD, negatives_QD), held, (1, 0), strict=True))
    learned = np.concatenate([side[~out] for side, out, _ in sides])
    tested = np.concatenate([side[out] for side, out, _ in sides])
    y_learned = np.concatenate([np.full(int((~out).sum()), label) for _, out, label in sides])
    y_tested = np.concatenate([np.full(int(out.sum()), label) for _, out, label in sides])
    return max(  # the first of equal ones: the strongest penalty
        PENALTIES, key=lambda c: float(_machine(c).fit(learned, y_learned).score(tested, y_tested))
    )


def _machine(penalty: float) -> Any:
    from sklearn.svm import SVC

    return SVC(C=penalty, kernel="linear", random_state=0)  # or global state is drawn from
