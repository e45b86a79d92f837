"""Wasserstein distance of the predictions on the forget set to those of retrained models.

Shape legend: R records, D outputs, S resamples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import numpy as np
from pydantic import Field
from scipy.stats import wasserstein_distance

from expunge.audit.audit import audit
from expunge.audit.evidence import Evidence, Measurement, Subject
from expunge.audit.outputs import PREDICTION
from expunge.audit.readings import Reading
from expunge.audit.stats import RESAMPLES, bootstrap_means, percentile_interval
from expunge.core.config import config
from expunge.core.finding import Finding, Interval
from expunge.core.run import Run
from expunge.core.streams import stream
from expunge.data.dataset import Dataset

_FORGET = Reading("forget")


@config
class WassersteinConfig:
    """Settings of the Wasserstein audit."""

    max_distance: Annotated[float, Field(ge=0)] | None = None
    """Largest Wasserstein distance that passes, in the unit of the targets; no verdict when absent.
    Take it from the distance of two retrained models."""


def _reads(config: WassersteinConfig, dataset: Dataset) -> Iterator[Reading]:
    yield Reading("forget", measures=(PREDICTION,) if dataset.kind == "regressor" else ())


@audit(
    "wasserstein",
    kinds={"classifier", "regressor"},
    reads=_reads,
    source="Deep Regression Unlearning (Tarun et al., ICML 2023), section 5",
)
def wasserstein(evidence: Evidence, config: WassersteinConfig, run: Run) -> list[Finding]:
    """Are forgotten records predicted as retrained models predict them?

    - ``wasserstein``: the first Wasserstein distance between the distributions of the predictions
      on the forget set, the mean distance between the two models' predictions once each are sorted;
      of several outputs the mean over them.
    - ``mean_absolute_difference``: the mean distance between the two predictions of the same
      record, never smaller.

    Both are means over the references. Predictions are a regressor's outputs, in the unit of its
    targets; of a classifier the confidence in the true class. A reference is compared with the
    other ones: the distance of two models retrained with other seeds is the floor that nothing can
    be asked to be under. What counts is to be like retraining, not to err most: a band of targets
    can be predicted well by extrapolation, and a method that errs more there than retraining has
    forgotten too much.

    Intervals are over records, which are resampled for both models alike; that of the Wasserstein
    distance is turned around the value (Efron and Tibshirani's basic interval), since resampling
    adds distance. It costs nothing where another audit reads the same records.

    Source: Deep Regression Unlearning (Tarun et al., 2023), section 5; mean absolute difference and
        intervals are ours.
    """

    def distance(subject: Subject) -> Measurement:
        return _compared(evidence, subject, run.seed, by_record=False)

    def difference(subject: Subject) -> Measurement:
        return _compared(evidence, subject, run.seed, by_record=True)

    findings = evidence.compare(
        "wasserstein",
        "Wasserstein distance of the predictions on forgotten records to retrained models'",
        distance,
        direction="lower",
        record_set="forget",
        threshold=config.max_distance,
        pairwise=True,
    )
    findings += evidence.compare(
        "mean_absolute_difference",
        "Mean distance of the predictions on forgotten records to retrained models'",
        difference,
        direction="lower",
        record_set="forget",
        pairwise=True,
    )
    return findings


def wasserstein_1(first_RD: np.ndarray, second_RD: np.ndarray) -> float:
    """Return the first Wasserstein distance between two samples of each output, mean over outputs.

    Args:
        first_RD: One sample of each output.
        second_RD: Another, of any size.
    """
    pairs = zip(first_RD.T, second_RD.T, strict=True)
    return float(np.mean([wasserstein_distance(a, b) for a, b in pairs]))


def _compared(evidence: Evidence, subject: Subject, seed: int, *, by_record: bool) -> Measurement:
    own_RD = _predictions(subject)
    others = [_predictions(other) for other in evidence.others(subject)]
    if not others:
        return Measurement(None, len(own_RD), note="no other retrained model to compare with")
    if by_record:
        value_R = np.mean([np.abs(own_RD - other_RD).mean(axis=1) for other_RD in others], axis=0)
        draws_S = bootstrap_means(value_R, seed, "predictions")
        interval = percentile_interval(draws_S) if np.ptp(draws_S) else None
        return Measurement(float(value_R.mean()), len(value_R), interval)
    value = float(np.mean([wasserstein_1(own_RD, other_RD) for other_RD in others]))
    draws_S = np.mean([_resampled(own_RD, other_RD, seed) for other_RD in others], axis=0)
    return Measurement(value, len(own_RD), _turned(value, draws_S))


def _predictions(subject: Subject) -> np.ndarray:
    """Return a regressor's outputs, or a classifier's confidence in the true class, (R, D)."""
    scores = subject.scores[_FORGET]
    found = scores.measured.get(PREDICTION)
    return np.exp(scores.logprob_N.astype(np.float64))[:, None] if found is None else found


def _resampled(first_RD: np.ndarray, second_RD: np.ndarray, seed: int) -> np.ndarray:
    """Return the distance on resamples of the records, the same ones of both models.

    Of equally large samples it is the mean distance between the sorted ones.
    """
    draws, size = stream(seed, "bootstrap", "wasserstein"), len(first_RD)
    found = np.empty(RESAMPLES)
    for place in range(RESAMPLES):
        rows = draws.integers(size, size=size)
        first, second = (np.sort(values_RD[rows], axis=0) for values_RD in (first_RD, second_RD))
        found[place] = np.abs(first - second).mean()
    return found


def _turned(value: float, draws_S: np.ndarray) -> Interval | None:
    """Return the basic bootstrap interval of a distance; none where all resamples agree."""
    if not np.ptp(draws_S):
        return None
    found = percentile_interval(draws_S)
    low, high = 2 * value - found.high, 2 * value - found.low
    return Interval(low=max(low, 0.0), high=max(high, value), method="basic-bootstrap")
