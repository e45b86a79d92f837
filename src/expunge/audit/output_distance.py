"""Distance of a classifier's outputs to those of retrained models, record by record.

Shape legend: R records, V classes, S resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from expunge.audit.audit import audit
from expunge.audit.evidence import Evidence, Measurement, Subject
from expunge.audit.outputs import PROBABILITIES, measured
from expunge.audit.readings import Reading
from expunge.audit.resampled import resampled
from expunge.audit.stats import bootstrap_means, mean_interval
from expunge.core.config import config
from expunge.core.finding import Finding
from expunge.core.run import Run
from expunge.data.dataset import Dataset

_SETS = ("forget", "test")
_WORDS = {"forget": "forgotten records", "test": "test records"}


@config
class OutputDistanceConfig:
    """Settings of the output-distance audit."""

    max_divergence: Annotated[float, Field(ge=0)] | None = None
    """Largest Jensen-Shannon divergence on the forget set that passes, in nats (at most 0.693); no
    verdict when absent. Take it from the divergence of two retrained models."""


def _reads(config: OutputDistanceConfig, dataset: Dataset) -> Iterator[Reading]:
    for name in _SETS:
        yield Reading(name, measures=(PROBABILITIES,))


@audit(
    "output_distance",
    kinds={"classifier"},
    reads=_reads,
    source="Golatkar et al. (2020) for the activation distance; Chundawat et al. (2023) for the "
    "Jensen-Shannon divergence; Cao and Yang (2015) for completeness",
)
def output_distance(evidence: Evidence, config: OutputDistanceConfig, run: Run) -> list[Finding]:
    """Does the model say the same as retrained models, record by record?

    On forgotten and on test records, each a mean over the records and over the references:

    - ``activation_distance``: the Euclidean distance between the two vectors of probabilities, 0 to
      1.414.
    - ``js_divergence``: the Jensen-Shannon divergence between them in nats, 0 to 0.693.
    - ``completeness``: the share of records for which both have the same first choice.
    - ``jaccard``: the same as the Jaccard index of the two sets of (record, first choice): a share
      s of n records makes ``s / (2 - s)``.

    A reference is compared with the other ones. That is the noise floor: two models retrained with
    other seeds differ too, and nothing can be asked to be nearer. Intervals are over records; the
    references stand as they are. Accuracy and membership attacks can agree with retraining where
    outputs do not; outputs can differ where no attack can use it.

    It costs one pass over each of the two sets for every model.

    Source: Golatkar et al. (2020), Eternal Sunshine of the Spotless Net; Chundawat et al. (2023),
        Can Bad Teaching Induce Forgetting?, with the divergence of Lin (1991) (released code swaps
        the arguments and divides by the number of classes); Cao and Yang (2015), completeness.
    """
    findings: list[Finding] = []
    for name in _SETS:
        reading, threshold = Reading(name), config.max_divergence if name == "forget" else None

        def mean(
            subject: Subject,
            distance: Callable[[np.ndarray, np.ndarray], np.ndarray],
            high: float,
            reading: Reading = reading,
        ) -> Measurement:
            pairs = _pairs(evidence, subject, reading)
            if isinstance(pairs, Measurement):
                return pairs
            value_R = np.mean([distance(own, other) for own, other in pairs], axis=0)
            interval = mean_interval(value_R, run.seed, f"output-{reading.record_set}", 0.0, high)
            return Measurement(float(value_R.mean()), len(value_R), interval)

        def jaccard(subject: Subject, reading: Reading = reading) -> Measurement:
            pairs = _pairs(evidence, subject, reading)
            return pairs if isinstance(pairs, Measurement) else _jaccard(pairs, run.seed)

        for metric, words, compute, better, bound in (
            (
                "activation_distance",
                "Distance of the probabilities to retrained models'",
                lambda s, mean=mean: mean(s, activation_distance, math.sqrt(2)),
                "lower",
                None,
            ),
            (
                "js_divergence",
                "Jensen-Shannon divergence to retrained models",
                lambda s, mean=mean: mean(s, jensen_shannon, math.log(2)),
                "lower",
                threshold,
            ),
            (
                "completeness",
                "Share with the same first choice as retrained models",
                lambda s, mean=mean: mean(s, same_choice, 1.0),
                "higher",
                None,
            ),
            (
                "jaccard",
                "Jaccard index of first choices with retrained models",
                jaccard,
                "higher",
                None,
            ),
        ):
            findings += evidence.compare(
                f"{metric}_{name}",
                f"{words}, {_WORDS[name]}",
                compute,
                direction=better,  # type: ignore[arg-type]
                record_set=name,
                unit="nats" if metric == "js_divergence" else "",
                threshold=bound,
                pairwise=True,
            )
    return findings


def activation_distance(p_RV: np.ndarray, q_RV: np.ndarray) -> np.ndarray:
    """Return the Euclidean distance between two models' probabilities of each record.

    Source: Golatkar et al. (2020).
    """
    return np.sqrt(((p_RV - q_RV) ** 2).sum(axis=1))


def jensen_shannon(p_RV: np.ndarray, q_RV: np.ndarray) -> np.ndarray:
    """Return the Jensen-Shannon divergence between two models' probabilities of each record, nats.

    Half the divergence of each from their mean m: ``(KL(p || m) + KL(q || m)) / 2``.

    Source: Lin (1991), eq. 4.1 with equal weights.
    """
    middle_RV = (p_RV + q_RV) / 2
    return (_kl(p_RV, middle_RV) + _kl(q_RV, middle_RV)) / 2


def same_choice(p_RV: np.ndarray, q_RV: np.ndarray) -> np.ndarray:
    """Return 1 for each record of which both models find the same class likeliest, else 0."""
    return (p_RV.argmax(axis=1) == q_RV.argmax(axis=1)).astype(np.float64)


def _kl(p_RV: np.ndarray, q_RV: np.ndarray) -> np.ndarray:
    ratio_RV = np.divide(p_RV, q_RV, where=p_RV > 0, out=np.ones_like(p_RV))
    value_R: np.ndarray = (p_RV * np.log(ratio_RV)).sum(axis=1)
    return np.maximum(value_R, 0.0)


def _pairs(
    evidence: Evidence, subject: Subject, reading: Reading
) -> list[tuple[np.ndarray, np.ndarray]] | Measurement:
    """Return a model's probabilities beside each reference's, or why there are none."""
    own_RV = measured(subject.scores[reading], PROBABILITIES)
    if not len(own_RV):
        return Measurement(None, 0, note=f"there are no {reading.record_set} records")
    others = evidence.others(subject)
    if not others:
        note = "no other retrained model to compare with"
        return Measurement(None, len(own_RV), note=note)
    return [(own_RV, measured(other.scores[reading], PROBABILITIES)) for other in others]


def _jaccard(pairs: Sequence[tuple[np.ndarray, np.ndarray]], seed: int) -> Measurement:
    same_OR = [same_choice(own_RV, other_RV) for own_RV, other_RV in pairs]
    shares = np.array([same_R.mean() for same_R in same_OR])
    draws_OS = np.stack([bootstrap_means(same_R, seed, "jaccard") for same_R in same_OR])
    value = float((shares / (2 - shares)).mean())
    draws_S = (draws_OS / (2 - draws_OS)).mean(axis=0)
    n = len(same_OR[0])
    return Measurement(value, n, resampled(value, draws_S, n, low=0.0))
