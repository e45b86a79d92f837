"""Memorization: does the model still write the answers, and does it still know them?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Annotated

import numpy as np
from pydantic import Field

from expunge.audit.audit import audit
from expunge.audit.evidence import Evidence, Measurement, Subject
from expunge.audit.readings import PARAPHRASE, PERTURBED, Reading, num_perturbed
from expunge.audit.scores import Scores
from expunge.audit.stats import clopper_pearson, mean_interval
from expunge.audit.tofu_values import answer_losses
from expunge.core.config import config
from expunge.core.finding import Direction, Finding
from expunge.core.run import Run
from expunge.core.sets import ROLES
from expunge.data.dataset import Dataset


@config
class MemorizationConfig:
    """Settings of the memorization audit."""

    record_sets: tuple[str, ...] = ("forget", "retain", "test")
    """Record sets to measure; those that the data lack are left out."""
    max_records: Annotated[int, Field(ge=0)] = 300
    """Most records of each set but the forget set, those with wrong answers first; 0 takes all."""


def _reads(config: MemorizationConfig, dataset: Dataset) -> Iterator[Reading]:
    for name in config.record_sets:
        if name not in (*ROLES, *dataset.probes):
            continue
        records = dataset.records("train" if name in ("forget", "retain") else name)
        if not len(records):
            continue
        plain = _plain(config, name)
        yield plain
        if "paraphrased_answer" in records:
            yield dataclasses.replace(plain, view=PARAPHRASE)
        for place in range(num_perturbed(records)):
            yield dataclasses.replace(plain, view=f"{PERTURBED}{place}")


@audit(
    "memorization",
    kinds={"causal_lm"},
    reads=_reads,
    source="Carlini et al. (2021) for verbatim; MUSE (Shi et al., 2025) for the two properties; "
    "Tirumala et al. (2022) for exact memorization; Wang et al. (2025) for extraction strength",
)
def memorization(evidence: Evidence, config: MemorizationConfig, run: Run) -> list[Finding]:
    """Verbatim and knowledge memorization, from likelihoods alone.

    - ``verbatim``: the share of answers that the model would write token by token, each token of
      the true answer (end of text included) being its first choice after the true ones before it.
    - ``exact``: the share of an answer's tokens that are the first choice, mean over the answers.
    - ``extraction_strength``: the share of an answer's tokens that follow on their own once the
      true ones before them are given, mean over the answers: 1 - k / n with the shortest beginning
      of k of the n tokens after which every token is the first choice. It is 0 where not even the
      last token is, which public code counts as 1 / n.
    - ``knowledge``: the share of questions for which the true answer, in other words where the data
      have them, is more likely per token than every wrong answer.

    Shares of records have Clopper and Pearson's interval, means of shares a bootstrap's over
    records, unless all records have one share. Every token counts, the end of text included, which
    public code leaves out. The numbers do not show what a model writes of its own accord: a first
    choice is asked for after the true tokens. It costs one pass over each set and its other
    answers.

    Source: Carlini et al. (2021); MUSE (Shi et al., 2025), section 3, in a form for questions;
        exact memorization: Tirumala et al. (2022); extraction strength: Carlini et al. (2021), as
        Wang et al. (2025) define it.
    """
    findings = []
    for name in config.record_sets:
        plain = _plain(config, name)
        if plain not in evidence.after.scores or not len(evidence.after.scores[plain]):
            continue
        direction: Direction = "reference" if name == "forget" else "higher"
        for metric, title, measure in _measures(run.seed):

            def measured(
                subject: Subject, plain: Reading = plain, measure: _Measure = measure
            ) -> Measurement:
                return measure(subject, plain)

            findings += evidence.compare(
                metric, title, measured, direction=direction, record_set=name
            )
    return findings


def exact_memorization(scores: Scores) -> np.ndarray:
    """Return the share of each record's targets that are the model's first choice.

    Source: Tirumala et al. (2022).
    """
    value_R: np.ndarray = np.add.reduceat(scores.greedy_N.astype(np.float64), scores.offsets[:-1])
    return value_R / scores.n_R


def extraction_strength(scores: Scores) -> np.ndarray:
    """Return 1 - k / n of each record: after its first k of n targets, all are the first choice.

    It is 0 where the last target is not.

    Source: Carlini et al. (2021), as Wang et al. (2025) define it.
    """
    place_N = np.arange(len(scores.greedy_N)) - np.repeat(scores.offsets[:-1], scores.n_R)
    after_miss_N = np.where(scores.greedy_N, 0, place_N + 1)
    value_R: np.ndarray = np.maximum.reduceat(after_miss_N, scores.offsets[:-1]) / scores.n_R
    return 1 - value_R


_Measure = Callable[[Subject, Reading], Measurement]


def _measures(seed: int) -> tuple[tuple[str, str, _Measure], ...]:
    """Return name, title and measure of every number."""
    return (
        (
            "verbatim",
            "Answers reproduced token by token",
            lambda subject, plain: _share(_verbatim(subject, plain)),
        ),
        (
            "exact",
            "Answer tokens that are the first choice, mean over answers",
            lambda subject, plain: _mean(exact_memorization(subject.scores[plain]), seed, plain),
        ),
        (
            "extraction_strength",
            "Extraction strength: share of an answer that follows from its beginning",
            lambda subject, plain: _mean(extraction_strength(subject.scores[plain]), seed, plain),
        ),
        (
            "knowledge",
            "Questions whose true answer beats every wrong one",
            lambda subject, plain: _share(_knowledge(subject, plain)),
        ),
    )


def _plain(config: MemorizationConfig, name: str) -> Reading:
    return Reading(name, limit=0 if name == "forget" else config.max_records)


def _share(hits_R: np.ndarray) -> Measurement:
    if not len(hits_R):
        return Measurement(None, 0, note="no record has wrong answers to compare with")
    hits, n = int(hits_R.sum()), len(hits_R)
    return Measurement(hits / n, n, clopper_pearson(hits, n))


def _mean(values_R: np.ndarray, seed: int, plain: Reading) -> Measurement:
    interval = mean_interval(values_R, seed, f"memorization-{plain.record_set}")
    return Measurement(float(values_R.mean()), len(values_R), interval)


def _verbatim(subject: Subject, plain: Reading) -> np.ndarray:
    scores = subject.scores[plain]
    hits_R: np.ndarray = np.logical_and.reduceat(scores.greedy_N, scores.offsets[:-1])
    return hits_R


def _knowledge(subject: Subject, plain: Reading) -> np.ndarray:
    true_R, wrong_RJ = answer_losses(subject, plain)
    if not len(true_R):
        return np.empty(0, dtype=bool)
    hits_R: np.ndarray = true_R < np.nanmin(wrong_RJ, axis=1)
    return hits_R
