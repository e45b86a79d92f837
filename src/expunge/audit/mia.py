"""A loss-based membership inference attack."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from expunge.audit.audit import audit
from expunge.audit.evidence import Evidence, Measurement, Subject
from expunge.audit.readings import Reading
from expunge.audit.stats import auc, clopper_pearson, tpr_at_fpr
from expunge.core.config import config
from expunge.core.finding import Finding
from expunge.core.run import Run

_MEMBERS, _NONMEMBERS = Reading("forget"), Reading("holdout")
_NOTHING = Measurement(None, 0, note="there are no held-out records to compare with")


@config
class MiaConfig:
    """Settings of the membership inference audit."""

    fpr: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """False-positive rate at which the true-positive rate is read off."""
    max_auc_gap: Annotated[float, Field(ge=0, le=1)] | None = None
    """Largest distance of the AUC to the references' mean that passes; no verdict when absent."""


@audit(
    "mia",
    kinds={"causal_lm", "classifier"},
    reads=lambda config, dataset: (_MEMBERS, _NONMEMBERS),
    source="Yeom et al. (2018); Carlini et al. (2022) for the true-positive rate",
)
def mia(evidence: Evidence, config: MiaConfig, run: Run) -> list[Finding]:
    """Can an attacker tell forgotten records from records never seen by their loss?

    The attack calls a record a member when its loss per target is low. An AUC of 0.5 means that it
    cannot tell; far below 0.5 the losses of the forgotten records stand out upwards, which betrays
    them as well. What counts is the distance to retraining: forgotten and held-out records may
    differ by nature.

    Source: Yeom et al. (2018), section 3.2; Carlini et al. (2022), section III.
    """
    areas = {subject: _area(subject) for subject in evidence}

    def gap(subject: Subject) -> Measurement:
        return distance(areas[subject], [areas[other] for other in evidence.others(subject)])

    findings = evidence.compare(
        "auc",
        "Loss attack, area under the ROC curve (0.5: cannot tell)",
        lambda subject: areas[subject],
        direction="reference",
        record_set="forget",
    )
    findings += evidence.compare(
        "tpr",
        f"Loss attack, true-positive rate at {100 * config.fpr:g} % false positives",
        lambda subject: _caught(subject, config.fpr),
        direction="reference",
        record_set="forget",
    )
    findings += evidence.compare(
        "auc_gap",
        "Loss attack, distance of the AUC to retraining",
        gap,
        direction="lower",
        record_set="forget",
        threshold=config.max_auc_gap,
    )
    return findings


def distance(found: Measurement, others: Sequence[Measurement]) -> Measurement:
    """Return how far a number is from the mean of others, with its interval carried over.

    Args:
        found: The number.
        others: The references' numbers.
    """
    standards = [other.value for other in others if other.value is not None]
    if found.value is None or found.interval is None:
        return found
    if not standards:
        return Measurement(None, found.n, note="no other retrained model to compare with")
    mean = float(np.mean(standards))
    low, high = found.interval.low - mean, found.interval.high - mean
    interval = dataclasses.replace(
        found.interval, low=max(low, -high, 0.0), high=max(abs(low), abs(high))
    )
    return Measurement(abs(found.value - mean), found.n, interval)


def _area(subject: Subject) -> Measurement:
    members, others = _suspicion(subject)
    if not len(others):
        return _NOTHING
    value, interval = auc(members, others)
    return Measurement(value, len(members) + len(others), interval)


def _caught(subject: Subject, fpr: float) -> Measurement:
    members, others = _suspicion(subject)
    if not len(others):
        return _NOTHING
    hits, n = tpr_at_fpr(members, others, fpr)
    few = len(others) * fpr < 1
    note = f"with {len(others)} non-members no false positive is allowed" if few else ""
    return Measurement(hits / n, n, clopper_pearson(hits, n), note)


def _suspicion(subject: Subject) -> tuple[np.ndarray, np.ndarray]:
    """Return minus the loss per target of forgotten and held-out records."""
    return -subject.scores[_MEMBERS].loss_R, -subject.scores[_NONMEMBERS].loss_R
