"""Side effects on neighbours: does the model lose what only resembles the forget set?

Shape legend: R records.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from expunge.audit.audit import audit
from expunge.audit.evidence import Evidence, Measurement, Subject
from expunge.audit.measures import of_model
from expunge.audit.outcomes import (
    NO_BEFORE,
    NO_REFERENCE,
    bounded,
    mean_of,
    scored_as,
    too_few,
    values_of,
)
from expunge.audit.readings import Reading
from expunge.audit.recovery import LEAST_RECORDS, By
from expunge.audit.resampled import resampled
from expunge.audit.scores import Scores
from expunge.audit.similarity import TENTHS
from expunge.audit.stats import bootstrap_means, clopper_pearson
from expunge.core.config import config
from expunge.core.errors import ConfigError, near_matches
from expunge.core.finding import Direction, Finding
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.data.dataset import Dataset
from expunge.engine.modes import evaluating
from expunge.engine.task import Task

BINS = 10
_BATCH = 32
_CONFIDENCE = "confidence"
_REFUSED = "refused"
_ITSELF = "drops are counted from this model"
Side = Literal["near", "far"]
_SIDES: Mapping[Side, str] = {
    "near": "retain records most like the forget set",
    "far": "retain records least like the forget set",
}


@config
class NeighboursConfig:
    """Settings of the audit of side effects."""

    by: By = "probability"
    """Score of a record: probability of the true answer, ``exact`` (1 if every token is the first
    choice), or ``knowledge`` (1 if it beats every wrong answer)."""
    near: Annotated[int, Field(ge=1, le=5)] = 1
    """How many of the nearest tenths of the retain records are neighbours."""
    far: Annotated[int, Field(ge=1, le=5)] = 5
    """How many of the farthest tenths they are compared with."""
    neighbours: str = ""
    """Name of a probe set of your own that holds the neighbours, in place of the nearest tenths."""
    column: str = ""
    """Name of a column that is true for neighbours, in place of the tenths."""
    max_records: Annotated[int, Field(ge=0)] = 300
    """Most records of either side, drawn by seed; 0 takes all."""
    calibration: bool = True
    """Measure calibration too, at the cost of a second pass."""
    per_decile: Annotated[int, Field(ge=0)] = 50
    """Most records of each of the ten tenths of the retain records; 0 leaves the numbers by tenth
    out."""
    max_new_tokens: Annotated[int, Field(ge=0)] = 32
    """Length in tokens of the answers in which refusals are counted by tenth; 0 writes none."""
    max_excess_drop: Annotated[float, Field(ge=0)] | None = None
    """Largest drop of the neighbours beyond that of retraining that passes (the source: 0.03)."""


def _reads(config: NeighboursConfig, dataset: Dataset) -> Iterator[Reading]:
    if config.neighbours and config.column:
        raise ConfigError(
            f"neighbours = {config.neighbours!r} and column = {config.column!r} both name the "
            "neighbours; leave one of them empty"
        )
    if config.neighbours and config.neighbours not in dataset.probes:
        probes = dataset.probes
        known = near_matches(config.neighbours, probes) if probes else "they have none"
        raise ConfigError(
            f"neighbours = {config.neighbours!r} is no probe set of the data; {known}"
        )
    if config.column and config.column not in dataset.train:
        raise ConfigError(
            f"column = {config.column!r} is no column of the data; "
            f"{near_matches(config.column, dataset.train.columns)}"
        )
    measures = (_CONFIDENCE,) if config.calibration else ()
    sides = (dataclasses.replace(_reading(config, side), measures=measures) for side in _SIDES)
    for reading in (*sides, *_deciles(config)):
        yield from scored_as(reading, config.by, _source(dataset, reading))


@audit(
    "neighbours",
    kinds={"causal_lm"},
    reads=_reads,
    source="Open Problems in Machine Unlearning for AI Safety (Barez et al., 2025), audit S10",
)
def neighbours(evidence: Evidence, config: NeighboursConfig, run: Run) -> list[Finding]:
    """Does the model lose what only resembles the forget set?

    Neighbours are the tenth of the retain records nearest to any forget record, by the cosine of
    TF-IDF vectors of their words (prompt and answer); they are compared with the farthest half. A
    probe set or a column of your own may name the neighbours instead, which is better where
    likeness is a matter of meaning, or the language writes no spaces.

    It gives the mean score of both sides, how far each dropped from the model before unlearning,
    and by how much more the neighbours dropped. The figure to judge by is the drop of the
    neighbours beyond that of retrained models: retraining without the forget records loses some of
    what its neighbours knew from them, too. Intervals are bootstraps over records, paired where
    models are compared.

    Calibration is the expected calibration error of the first choices: records fall into ten bins
    by their mean confidence, and the distance between mean confidence and share of right first
    choices is averaged over tokens. Tokens of a record are taken together, so that it is at most
    the error of single tokens.

    By tenth, from the nearest retain records (``decile_1``) to the farthest (``decile_10``): score,
    calibration error and share of refused questions, so that a side effect can be seen to fade with
    distance. A refusal is an answer that begins by saying that it will not, cannot or does not
    know. Few records make any calibration error larger, so compare it between models only. Retain
    sets of which no tenth has 20 records have no such numbers.

    It does not show which neighbours were lost, nor knowledge that no retain record asks for.
    Likeness of words misses neighbours that share a subject without sharing words.

    Cost: one pass over the records of both sides and of the tenths, two with calibration, and an
    answer of up to 32 tokens to each record of the tenths.

    Source: Open Problems in Machine Unlearning for AI Safety (Barez et al., 2025), audit S10; Guo
        et al. (2017) for the calibration error.

    Differs from the source's proposal: distance is that of words, not of embeddings.
    """
    before = evidence.before
    taken = {
        side: {subject: _values(subject, config, side) for subject in evidence} for side in _SIDES
    }
    findings = []
    for side, words in _SIDES.items():
        findings += evidence.compare(
            f"score_{side}",
            f"Score of {words} ({config.by})",
            partial(_score, taken[side], side, run.seed),
            direction="higher",
            record_set=_reading(config, side).record_set,
        )
    for side, words in _SIDES.items():
        findings += evidence.compare(
            f"drop_{side}",
            f"Drop of {words}",
            partial(_drop, taken[side], before, side, run.seed),
            direction="lower",
            record_set=_reading(config, side).record_set,
        )
    findings += evidence.compare(
        "drop_difference",
        "Drop of neighbours beyond that of far records",
        partial(_difference, taken, before, run.seed),
        direction="lower",
        record_set=_reading(config, "near").record_set,
    )
    findings += evidence.compare(
        "excess_drop",
        "Drop of neighbours beyond retraining",
        partial(_excess, evidence, taken["near"], config.max_excess_drop, run.seed),
        direction="lower",
        record_set=_reading(config, "near").record_set,
        threshold=config.max_excess_drop,
        pairwise=True,
    )
    for side, words in _SIDES.items() if config.calibration else ():
        findings += evidence.compare(
            f"calibration_error_{side}",
            f"Calibration error on {words}",
            partial(_calibration, _reading(config, side)),
            direction="lower",
            record_set=_reading(config, side).record_set,
        )
    return findings + _decile_findings(evidence, config, run.seed)


def _decile_findings(evidence: Evidence, config: NeighboursConfig, seed: int) -> list[Finding]:
    """Return the numbers by tenth; none where no tenth has enough records for one."""
    readings = _deciles(config)
    if all(len(evidence.after.scores[reading]) < LEAST_RECORDS for reading in readings):
        return []

    def score(reading: Reading, subject: Subject) -> Measurement:
        values = values_of(subject, reading, config.by)
        return mean_of(np.array(list(values.values())), seed, reading.view)

    numbers: list[tuple[str, str, Direction, Callable[[Reading, Subject], Measurement]]] = [
        ("score", "Score", "higher", score)
    ]
    if config.calibration:
        numbers.append(("calibration_error", "Calibration error", "lower", _calibration))
    if config.max_new_tokens:
        numbers.append(("refused", "Refused questions", "lower", _refused))
    return [
        finding
        for metric, title, direction, compute in numbers
        for place, reading in enumerate(readings, start=1)
        for finding in evidence.compare(
            f"{metric}_decile_{place}",
            f"{title}: tenth {place} of the retain records, from the nearest",
            partial(compute, reading),
            direction=direction,
            record_set="retain",
        )
    ]


@of_model(_CONFIDENCE)
@torch.no_grad()
def confidence_R(model: nn.Module, task: Task, records: Records, run: Run) -> np.ndarray:
    """Return the mean probability of the first choice at each record's targets."""
    found_R = np.empty(len(records))
    order = np.argsort(task.lengths(records), kind="stable")
    model.to(run.device)
    with evaluating(model):
        for start in range(0, len(order), _BATCH):
            run.check()
            rows = order[start : start + _BATCH]
            batch = task.batch(records, rows.tolist()).to(run.device)
            predicted = task.predict(model, batch)
            top_N = torch.softmax(predicted.logits_NV.float(), dim=1).amax(1)
            found_R[rows] = (predicted.sum_rows(top_N) / batch.counts_B).cpu().numpy()
    return found_R


def calibration_error(confidence_R: np.ndarray, right_R: np.ndarray, weight_R: np.ndarray) -> float:
    """Return the expected calibration error over ten equal bins of confidence.

    Args:
        confidence_R: Mean confidence of each record, 0..1.
        right_R: Its share of right first choices.
        weight_R: Its targets.

    Source: Guo et al. (2017), equation 3, with records in place of single predictions.
    """
    bin_R = np.minimum((confidence_R * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(bin_R, weights=weight_R * (right_R - confidence_R), minlength=BINS)
    return float(np.abs(gaps).sum() / weight_R.sum())


def _reading(config: NeighboursConfig, side: Side) -> Reading:
    most = config.max_records
    if config.column:
        marks = {"near": "yes", "far": "no"}
        return Reading("retain", f"marked:{config.column}:{marks[side]}:{most}")
    if side == "near" and config.neighbours:
        return Reading(config.neighbours, limit=most)
    first, last = (1, config.near) if side == "near" else (TENTHS + 1 - config.far, TENTHS)
    return Reading("retain", f"near:{first}-{last}:{most}")


def _deciles(config: NeighboursConfig) -> list[Reading]:
    """Return every tenth by likeness to the forget set, from the nearest; none when left out."""
    if not config.per_decile:
        return []
    measures = (
        *([_CONFIDENCE] if config.calibration else []),
        *([_REFUSED] if config.max_new_tokens else []),
    )
    views = [f"near:{place}-{place}:{config.per_decile}" for place in range(1, TENTHS + 1)]
    return [
        Reading("retain", view, max_new_tokens=config.max_new_tokens, measures=measures)
        for view in views
    ]


def _source(dataset: Dataset, reading: Reading) -> Records:
    return dataset.records("train" if reading.record_set == "retain" else reading.record_set)


def _values(subject: Subject, config: NeighboursConfig, side: Side) -> np.ndarray:
    return np.array(list(values_of(subject, _reading(config, side), config.by).values()))


def _score(
    taken: Mapping[Subject, np.ndarray], side: Side, seed: int, subject: Subject
) -> Measurement:
    return mean_of(taken[subject], seed, side)


def _drop(
    taken: Mapping[Subject, np.ndarray],
    before: Subject | None,
    side: Side,
    seed: int,
    subject: Subject,
) -> Measurement:
    own_R = taken[subject]
    if before is None or subject is before:
        return Measurement(None, len(own_R), note=_ITSELF if before else NO_BEFORE)
    return mean_of(taken[before] - own_R, seed, side)


def _difference(
    taken: Mapping[Side, Mapping[Subject, np.ndarray]],
    before: Subject | None,
    seed: int,
    subject: Subject,
) -> Measurement:
    n = len(taken["near"][subject])
    if before is None or subject is before:
        return Measurement(None, n, note=_ITSELF if before else NO_BEFORE)
    near_R, far_R = (taken[side][before] - taken[side][subject] for side in _SIDES)
    least = min(len(near_R), len(far_R))
    if least < LEAST_RECORDS:
        return too_few(least)
    value = float(near_R.mean() - far_R.mean())
    draws = bootstrap_means(near_R, seed, "near") - bootstrap_means(far_R, seed, "far")
    return Measurement(value, n, resampled(value, draws, least))


def _excess(
    evidence: Evidence,
    taken: Mapping[Subject, np.ndarray],
    bound: float | None,
    seed: int,
    subject: Subject,
) -> Measurement:
    """Return by how much the references' mean score lies above the model's.

    The score before unlearning, from which both dropped, cancels out.
    """
    others = [taken[other] for other in evidence.others(subject)]
    own_R = taken[subject]
    if not others:
        return Measurement(None, len(own_R), note=NO_REFERENCE)
    return bounded(subject, mean_of(np.mean(others, axis=0) - own_R, seed, "near"), bound)


def _calibration(reading: Reading, subject: Subject) -> Measurement:
    scores: Scores = subject.scores[reading]
    if len(scores) < LEAST_RECORDS:
        return too_few(len(scores))
    right_R = np.add.reduceat(scores.greedy_N.astype(np.float64), scores.offsets[:-1]) / scores.n_R
    confidence = scores.measured[_CONFIDENCE]
    value = calibration_error(confidence, right_R, scores.n_R.astype(np.float64))
    return Measurement(value, len(scores))


def _refused(reading: Reading, subject: Subject) -> Measurement:
    scores = subject.scores[reading]
    if len(scores) < LEAST_RECORDS:
        return too_few(len(scores))
    hits = int(scores.measured[_REFUSED].sum())
    return Measurement(hits / len(scores), len(scores), clopper_pearson(hits, len(scores)))
