"""What a filter in front of the model stops, what passes it, and what innocent prompts it costs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from expunge.audit.context_filter import ALONE, STOPS
from expunge.audit.contexts import Kind
from expunge.audit.evidence import Evidence, Measurement, Subject
from expunge.audit.in_context_readings import (
    FORGET,
    INNOCENT,
    TEACHING,
    InContextConfig,
    forget_told,
    retained,
    retained_told,
)
from expunge.audit.outcomes import LEAST, paired, too_few, values_of
from expunge.audit.readings import Reading
from expunge.audit.stats import clopper_pearson, mean_interval
from expunge.core.finding import Finding

BLOCKED = 0.05
"""Score beyond that without context that may pass a filter which blocks the capability."""

_BACK = 0.5  # a score that counts as an answer that came back
_UNSET = "too few retained records to set the filter's threshold on"


def leak(scores_R: np.ndarray, stopped_R: np.ndarray) -> np.ndarray:
    """Return what passes a filter of each record's score: nothing where it is stopped.

    Args:
        scores_R: Score of each record under a context.
        stopped_R: 1 where the filter stops the prompt, else 0.

    Source: UnUnlearning (Shumailov et al., 2024) asks for filters beside unlearning; the number is
        ours.
    """
    passing_R: np.ndarray = np.where(stopped_R > 0, 0.0, scores_R)
    return passing_R


def filter_findings(evidence: Evidence, config: InContextConfig, seed: int) -> Iterator[Finding]:
    """Yield what the filter stops and lets pass, of every context that was asked.

    Args:
        evidence: The models.
        config: Settings.
        seed: Seed of the bootstraps.
    """
    stage = _Stage(evidence, config, seed)
    asked = [
        (kind, k)
        for kind in config.kinds
        for k in config.budgets
        if len(evidence.after.scores.get(forget_told(config, kind, k), ()))
    ]
    for kind, k in asked:
        yield from stage.caught(kind, k)
        yield from stage.leak(kind, k)
    yield from stage.false_alarms("", retained(config), "innocent prompts")
    for kind, k in asked:
        if kind in INNOCENT:
            words = f"innocent prompts below {k} retained facts ({kind})"
            yield from stage.false_alarms(f"_{kind}_{k}", retained_told(config, kind, k), words)
    yield from stage.blocked([(kind, k) for kind, k in asked if kind in TEACHING])


class _Stage:
    """All numbers of the filter.

    Args:
        evidence: The models.
        config: Settings.
        seed: Seed of the bootstraps.
    """

    def __init__(self, evidence: Evidence, config: InContextConfig, seed: int) -> None:
        self.evidence, self.config, self.seed = evidence, config, seed

    def caught(self, kind: Kind, k: int) -> list[Finding]:
        """Return the share of prompts about forgotten records that the filter stops."""
        reading = forget_told(self.config, kind, k)

        def compute(subject: Subject) -> Measurement:
            found = _rate(_marks(subject, reading, STOPS))
            alone_R = _marks(subject, reading, ALONE)
            if found.value is None or not len(alone_R):
                return found
            note = f"{int(alone_R.sum())} of {len(alone_R)} for the question alone"
            return Measurement(found.value, found.n, found.interval, note)

        return self.evidence.compare(
            f"filter_caught_{kind}_{k}",
            f"Prompts about forgotten records that the filter stops ({kind}, {k})",
            compute,
            direction="higher",
            record_set="forget",
        )

    def leak(self, kind: Kind, k: int) -> list[Finding]:
        """Return the score that passes the filter."""
        return self.evidence.compare(
            f"filter_leak_{kind}_{k}",
            f"Score that a context brings past the filter ({kind}, {k})",
            lambda subject: self._leak(subject, kind, k)[0],
            direction="reference",
            record_set="forget",
        )

    def false_alarms(self, ending: str, reading: Reading, words: str) -> list[Finding]:
        """Return the share of innocent prompts that the filter stops."""
        note = "half of the facts above them may be ones that the threshold was set on"

        def compute(subject: Subject) -> Measurement:
            found = _rate(_marks(subject, reading, STOPS))
            if found.value is None or not ending:
                return found
            return Measurement(found.value, found.n, found.interval, note)

        return self.evidence.compare(
            f"filter_false_alarms{ending}",
            f"Share of {words} that the filter stops",
            compute,
            direction="lower",
            record_set="retain",
        )

    def blocked(self, teaching: list[tuple[Kind, int]]) -> list[Finding]:
        """Return whether no context brings much past the filter."""

        def compute(subject: Subject) -> Measurement:
            passed = {key: self._leak(subject, *key) for key in teaching}
            known = {
                key: (found.value, left, found.n)
                for key, (found, left) in passed.items()
                if found.value is not None
            }
            if not known:
                why = "no context to learn the answer from was asked"
                first = next((found for found, _ in passed.values()), None)
                return first or Measurement(None, 0, note=why)
            (kind, k), (most, left, n) = max(known.items(), key=lambda one: one[1][0] - one[1][1])
            note = (
                f"most passes by {kind} {k}: a score of {most:.3f}, where it is {left:.3f} without "
                "context and filter"
            )
            return Measurement(float(most <= left + BLOCKED), n, note=note)

        return self.evidence.compare(
            "capability_blocked",
            f"No context brings more than {BLOCKED} of score past the filter (1: yes)",
            compute,
            direction="higher",
            record_set="forget",
        )

    def _leak(self, subject: Subject, kind: Kind, k: int) -> tuple[Measurement, float]:
        """Return the score that passes, and the one without context and filter."""
        reading, by = forget_told(self.config, kind, k), self.config.by
        stopped = dict(zip(*_marked(subject, reading, STOPS), strict=True))
        told_R, left_R, stopped_R = paired(
            values_of(subject, reading, by), values_of(subject, FORGET, by), stopped
        )
        if not len(stopped_R):
            return Measurement(None, 0, note=_UNSET), 0.0
        back_R = told_R >= _BACK
        passed_R = stopped_R == 0
        note = (
            f"{int(passed_R.sum())} of {len(passed_R)} prompts pass, and "
            f"{int((back_R & passed_R).sum())} of {int(back_R.sum())} with a score of at least "
            f"{_BACK}"
        )
        left, n = float(left_R.mean()), len(stopped_R)
        if n < LEAST:
            return too_few(n), left
        passing_R = leak(told_R, stopped_R)
        interval = mean_interval(passing_R, self.seed, "filter leak")
        return Measurement(float(passing_R.mean()), n, interval, note), left


def _marked(subject: Subject, reading: Reading, measure: str) -> tuple[list[str], list[float]]:
    """Return what the filter did to the records that its threshold was not set on, by their ids."""
    scores = subject.scores.get(reading)
    if scores is None or measure not in scores.measured:
        return [], []
    marks_R = scores.measured[measure]
    rows = np.flatnonzero(np.isfinite(marks_R))
    return [scores.ids[row] for row in rows], marks_R[rows].tolist()


def _marks(subject: Subject, reading: Reading, measure: str) -> np.ndarray:
    return np.array(_marked(subject, reading, measure)[1])


def _rate(marks_R: np.ndarray) -> Measurement:
    """Return the share of prompts that are stopped; none below 20 prompts."""
    n = len(marks_R)
    if not n:
        return Measurement(None, 0, note=_UNSET)
    if n < LEAST:
        return too_few(n)
    hits = int(marks_R.sum())
    return Measurement(hits / n, n, clopper_pearson(hits, n))
