"""Worst case: the hardest part of the forget set, and how hard the whole of it is.

Shape legend: R records.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from torch import nn

from expunge.audit.audit import audit
from expunge.audit.carried import carried, carry
from expunge.audit.evidence import Evidence, Measurement, Subject
from expunge.audit.forget_set_selection import STUCK, Bilevel, select, top_rows
from expunge.audit.gap_attack import drawn_alike, svc_nonmembers
from expunge.audit.gap_numbers import MeanLoss, Number, Share, average_gap
from expunge.audit.measures import of_model
from expunge.audit.outputs import PREDICTION, measured
from expunge.audit.readings import Reading
from expunge.audit.stats import auc
from expunge.audit.treatments import NotApplicable, treatment
from expunge.audit.views import Scene
from expunge.core.config import config
from expunge.core.finding import Finding, Interval
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.data.dataset import Dataset
from expunge.engine.task import Task

DIFFICULTY = "worst_case_weight"
_TREATMENT = "worst_case"
_FORGET, _RETAIN, _TEST = Reading("forget"), Reading("retain"), Reading("test")

Way = Literal["low_loss", "bilevel"]
_WORDS: Mapping[str, str] = {
    "low_loss": "hardest by loss",
    "bilevel": "hardest by search",
}


@config
class WorstCaseConfig:
    """Settings of the worst-case audit."""

    share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the forget records that makes up the hardest part."""
    by: tuple[Way, ...] = ("low_loss",)
    """How it is found: ``low_loss``, the smallest losses under the original model; ``bilevel``, a
    search that unlearns again and again, and trains for it."""
    bilevel: Bilevel = Bilevel()
    """Settings of the search."""
    max_gap: Annotated[float, Field(ge=0)] | None = None
    """Largest average gap to retraining on the hardest part that passes, in points; no verdict when
    absent."""


def _reads(config: WorstCaseConfig, dataset: Dataset) -> Iterator[Reading]:
    # Only a regressor has predictions, by which the audit knows it.
    yield Reading("forget", measures=(PREDICTION,) if dataset.kind == "regressor" else ())
    yield from (_RETAIN, _TEST)
    if "bilevel" in config.by:
        yield _searched(config)


@treatment(_TREATMENT, roles=frozenset({"before"}))
def search_worst_case(
    model: nn.Module, task: Task, scene: Scene, parameters: str, run: Run
) -> tuple[nn.Module, Task]:
    """Search for the forget records that are still known once they are unlearned.

    Args:
        model: The original; it stays as it is, and carries each record's difficulty.
        task: How to run it.
        scene: The data.
        parameters: Share of the forget records, and the search's settings.
        run: Context.

    Raises:
        NotApplicable: There are fewer than two forget records, or the model is a composite.
    """
    share, outer, epochs, lr, batch, step, gamma = parameters.split(":")
    forget, retain = scene.records("forget"), scene.records("retain")
    if hasattr(model, "parts"):
        raise NotApplicable("a composite is not unlearned again")
    if len(forget) < 2:
        raise NotApplicable("one forget record has no hardest part")
    settings = Bilevel(
        outer_steps=int(outer),
        epochs=int(epochs),
        lr=float(lr),
        batch_size=int(batch),
        step=float(step),
        gamma=float(gamma),
    )
    count = _count(len(forget), float(share))
    found = select("bilevel", model, task, forget, count, run, settings=settings, beside=retain)
    overlap_R = np.full(len(forget), found.overlap)
    carry(model, DIFFICULTY, forget, np.column_stack([found.scores_R, overlap_R]))
    return model, task


@of_model(DIFFICULTY)
def difficulty_RD(model: nn.Module, task: Task, records: Records, run: Run) -> np.ndarray:
    """Return the weight that the search for the worst case gave each record, and the overlap.

    The overlap is the share of the random start that was chosen in the end, the same of all.

    Raises:
        UnsupportedModelError: There was no search.
    """
    del task, run
    return carried(model, DIFFICULTY, records)


@audit(
    "worst_case",
    kinds={"classifier", "regressor"},
    reads=_reads,
    source="Challenging Forgets (Fan et al., ECCV 2024)",
)
def worst_case(evidence: Evidence, config: WorstCaseConfig, run: Run) -> list[Finding]:
    """How hard is this forget set to forget, and does the model hold on its hardest part?

    Records that others teach as well are the hardest to forget: a retrained model, which never saw
    them, gets them right too, and nothing about them may change. Methods that push forgotten
    records away stand out there, although they look well on a random forget set.

    - ``difficulty``: the percentile of the forget set's loss among the retained records' under the
      same model: the chance that a retained record has the smaller loss. Of the original model 50
      is what a random forget set has, near 0 is the worst case, near 100 are outliers.
    - On the whole forget set, and on its hardest part (``_low_loss``, ``_bilevel``): ``ua``, the
      share that a classifier gets wrong; ``mia``, the share that a support-vector attack calls
      non-members; ``loss``, the mean loss; and ``gap``, the mean distance of ``ua`` and ``mia`` to
      retraining (of a regressor of ``mia`` and, in percent, the loss). Each carries its signed gap.

    The hardest part is found by the original model alone, never by what is audited: the smallest
    losses under it, and on request a search that unlearns again and again. The first costs nothing
    and was as hard as the second in our runs. The part holds few records; look at the intervals. It
    does not show how the method would do if the hardest records of all training data were to go:
    for that, select them (``audit.forget_set_selection``) and unlearn them.

    It costs one pass over forget, retain and test records; the search takes as many passes of
    training as its steps times its epochs, on the original model.

    Source: Challenging Forgets (Fan et al., 2024), sections 4 and 5; parts of a forget set, and
        percentiles, are ours.
    """
    regressor = PREDICTION in evidence.after.scores[_FORGET].measured
    findings = evidence.compare(
        "difficulty",
        "Percentile of the forget set's loss among retained records (50: as a random set)",
        _percentile,
        direction="none",
        record_set="forget",
        unit="%",
    )
    called = {subject: _called(subject, run.seed, regressor) for subject in evidence}
    for name in ("", *dict.fromkeys(config.by)):
        part = _part(evidence, config, name)

        def numbers(subject: Subject, part: _Part = part) -> dict[str, Number]:
            return _numbers(subject, part.rows, called[subject], regressor)

        findings += _part_findings(evidence, config, run, part, numbers, regressor=regressor)
    return findings


@dataclasses.dataclass(frozen=True, eq=False)
class _Part:
    """A part of the forget set.

    Attributes:
        rows: Its rows.
        name: Ending of its numbers' names; none of the whole.
        words: What it is, in a reader's words.
        note: How it was found.
        missing: Why there is none.
    """

    rows: np.ndarray
    name: str = ""
    words: str = ""
    note: str = ""
    missing: str = ""


def _part_findings(
    evidence: Evidence,
    config: WorstCaseConfig,
    run: Run,
    part: _Part,
    numbers: Callable[[Subject], dict[str, Number]],
    *,
    regressor: bool,
) -> list[Finding]:
    """Return the numbers of a part of the forget set."""
    found = {subject: {} if part.missing else numbers(subject) for subject in evidence}
    counted = ("loss", "mia") if regressor else ("ua", "mia")

    def measure(subject: Subject, metric: str) -> Measurement:
        number = found[subject].get(metric)
        if number is None:
            why = part.missing or "there are no retained or test records"
            return Measurement(None, 0, note=why)
        return Measurement(number.value, number.n, number.interval(run.seed))

    def gap(subject: Subject) -> Measurement:
        if part.missing:
            return Measurement(None, 0, note=part.missing)
        own, *others = (
            {key: found[one][key] for key in counted if key in found[one]}
            for one in (subject, *evidence.others(subject))
        )
        gap = average_gap(own, others, run.seed, counted)
        return dataclasses.replace(gap, note="; ".join(x for x in (gap.note, part.note) if x))

    ending = f"_{part.name}" if part.name else ""
    findings = []
    for metric, title in (
        ("ua", "Forgotten records got wrong"),
        ("mia", "Forgotten records that an SVC calls non-members"),
        ("loss", "Mean loss of forgotten records"),
    ):
        if metric == "ua" and regressor:
            continue
        findings += evidence.compare(
            f"{metric}{ending}",
            title + part.words,
            lambda subject, metric=metric: measure(subject, metric),  # type: ignore[misc]
            direction="reference",
            record_set="forget",
            unit="" if metric == "loss" else "%",
        )
    findings += evidence.compare(
        f"gap{ending}",
        f"Average gap to retraining{part.words or ' on the forget set'}",
        gap,
        direction="lower",
        record_set="forget",
        unit="points",
        threshold=config.max_gap if part.name else None,
    )
    return findings


def _part(evidence: Evidence, config: WorstCaseConfig, name: str) -> _Part:
    """Return the whole forget set, or its hardest part."""
    size, before = len(evidence.after.scores[_FORGET]), evidence.before
    if not name:
        return _Part(np.arange(size))
    words = f" ({100 * config.share:g} % {_WORDS[name]})"
    nothing = _Part(np.empty(0, dtype=np.int64), name, words)
    if before is None:
        why = "there is no model before unlearning that tells which records are hard"
        return dataclasses.replace(nothing, missing=why)
    if size < 2:
        return dataclasses.replace(nothing, missing="one forget record has no hardest part")
    count = _count(size, config.share)
    if name == "low_loss":
        return _Part(top_rows(-before.scores[_FORGET].loss_R, count), name, words)
    reading = _searched(config)
    if reading not in before.scores:
        why = before.absent.get(reading, "the original model was not searched")
        return dataclasses.replace(nothing, missing=why)
    score_R, overlap_R = measured(before.scores[reading], DIFFICULTY).T
    note = f"{100 * overlap_R[0]:.0f} % of the search's random start were chosen in the end"
    if overlap_R[0] > STUCK and 2 * count < size:
        note += ": it hardly moved; raise bilevel.step"
    return _Part(top_rows(score_R, count), name, words, note)


def _called(subject: Subject, seed: int, regressor: bool) -> np.ndarray | None:
    """Return which forget records an attack calls non-members, if it can be made."""
    scores = [subject.scores[reading] for reading in (_RETAIN, _TEST, _FORGET)]
    retain, test, forget = (one.loss_R if regressor else np.exp(one.logprob_N) for one in scores)
    if not (len(retain) and len(test)):
        return None
    members, strangers = drawn_alike(len(retain), len(test), seed)
    gamma: Literal["auto", "scale"] = "scale" if regressor else "auto"
    return svc_nonmembers(retain[members], test[strangers], forget, gamma)


def _numbers(
    subject: Subject, rows: np.ndarray, called_R: np.ndarray | None, regressor: bool
) -> dict[str, Number]:
    forget = subject.scores[_FORGET]
    numbers: dict[str, Number] = {"loss": MeanLoss(forget.loss_R[rows])}
    if not regressor:
        numbers["ua"] = Share(int((~forget.greedy_N[rows]).sum()), len(rows))
    if called_R is not None:
        numbers["mia"] = Share(int(called_R[rows].sum()), len(rows))
    return numbers


def _percentile(subject: Subject) -> Measurement:
    forget, retain = (subject.scores[reading].loss_R for reading in (_FORGET, _RETAIN))
    if not len(retain):
        return Measurement(None, 0, note="there are no retained records")
    value, interval = auc(forget, retain)
    wide = Interval(
        low=100 * interval.low,
        high=100 * interval.high,
        level=interval.level,
        method=interval.method,
    )
    return Measurement(100 * value, len(forget) + len(retain), wide)


def _count(size: int, share: float) -> int:
    return min(max(round(share * size), 1), size - 1)


def _searched(config: WorstCaseConfig) -> Reading:
    own = config.bilevel
    numbers = (own.outer_steps, own.epochs, own.lr, own.batch_size, own.step, own.gamma)
    spec = ":".join([_TREATMENT, str(config.share), *map(str, numbers)])
    return dataclasses.replace(_FORGET, treatment=spec, measures=(DIFFICULTY,))
