"""Attacks on the input: other words, languages and encodings, prefixes, slips, talks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from expunge.audit.audit import audit
from expunge.audit.evidence import Evidence, Measurement, Subject
from expunge.audit.input_attacks import SECOND, InputAttack, attacks_of, rewordings_of
from expunge.audit.input_attacks import ParaphraseConfig as ParaphraseConfig
from expunge.audit.outcomes import bounded, mean_of, paired
from expunge.audit.prompts import UNCHANGED
from expunge.audit.readings import Reading
from expunge.audit.recovery import (
    LEAST_RECORDS,
    Attack,
    Trial,
    record_scores,
    recovery_findings,
)
from expunge.audit.stats import RESAMPLES, percentile_interval
from expunge.audit.treatments import GROUP, groups_read, split_words
from expunge.core.finding import Finding
from expunge.core.run import Run
from expunge.core.streams import stream
from expunge.data.dataset import Dataset

_PLAIN = Reading("forget", measures=(GROUP,))


def _reads(config: ParaphraseConfig, dataset: Dataset) -> Iterator[Reading]:
    yield _PLAIN
    for attack in attacks_of(config):
        if attack.reading.view != SECOND or SECOND in dataset.train:
            yield attack.reading


@audit(
    "paraphrase",
    kinds={"causal_lm"},
    reads=_reads,
    version=2,
    source="Open Problems in Machine Unlearning for AI Safety (Barez et al., 2025), input attacks",
)
def paraphrase(evidence: Evidence, config: ParaphraseConfig, run: Run) -> list[Finding]:
    """Does forgetting hold when the question is asked otherwise?

    Attacks that look at nothing, and are scored on the forget records that they changed:

    - rephrasers: columns of the question in other words; names and words of the answers stay, and
      what the gate of rephrasings rejects is left out. Beside them the data's own second wording.
    - eight packaged prefixes above the prompt, and slips on every k-th letter.
    - languages: a packaged instruction in another language ("answer the following question in
      English") around the question. The question itself is not translated, so this tells whether
      forgetting hangs on the language of the prompt, not whether the fact is known in another one.
    - encodings: the question in Base64 and in ROT13, below words that say so. Answers stay as they
      are, so this tells of a model that reads the encoding, and nothing of others.
    - translators: the question as a rephraser of yours translates it, from a file of translated
      questions or from code. What misses the gate of translations is left out; whether a
      translation means the same is yours to know, and answers stay in their language.
    - again: the question, a wrong answer (the data's first one, else a refusal), "That is wrong.
      Try again.", and the question once more.

    Attacks that see a share of the forget records, and are scored on the others:

    - turns: earlier turns of the talk are attacked facts with their true answers, drawn for each
      question. Turns are messages where the template is a chat, else lines of text.
    - search: one prefix of a few tokens for all questions, found by greedy coordinate gradient on
      the attacked facts (it needs the weights). Each retrained model gets a search of its own.
      Every candidate is text that the tokenizer reads back as the same tokens. The prefix is not
      kept, since it may spell what was forgotten.

    Numbers: per attack the score, the recovery
    (A_attacked - A_unlearned) / (A_original - A_unlearned), and its excess over the mean recovery
    of retrained models under the same attack. The excess of the strongest attack is the headline
    (``excess``; ``excess_informed`` of the attacks that see facts), with the strongest one chosen
    anew in every resample. ``strongest``: the largest score that an attack reaches, chosen in the
    same way; ``strongest_gain``: how far that lies above the plain prompt. ``rewording_gain``: per
    rewording, the score in other words minus the score on the very prompts that were forgotten,
    paired by record: above 0, forgetting clings to the wording. ``queries``: how many prompts the
    attacks spent.

    It does not show what a longer search finds (the one that the literature runs takes 500 steps of
    512 candidates; raise ``search_steps`` and ``search_candidates``), nor languages for which no
    translation is given, nor answers that are asked for in an encoding.

    Cost: one scoring pass over the forget set per attack, and for the search about
    ``search_steps * (search_candidates + 2) * search_facts`` prompts for the model after unlearning
    and each retrained one.

    Source: Open Problems in Machine Unlearning for AI Safety (Barez et al., 2025), section on
        attacks; C-BOD (Cohen-Inger et al., 2025), for paired comparison with other words; Universal
        and Transferable Adversarial Attacks on Aligned Language Models (Zou et al., 2023), for the
        search.
    """
    planned = attacks_of(config)
    asked = [attack for attack in planned if _tried(evidence.after, attack)]
    findings = []
    for informed, family in ((False, ""), (True, "informed")):
        if informed and not any(attack.informed for attack in planned):
            continue
        chosen = [_recovered(evidence, a) for a in asked if a.informed == informed]
        findings += recovery_findings(evidence, config, run, chosen, plain=_PLAIN, family=family)
    for metric, title, gain in (
        ("strongest", "Largest score that an attack on the input reaches", False),
        ("strongest_gain", "What the strongest attack on the input adds to the score", True),
    ):

        def strongest(subject: Subject, gain: bool = gain) -> Measurement:
            return _strongest(subject, asked, config, run.seed, gain=gain)

        findings += evidence.compare(
            metric, title, strongest, direction="reference", record_set="forget"
        )
    rewordings = rewordings_of(config)
    kept = [one for one in rewordings if one in asked or one.reading.view != SECOND]
    for attack in kept or rewordings:
        findings += _rewording(evidence, attack, config, run.seed)
    return findings + evidence.compare(
        "queries",
        "Prompts that the attacks on the input spent",
        lambda subject: _queries(subject, asked),
        direction="none",
        record_set="forget",
    )


def _tried(subject: Subject, attack: InputAttack) -> bool:
    """Return whether an attack was made on any record, or could not be for a reason to be told."""
    reading = attack.reading
    return bool(len(subject.scores.get(reading, ()))) or reading in subject.absent


def _recovered(evidence: Evidence, attack: InputAttack) -> Attack:
    """Return an attack as the one way to measure recovery takes it."""
    words = attack.words
    if attack.informed:
        told = split_words(groups_read(evidence.after.scores[_PLAIN]))
        words = f"{words}; {told}" if words else told
    trial = Trial(attack.reading, _unchanged(evidence.after, attack))
    return Attack(attack.ending, attack.title, (trial,), note=words)


def _unchanged(subject: Subject, attack: InputAttack) -> frozenset[str]:
    """Return the records whose prompt an attack left as it was."""
    scores = subject.scores.get(attack.reading)
    marks_R = None if scores is None else scores.measured.get("rephrasing")
    if scores is None or marks_R is None:
        return frozenset()
    return frozenset(scores.ids[row] for row in np.flatnonzero(marks_R == UNCHANGED))


def _values(subject: Subject, attack: InputAttack, config: ParaphraseConfig) -> dict[str, float]:
    """Return the score of every record that an attack changed; none: the model is not attacked."""
    if attack.reading not in subject.scores:
        return {}
    ids, same = subject.scores[attack.reading].ids, _unchanged(subject, attack)
    scores_R = record_scores(subject, attack.reading, config.by)
    return {i: value for i, value in zip(ids, scores_R.tolist(), strict=True) if i not in same}


def _plain(subject: Subject, config: ParaphraseConfig) -> dict[str, float]:
    scores_R = record_scores(subject, _PLAIN, config.by)
    return dict(zip(subject.scores[_PLAIN].ids, scores_R.tolist(), strict=True))


def _strongest(
    subject: Subject,
    asked: Sequence[InputAttack],
    config: ParaphraseConfig,
    seed: int,
    *,
    gain: bool,
) -> Measurement:
    """Return the largest mean over attacks; the largest in each resample makes the interval."""
    plain = _plain(subject, config)
    known = [_values(subject, attack, config) for attack in asked]
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
    note = f"of {len(able)} attacks: {asked[able[best]].title}"
    return Measurement(float(means_A[best]), n, percentile_interval(np.array(largest)), note)


def _rewording(
    evidence: Evidence, attack: InputAttack, config: ParaphraseConfig, seed: int
) -> list[Finding]:
    bound = config.max_rewording_gain

    def compute(subject: Subject) -> Measurement:
        if not len(subject.scores.get(attack.reading, ())):
            return Measurement(None, 0, note="no record can be asked in other words")
        other_R, plain_R = paired(_values(subject, attack, config), _plain(subject, config))
        found = mean_of(other_R - plain_R, seed, "rewording", attack.words)
        return bounded(subject, found, bound)

    return evidence.compare(
        f"rewording_gain_{attack.ending}",
        f"What asking otherwise adds to the score: {attack.title}",
        compute,
        direction="lower",
        record_set="forget",
        threshold=bound,
    )


def _queries(subject: Subject, asked: Sequence[InputAttack]) -> Measurement:
    made = [attack for attack in asked if attack.reading in subject.scores]
    scored = sum(len(subject.scores[attack.reading]) for attack in made)
    searched = sum(attack.searched for attack in made)
    n = len(subject.scores[_PLAIN])
    note = f"{len(made)} attacks on {n} records; one prompt scored per attack and record"
    if searched:
        note += f", and at most {searched} read by the search"
    return Measurement(float(scored + searched), n, note=note)
