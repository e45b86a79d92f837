"""MUSE: verbatim memory, knowledge, privacy leakage and utility of a language model.

Its two other properties, how a method bears larger and repeated requests, belong to the method and
not to one model: ``expunge bench muse`` measures them.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from expunge.audit.audit import audit
from expunge.audit.evidence import Evidence, Measurement, Subject
from expunge.audit.measures import of_text, rouge_l_f
from expunge.audit.mia import distance
from expunge.audit.privleak import FEW, MEMBERS, NONMEMBERS, Attack, measured_privleak
from expunge.audit.prompts import filled, template_of
from expunge.audit.readings import Reading
from expunge.audit.stats import mean_interval
from expunge.audit.views import Scene, views
from expunge.core.config import config
from expunge.core.errors import ConfigError, DataError, listing
from expunge.core.finding import Finding
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.core.streams import stream
from expunge.data.dataset import Dataset

_GRAM, _SHARED = 8, 0.1
_ENDS = re.compile(r"\n\n|\nQuestion|Question:")
_COLUMN = "few_shot_examples"


@config
class MuseConfig:
    """Settings of the MUSE audit."""

    read_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of a forgotten answer (of a text without a question) that the model reads before it is
    to go on by heart."""
    verbatim_tokens: Annotated[int, Field(ge=1)] = 128
    """Longest continuation in tokens."""
    knowledge_tokens: Annotated[int, Field(ge=1)] = 32
    """Longest answer to a question in tokens."""
    shots: Annotated[int, Field(ge=0)] = 0
    """Examples put before every question, drawn from the utility set; the paper uses 10."""
    knowledge_set: str = "forget"
    """Records whose questions ask for what is forgotten: a probe where the forget set is texts."""
    utility_set: str = "retain"
    """Records whose questions ask for what is kept."""
    max_records: Annotated[int, Field(ge=0)] = 100
    """Most records of each set that the model writes for; 0 takes all."""
    min_k: Annotated[float, Field(gt=0, le=1)] = 0.4
    """Share of a text's least likely tokens that the membership attack looks at (K)."""
    max_privleak: Annotated[float, Field(ge=0)] | None = None
    """Largest distance of PrivLeak to 0 that passes, given 100 texts a side; no verdict when
    absent."""


def _reads(config: MuseConfig, dataset: Dataset) -> Iterator[Reading]:
    yield _verbatim(config)
    for name in (config.knowledge_set, config.utility_set):
        records = dataset.records("train" if name in ("forget", "retain") else name)
        if len(records) and "answer" in records:
            yield _questions(config, name)
    yield MEMBERS
    yield NONMEMBERS


# Longer or shorter answers that another audit asks for would change these numbers; readings under
# views of their own are shared with no other.
def _verbatim(config: MuseConfig) -> Reading:
    view = f"continuation:{config.read_share:g}:{config.verbatim_tokens}"
    return Reading(
        "forget",
        view,
        config.max_records,
        max_new_tokens=config.verbatim_tokens,
        measures=("rouge_l_f",),
    )


def _questions(config: MuseConfig, name: str) -> Reading:
    return Reading(
        name,
        f"few_shot:{config.shots}:{config.utility_set}",
        config.max_records,
        max_new_tokens=config.knowledge_tokens,
        measures=("rouge_l_f_first",),
    )


@audit(
    "muse",
    kinds={"causal_lm"},
    reads=_reads,
    source="MUSE: Machine Unlearning Six-Way Evaluation for Language Models (Shi et al., ICLR "
    "2025)",
)
def muse(evidence: Evidence, config: MuseConfig, run: Run) -> list[Finding]:
    """Verbatim memory, knowledge, privacy leakage and utility, as MUSE measures them.

    Verbatim (C1): the model reads the first part of a forgotten text or answer and writes on;
    ROUGE-L F against how it really goes on. Knowledge (C2): ROUGE-L F of its answers to questions
    about what is forgotten. Utility (C4): the same for what is kept. All three are means in
    percent. The right height is that of a retrained model, not 0: it writes some of the words too.

    PrivLeak (C3) asks whether the forgotten texts stand out among texts never seen. A Min-K% attack
    gives ``a``, the probability that a held-out text looks more memorised than a forgotten one; the
    number is ``100 (a - a_rt) / a_rt``, with ``a_rt`` the mean over retrained models. -100: every
    forgotten text is still recognised. 0: as after retraining. Far above 0: forgotten texts are
    less likely than ones never seen, which betrays them as well.

    It does not show: anything, when one number is read without the others. A destroyed model has no
    verbatim memory, no knowledge and sometimes a PrivLeak near 0. PrivLeak says nothing where
    forgotten and held-out texts differ by nature (then ``a_rt`` is far from 0.5), and its error is
    wide below 100 texts on either side. A refusal that the model writes counts as forgotten.

    Source: MUSE (Shi et al., 2025), section 3; Min-K% (Shi et al., 2024).
    Units: percent; PrivLeak is percent of ``a_rt``.
    Cost: generates up to ``verbatim_tokens`` for ``max_records`` forgotten records and
        ``knowledge_tokens`` for as many of two sets; reads forgotten and held-out records once.
    Differs from the official code: a text of few tokens uses its single least likely one in place
        of none (which is NaN), and texts under 4 tokens are left out of PrivLeak; ``a_rt`` is the
        mean over all retrained models, not one stored number; every number has an interval.
    """
    findings = []
    for metric, title, reading, direction in (
        ("verbatim", "Verbatim memory: ROUGE-L F of continuations", _verbatim(config), "reference"),
        (
            "knowledge",
            "Knowledge of what is forgotten: ROUGE-L F of answers",
            _questions(config, config.knowledge_set),
            "reference",
        ),
        (
            "utility",
            "Utility: ROUGE-L F of answers about what is kept",
            _questions(config, config.utility_set),
            "higher",
        ),
    ):

        def mean(subject: Subject, reading: Reading = reading) -> Measurement:
            return _mean(subject, reading, run.seed)

        findings += evidence.compare(
            metric,
            title,
            mean,
            direction=direction,  # type: ignore[arg-type]
            record_set=reading.record_set,
            unit="%",
        )
    attacks = {subject: Attack.of(subject, config.min_k, run.seed) for subject in evidence}
    leaks = {
        subject: measured_privleak(
            attacks[subject], [attacks[one] for one in evidence.others(subject)]
        )
        for subject in evidence
    }

    def size(subject: Subject) -> Measurement:
        found = distance(leaks[subject], [Measurement(0.0, 0)])
        # Few texts can condemn a model, but not clear it.
        clear = subject is evidence.after and _clears(found, config.max_privleak)
        few = min(attacks[subject].counts) < FEW
        return dataclasses.replace(
            found, note=leaks[subject].note, verdict="inconclusive" if clear and few else None
        )

    percent = f"{100 * config.min_k:g}"
    findings += evidence.compare(
        "min_k_auc",
        f"Min-{percent}% attack: a held-out text looks more memorised than a forgotten one",
        lambda subject: attacks[subject].measurement(),
        direction="reference",
        record_set="forget",
    )
    findings += evidence.compare(
        "privleak",
        "PrivLeak (-100: all recognised, 0: as retrained)",
        lambda subject: leaks[subject],
        direction="reference",
        record_set="forget",
        unit="%",
        pairwise=True,
    )
    findings += evidence.compare(
        "privleak_distance",
        "Distance of PrivLeak to 0",
        size,
        direction="lower",
        record_set="forget",
        unit="%",
        threshold=config.max_privleak,
        pairwise=True,
    )
    return findings


@of_text("rouge_l_f_first")
def rouge_l_f_of_first(answers: Sequence[str], truths: Sequence[str]) -> np.ndarray:
    """Return the ROUGE-L F-measure of each answer up to where it begins another question.

    Args:
        answers: What the model wrote.
        truths: The true answers.

    Source: MUSE (Shi et al., 2025), knowledge memorization; cut as in its code.
    """
    return rouge_l_f([_ENDS.split(answer, maxsplit=1)[0] for answer in answers], truths)


def _clears(found: Measurement, bound: float | None) -> bool:
    return bound is not None and found.interval is not None and found.interval.high <= bound


def _mean(subject: Subject, reading: Reading, seed: int) -> Measurement:
    if reading not in subject.scores:
        note = (
            f"{reading.record_set!r} has no questions with answers; name a set that has some in "
            "knowledge_set and utility_set"
        )
        return Measurement(None, 0, note=note)
    [name] = reading.measures
    values_R = 100 * subject.scores[reading].measured[name]
    if not len(values_R):
        return Measurement(None, 0, note=f"{reading.record_set!r} has no records")
    interval = mean_interval(values_R, seed, reading.record_set, high=100.0)
    return Measurement(float(values_R.mean()), len(values_R), interval)


@views.register("continuation")
def continuation(task: Any, records: Records, scene: Scene, parameters: str) -> tuple[Any, Records]:
    """Return a task that reads a share of each answer and predicts how it goes on.

    Parameters: the share, and the most tokens that are predicted, as in ``continuation:0.5:128``.

    Raises:
        ConfigError: The parameters are not a share below 1 and a length.
    """
    del scene
    share, _, longest = parameters.partition(":")
    try:
        if 0 <= float(share) < 1 and int(longest) >= 0:
            return task.continuing(float(share), int(longest)), records
    except ValueError:
        pass
    raise ConfigError(
        f"view 'continuation:{parameters}' needs a share below 1 and a length in tokens, such as "
        "continuation:0.5:128"
    )


@views.register("few_shot")
def few_shot(task: Any, records: Records, scene: Scene, parameters: str) -> tuple[Any, Records]:
    """Return a task that reads some answered questions before each record's own.

    Parameters: how many, and the set that they are drawn from, as in ``few_shot:10:retain``. None
    of them is among the records, by id or by question.

    Raises:
        ConfigError: The parameters are not a number and a set.
        DataError: The set has too few records beside those that are asked.
    """
    count, _, name = parameters.partition(":")
    if not count.isdigit() or not name:
        raise ConfigError(
            f"view 'few_shot:{parameters}' needs a number and a set, such as few_shot:10:retain"
        )
    if count == "0":
        return task, records
    template, pool = template_of(task), scene.records(name)
    asked, tested = set(_texts(template.prompt, records)), set(records.ids)
    prompts = _texts(template.prompt, pool)
    free = [
        row
        for row, record_id in enumerate(pool.ids)
        if record_id not in tested and prompts[row] not in asked
    ]
    if len(free) < int(count):
        raise DataError(
            f"shots = {count}, but {name!r} has only {len(free)} records that are not asked "
            "themselves; lower shots, or max_records"
        )
    order = stream(scene.seed, "few_shot", name).permutation(len(free))
    chosen = pool.take([free[row] for row in order[: int(count)]])
    examples = "".join(_texts(template.prompt + template.answer + "\n\n", chosen))
    shown = dataclasses.replace(template, prompt=f"{{{_COLUMN}}}" + template.prompt)
    return task.with_template(shown), records.replace(**{_COLUMN: [examples] * len(records)})


@views.register("apart")
def apart(task: Any, records: Records, scene: Scene, parameters: str) -> tuple[Any, Records]:
    """Return the records as they are, once it is certain that none of them is retained or held out.

    Text counts, not the id: lower-case words. A share of 8-word sequences that held-out texts have
    too is warned of.

    Raises:
        DataError: A text is in one of the other sets as well.
    """
    del parameters
    template = template_of(task)
    pattern = template.prompt + " " + template.answer
    own = _words(_texts(pattern, records))
    others = {
        name: _words(_texts(pattern, scene.records(name)))
        for name in ("retain", "holdout")
        if len(getattr(scene.sets, name))
    }
    for name, texts in others.items():
        known = set(texts)
        twice = [i for i, text in zip(records.ids, own, strict=True) if text in known]
        if twice:
            raise DataError(
                f"{len(twice)} forgotten records have the text of a {name} record "
                f"({listing(twice)}); muse cannot tell the sets apart: drop one of the two"
            )
    share = _shared_grams(own, others.get("holdout", ()))
    if share > _SHARED:
        warnings.warn(
            f"{100 * share:.0f} % of the {_GRAM}-word sequences of forgotten records are in "
            "held-out ones too; PrivLeak will look smaller than it is",
            stacklevel=2,
        )
    return task, records


@functools.lru_cache(maxsize=4)
def _shared_grams(own: tuple[str, ...], other: tuple[str, ...]) -> float:
    """Return the share of distinct word sequences of one side that the other has too."""
    grams = _grams(own)
    return len(grams & _grams(other)) / len(grams) if grams else 0.0


def _grams(texts: tuple[str, ...]) -> set[tuple[str, ...]]:
    split = [text.split() for text in texts]
    return {tuple(w[at : at + _GRAM]) for w in split for at in range(len(w) - _GRAM + 1)}


def _words(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(" ".join(re.findall(r"\w+", text.lower())) for text in texts)


def _texts(pattern: str, records: Records) -> list[str]:
    return [filled(pattern, records, row) for row in range(len(records))]
