"""Unlearning, retaining and test accuracy, an SVC attack, and the average gap to retraining."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
from pydantic import Field
from sklearn.svm import SVC

from expunge.audit.audit import audit
from expunge.audit.evidence import Evidence, Measurement, Subject
from expunge.audit.readings import Reading
from expunge.audit.stats import RESAMPLES, clopper_pearson, percentile_interval
from expunge.core.config import config
from expunge.core.finding import Direction, Finding, Interval
from expunge.core.run import Run
from expunge.core.streams import stream

_FORGET, _RETAIN, _TEST = Reading("forget"), Reading("retain"), Reading("test")
_NUMBERS: Mapping[str, tuple[str, str, Direction]] = {
    "ua": ("Unlearning accuracy (share of forgotten records got wrong)", "forget", "reference"),
    "ra": ("Retaining accuracy", "retain", "higher"),
    "ta": ("Test accuracy", "test", "higher"),
    "mia": ("Forgotten records that an SVC calls non-members", "forget", "reference"),
}


@config
class UnlearningGapConfig:
    """Settings of the unlearning-gap audit."""

    max_average_gap: Annotated[float, Field(ge=0)] | None = None
    """Largest average gap to retraining that passes, in points; no verdict when absent."""


@dataclasses.dataclass(frozen=True)
class Share:
    """A number of records out of n.

    Attributes:
        count: How many.
        n: Out of how many.
    """

    count: int
    n: int

    @property
    def percent(self) -> float:
        """The share in percent."""
        return 100 * self.count / self.n


def svc_nonmembers(members: np.ndarray, nonmembers: np.ndarray, targets: np.ndarray) -> int:
    """Return how many targets a support-vector classifier calls non-members.

    Args:
        members: Confidence in the true class of records that were trained on.
        nonmembers: The same of records that were not.
        targets: The same of the records in question.

    Source: SalUn (Fan et al., 2024), section 5: C = 3, RBF kernel, gamma = 1 / number of features.
    """
    confidences = np.concatenate([members, nonmembers])[:, None]
    labels = np.repeat([1, 0], [len(members), len(nonmembers)])
    attacker = SVC(C=3, kernel="rbf", gamma=1.0).fit(confidences, labels)
    return int((attacker.predict(targets[:, None]) == 0).sum())


@audit(
    "unlearning_gap",
    kinds={"classifier"},
    reads=lambda config, dataset: (_FORGET, _RETAIN, _TEST),
    source="SalUn (Fan et al., ICLR 2024), evaluation protocol",
)
def unlearning_gap(evidence: Evidence, config: UnlearningGapConfig, run: Run) -> list[Finding]:
    """How far a classifier is from retraining: UA, RA, TA, MIA and the average gap.

    The attack trains on as many retained as test records (a seeded draw of the larger set). Each
    number carries its signed gap to the mean of the references; the average gap is the mean of the
    four distances. A reference is compared with the other ones.

    Source: SalUn (Fan et al., 2024), section 5.

    Differs from the official code: members are drawn, not the first ones.
    """
    shares = {subject: _shares(subject, run.seed) for subject in evidence}
    findings = []
    for metric, (title, record_set, direction) in _NUMBERS.items():

        def share(subject: Subject, metric: str = metric, name: str = record_set) -> Measurement:
            return _measurement(shares[subject].get(metric), name)

        findings += evidence.compare(
            metric,
            title,
            share,
            direction=direction,
            record_set=record_set,
            unit="%",
        )

    def gap(subject: Subject) -> Measurement:
        others = [shares[other] for other in evidence.others(subject)]
        return average_gap(shares[subject], others, run.seed)

    findings += evidence.compare(
        "average_gap",
        "Average gap to retraining",
        gap,
        direction="lower",
        unit="points",
        threshold=config.max_average_gap,
    )
    return findings


def average_gap(
    own: Mapping[str, Share], others: Sequence[Mapping[str, Share]], seed: int
) -> Measurement:
    """Return the mean distance of a model's numbers to the references' means, in points.

    The interval is over the records of the model; the references stand as they are.

    Args:
        own: The model's numbers.
        others: The references' numbers.
        seed: Seed of the bootstrap.
    """
    if not others:
        return Measurement(None, 0, note="no other retrained model to compare with")
    gaps, draws = [], []
    for metric, share in own.items():
        mean = float(np.mean([other[metric].percent for other in others]))
        gaps.append(abs(share.percent - mean))
        counts = stream(seed, "average-gap", metric).binomial(
            share.n, share.count / share.n, RESAMPLES
        )
        draws.append(np.abs(100 * counts / share.n - mean))
    missing = [metric for metric in _NUMBERS if metric not in own]
    return Measurement(
        float(np.mean(gaps)),
        sum(share.n for metric, share in own.items() if metric != "mia"),
        percentile_interval(np.mean(draws, axis=0)),
        f"without {', '.join(missing)}" if missing else "",
    )


def _shares(subject: Subject, seed: int) -> dict[str, Share]:
    """Return the numbers that can be had; sets without records have none."""
    forget, retain, test = (subject.scores[reading] for reading in (_FORGET, _RETAIN, _TEST))
    right = {"ra": retain, "ta": test}
    shares = {"ua": Share(int((~forget.greedy_N).sum()), len(forget))}
    shares |= {
        metric: Share(int(scores.greedy_N.sum()), len(scores))
        for metric, scores in right.items()
        if len(scores)
    }
    size = min(len(retain), len(test))
    if size:
        members = stream(seed, "mia", "members").choice(len(retain), size, replace=False)
        strangers = stream(seed, "mia", "non-members").choice(len(test), size, replace=False)
        called = svc_nonmembers(
            np.exp(retain.logprob_N[members]),
            np.exp(test.logprob_N[strangers]),
            np.exp(forget.logprob_N),
        )
        shares["mia"] = Share(called, len(forget))
    return shares


def _measurement(share: Share | None, record_set: str) -> Measurement:
    if share is None:
        missing = "retained or test" if record_set == "forget" else record_set
        return Measurement(None, 0, note=f"there are no {missing} records")
    exact = clopper_pearson(share.count, share.n)
    interval = Interval(low=100 * exact.low, high=100 * exact.high, method=exact.method)
    return Measurement(share.percent, share.n, interval)
