"""Memorization: does the model still write the answers, and does it still know them?"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated

import numpy as np
from pydantic import Field

from expunge.audit.audit import audit
from expunge.audit.evidence import Evidence, Measurement, Subject
from expunge.audit.readings import PARAPHRASE, PERTURBED, Reading, num_perturbed
from expunge.audit.stats import clopper_pearson
from expunge.audit.tofu_values import answer_losses
from expunge.core.config import config
from expunge.core.finding import Finding
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
    source="Carlini et al. (2021) for verbatim; MUSE (Shi et al., 2025) for the two properties",
)
def memorization(evidence: Evidence, config: MemorizationConfig, run: Run) -> list[Finding]:
    """Verbatim and knowledge memorization, from likelihoods alone.

    Verbatim: the share of answers that the model would write token by token, each token of the true
    answer (end of text included) being its first choice after the true ones before it. Knowledge:
    the share of questions for which the true answer, in other words where the data have them, is
    more likely per token than every wrong answer.

    Source: Carlini et al. (2021); MUSE (Shi et al., 2025), section 3, in a form for questions.
    """
    del run
    findings = []
    for name in config.record_sets:
        plain = _plain(config, name)
        if plain not in evidence.after.scores or not len(evidence.after.scores[plain]):
            continue
        direction = "reference" if name == "forget" else "higher"
        for metric, title, measure in (
            ("verbatim", "Answers reproduced token by token", _verbatim),
            ("knowledge", "Questions whose true answer beats every wrong one", _knowledge),
        ):

            def share(
                subject: Subject, plain: Reading = plain, measure: object = measure
            ) -> Measurement:
                return _share(measure(subject, plain))  # type: ignore[operator]

            findings += evidence.compare(
                metric,
                title,
                share,
                direction=direction,  # type: ignore[arg-type]
                record_set=name,
            )
    return findings


def _plain(config: MemorizationConfig, name: str) -> Reading:
    return Reading(name, limit=0 if name == "forget" else config.max_records)


def _share(hits_R: np.ndarray) -> Measurement:
    if not len(hits_R):
        return Measurement(None, 0, note="no record has wrong answers to compare with")
    hits, n = int(hits_R.sum()), len(hits_R)
    return Measurement(hits / n, n, clopper_pearson(hits, n))


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
