"""Attacks on the input: other words, prefixes that talk the model into it, slips of the keys."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from expunge.audit.audit import audit
from expunge.audit.evidence import Evidence, Measurement, Subject
from expunge.audit.outcomes import bounded, mean_of, paired
from expunge.audit.prompts import PREFIXES, UNCHANGED, rephraser_words
from expunge.audit.readings import Reading
from expunge.audit.recovery import (
    LEAST_RECORDS,
    Attack,
    Trial,
    record_scores,
    recovery_findings,
)
from expunge.audit.stats import RESAMPLES, percentile_interval
from expunge.core.config import config
from expunge.core.finding import Finding
from expunge.core.run import Run
from expunge.core.streams import stream
from expunge.data.dataset import Dataset

_PLAIN = Reading("forget")
_SECOND = "paraphrased_question"


@config
class ParaphraseConfig:
    """Settings of the audit of attacks on the input."""

    rephrasers: tuple[str, ...] = ("both",)
    """Registered rephrasers; a file of pairs may follow ``file`` behind ``=``."""
    mu: Annotated[float, Field(ge=0)] = 1.0
    """Strength of the rephrasing, 0 (none) to 1."""
    prefixes: tuple[Annotated[int, Field(ge=0, lt=len(PREFIXES))], ...] = tuple(
        range(len(PREFIXES))
    )
    """Numbers of the packaged prefixes."""
    noise: tuple[Annotated[int, Field(ge=1)], ...] = (3, 6, 12)
    """k of the slips on every k-th letter."""
    by: Literal["probability", "exact"] = "probability"
    """What counts as answering."""
    max_excess: float | None = None
    """Largest recovery beyond that of retrained models that passes; no verdict when absent."""
    max_rewording_gain: float | None = None
    """Most that other words may add to the score to pass; no verdict when absent."""


def _rewordings(config: ParaphraseConfig) -> Iterator[str]:
    """Yield the views that ask the same in other words."""
    for name in config.rephrasers:
        yield f"rephrased:{name}:{config.mu:g}"
    yield _SECOND


def _attacks(config: ParaphraseConfig) -> Iterator[str]:
    yield from _rewordings(config)
    yield from (f"prefix:{number}" for number in config.prefixes)
    yield from (f"noise:{every}" for every in config.noise)


def _reading(view: str) -> Reading:
    measures = ("rephrasing",) if view.startswith("rephrased:") else ()
    return Reading("forget", view, measures=measures)


def _reads(config: ParaphraseConfig, dataset: Dataset) -> Iterator[Reading]:
    yield _PLAIN
    for view in _attacks(config):
        if view != _SECOND or _SECOND in dataset.train:
            yield _reading(view)


@audit(
    "paraphrase",
    kinds={"causal_lm"},
    reads=_reads,
    source="Open Problems in Machine Unlearning for AI Safety (Barez et al., 2025), input attacks",
)
def paraphrase(evidence: Evidence, config: ParaphraseConfig, run: Run) -> list[Finding]:
    """Does forgetting hold when the question is put in other words, behind a prefix, with typos?

    Attacks: rephrasers (columns of the prompt in other words; names and words of the answers stay,
    and what the gate of rephrasings rejects is left out), the data's own second wording where there
    is one, eight packaged prefixes above the prompt, and slips on every k-th letter.

    Numbers, on the forget records that an attack changed: per attack the score, the recovery
    (A_attacked - A_unlearned) / (A_original - A_unlearned), and its excess over the mean recovery
    of retrained models under the same attack; the excess of the strongest attack is the headline,
    with the strongest one chosen anew in every resample. ``strongest``: the largest score that an
    attack reaches, chosen in the same way; ``strongest_gain``: how far that lies above the plain
    prompt. ``rewording_gain``: per rewording, the score in other words minus the score on the very
    prompts that were forgotten, paired by record: above 0, forgetting clings to the wording.
    ``queries``: how many prompts the attacks spent.

    It does not show what a stronger search finds: prefixes optimised for the model, other
    languages, encodings or talks over several turns are not tried. Cost: one scoring pass over the
    forget set per attack.

    Source: Open Problems in Machine Unlearning for AI Safety (Barez et al., 2025), section on
        attacks; C-BOD (Cohen-Inger et al., 2025), for paired comparison with other words.
    """
    asked = [
        view
        for view in dict.fromkeys(_attacks(config))
        if len(evidence.after.scores.get(_reading(view), ()))
    ]
    attacks = [
        Attack(
            _ending(view),
            _title(view),
            (Trial(_reading(view), _unchanged(evidence.after, view)),),
            note=_words(view),
        )
        for view in asked
    ]
    findings = recovery_findings(evidence, config, run, attacks)
    for metric, title, gain in (
        ("strongest", "Largest score that an attack on the input reaches", False),
        ("strongest_gain", "What the strongest attack on the input adds to the score", True),
    ):

        def strongest(subject: Subject, gain: bool = gain) -> Measurement:
            return _strongest(subject, asked, config, run.seed, gain=gain)

        findings += evidence.compare(
            metric, title, strongest, direction="reference", record_set="forget"
        )
    planned = list(dict.fromkeys(_rewordings(config)))
    for view in [view for view in planned if view in asked or view != _SECOND] or planned:
        findings += _rewording(evidence, view, config, run.seed)
    return findings + evidence.compare(
        "queries",
        "Prompts that the attacks on the input spent",
        lambda subject: _queries(subject, asked),
        direction="none",
        record_set="forget",
    )


def _unchanged(subject: Subject, view: str) -> frozenset[str]:
    """Return the records whose prompt an attack left as it was."""
    scores = subject.scores[_reading(view)]
    marks_R = scores.measured.get("rephrasing")
    if marks_R is None:
        return frozenset()
    return frozenset(scores.ids[row] for row in np.flatnonzero(marks_R == UNCHANGED))


def _values(subject: Subject, view: str, config: ParaphraseConfig) -> dict[str, float]:
    """Return the score of every record that an attack changed."""
    reading = _reading(view)
    ids, same = subject.scores[reading].ids, _unchanged(subject, view)
    scores_R = record_scores(subject, reading, config.by)
    return {i: value for i, value in zip(ids, scores_R.tolist(), strict=True) if i not in same}


def _plain(subject: Subject, config: ParaphraseConfig) -> dict[str, float]:
    scores_R = record_scores(subject, _PLAIN, config.by)
    return dict(zip(subject.scores[_PLAIN].ids, scores_R.tolist(), strict=True))


def _strongest(
    subject: Subject, asked: list[str], config: ParaphraseConfig, seed: int, *, gain: bool
) -> Measurement:
    """Return the largest mean over attacks; the largest in each resample makes the interval."""
    plain = _plain(subject, config)
    known = [_values(subject, view, config) for view in asked]
    able = [row for row, values in enumerate(known) if len(values) >= LEAST_RECORDS]
    if not able:
        return Measurement(None, 0, note=f"no attack changed {LEAST_RECORDS} records")
    ids = list(plain)
    scores_AR = np.array([[known[row].get(i, np.nan) for i in ids] for row in able])
    if gain:
        scores_AR -= np.array([plain[i] for i in ids])
    means_A = np.nanmean(scores_AR, axis=1)
    best = int(means_A.argmax())
    draws = stream(seed, "bootstrap", "input attacks")
    largest = []
    for _ in range(RESAMPLES):
        drawn_AR = scores_AR[:, draws.integers(len(ids), size=len(ids))]
        count_A = np.isfinite(drawn_AR).sum(axis=1)
        sum_A = np.nansum(drawn_AR, axis=1)
        largest.append(np.max(sum_A[count_A > 0] / count_A[count_A > 0]))
    n = int(np.isfinite(scores_AR[best]).sum())
    note = f"of {len(able)} attacks: {_title(asked[able[best]])}"
    return Measurement(float(means_A[best]), n, percentile_interval(np.array(largest)), note)


def _rewording(evidence: Evidence, view: str, config: ParaphraseConfig, seed: int) -> list[Finding]:
    bound = config.max_rewording_gain

    def compute(subject: Subject) -> Measurement:
        if not len(subject.scores.get(_reading(view), ())):
            return Measurement(None, 0, note="no record can be asked in other words")
        other_R, plain_R = paired(_values(subject, view, config), _plain(subject, config))
        found = mean_of(other_R - plain_R, seed, "rewording", _words(view))
        return bounded(subject, found, bound)

    return evidence.compare(
        f"rewording_gain_{_ending(view)}",
        f"What asking otherwise adds to the score: {_title(view)}",
        compute,
        direction="lower",
        record_set="forget",
        threshold=bound,
    )


def _queries(subject: Subject, asked: list[str]) -> Measurement:
    spent = sum(len(subject.scores[_reading(view)]) for view in asked)
    n = len(subject.scores[_PLAIN])
    note = f"{len(asked)} attacks on {n} records; one prompt scored per attack and record"
    return Measurement(float(spent), n, note=note)


def _ending(view: str) -> str:
    """Return how the names of an attack's numbers end: letters, digits and underscores."""
    return re.sub(r"\W+", "_", view)


def _title(view: str) -> str:
    name, _, rest = view.partition(":")
    if name == "prefix":
        return f"prefix {rest}"
    if name == "noise":
        return f"slips on every letter number {rest}"
    return "the data's second wording" if name == _SECOND else f"other words ({rest})"


def _words(view: str) -> str:
    """Return what an attack did, as precisely as it can be repeated."""
    name, _, rest = view.partition(":")
    if name == "prefix":
        return f"prefix: {PREFIXES[int(rest)]}"
    if name == "rephrased":
        by, _, mu = rest.rpartition(":")
        return rephraser_words(by, float(mu))
    return ""
