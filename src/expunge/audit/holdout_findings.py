"""Findings of a held-out set, as a reusable holdout answers them: bounded means, or nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from expunge.audit.evidence import Evidence, Subject
from expunge.audit.holdout import Answer, Exhausted, Thresholdout
from expunge.audit.scores import Scores
from expunge.core.digest import digest_json
from expunge.core.errors import DataError
from expunge.core.finding import Finding, Interval, Reference, judge

_FIRST = ("after", "part", "before", "reference")
"""Whose questions are asked first, as long as there is a budget."""


@dataclasses.dataclass(frozen=True)
class Bounded:
    """A number of a held-out set that is a mean of bounded values, one for each record.

    Attributes:
        twin: Its name where it is computed on the training sample.
        high: Largest value of a record; the least is 0.
    """

    twin: str
    high: float = 1.0


_SAME = {
    "tofu": ("probability", "rouge_l", "truth_ratio", "truth_ratio_arithmetic"),
    "memorization": ("verbatim", "exact", "extraction_strength", "knowledge"),
}
BOUNDED: Mapping[tuple[str, str], Bounded] = {
    **{(audit, name): Bounded(name) for audit, names in _SAME.items() for name in names},
    ("unlearning_gap", "ta"): Bounded("ra", 100.0),
}
"""The numbers, by audit and metric, that a reusable holdout can be asked for."""


def reusable(
    finding_train: Finding,
    finding_holdout: Finding,
    mechanism: Thresholdout,
    *,
    low: float = 0.0,
    high: float = 1.0,
) -> Finding:
    """Return the held-out finding as the mechanism answers it; the note tells the budget.

    Everything that was computed on the holdout is dropped: interval, references, verdict and note.
    The verdict is made anew and stays inconclusive within one threshold of the bound. A question
    that the ledger answered before, of the same model on the same sets, is answered alike at no
    cost; that takes findings with the digests of model and sets.

    Args:
        finding_train: The number as a mean over the whole training sample.
        finding_holdout: The same number over the whole held-out sample.
        mechanism: Answers, or says that its budget is spent; then the value is ``None``.
        low: Least value that one record can contribute to the mean.
        high: Largest value.

    Raises:
        DataError: The findings are not of one metric, rest on other records than the mechanism's,
            or lie outside the range.
        StorageError: The ledger cannot be written.
    """
    _require_one_metric(finding_train, finding_holdout)
    sizes = (finding_train.n, finding_holdout.n)
    value, tolerance, note = None, None, "There was no number to ask the reusable holdout about."
    a_train, a_holdout = finding_train.value, finding_holdout.value
    if a_train is not None and a_holdout is not None:
        if sizes != (mechanism.num_train, mechanism.n):
            raise DataError(
                f"{finding_holdout.metric} rests on {sizes[0]} and {sizes[1]} records, the "
                f"reusable holdout on {mechanism.num_train} and {mechanism.n}; average over all "
                "records of both samples"
            )
        try:
            answer = _answer(finding_train, a_train, a_holdout, mechanism, low, high)
        except Exhausted:
            note = f"The reusable holdout is exhausted: {_budget(mechanism, mechanism.remaining)}."
        else:
            value = min(max(answer.value, low), high)
            reach = mechanism.threshold * (high - low)
            tolerance = Interval(low=value - reach, high=value + reach)
            told = {"train": "training value", "holdout": "held-out value with noise"}
            note = (
                f"Reusable holdout, {told[answer.source]}: {_budget(mechanism, answer.remaining)}."
            )
    threshold, direction = finding_holdout.threshold, finding_holdout.direction
    return dataclasses.replace(
        finding_holdout,
        value=value,
        interval=None,
        reference=None,
        verdict="not_applicable"
        if threshold is None
        else judge(value, tolerance, threshold, direction),
        note=note,
    )


def _answer(
    one: Finding, a_train: float, a_holdout: float, mechanism: Thresholdout, low: float, high: float
) -> Answer:
    """Ask what was not asked before; a finding that does not say of which model always counts."""
    question = f"{one.audit}.{one.metric}"
    if one.model and one.sets:
        of = [one.version, one.model, one.sets, one.n, repr(a_train)]
        question = f"{question} {digest_json(of)[:32]}"
        known = mechanism.recall(question, low=low, high=high)
        if known is not None:
            return known
    return mechanism.ask_values(a_train, a_holdout, low=low, high=high, question=question)


def _budget(mechanism: Thresholdout, remaining: int | None) -> str:
    each = mechanism.epsilon_per_disagreement
    if each is None:
        return "a demonstration without a guarantee"
    left = f"{remaining} of {mechanism.budget} disagreements left"
    return f"{left}, epsilon {each:.3g} each, not a certificate"


def _require_one_metric(one: Finding, other: Finding) -> None:
    for name in ("audit", "metric", "version", "subject", "seed", "part", "model", "direction"):
        if getattr(one, name) != getattr(other, name):
            raise DataError(
                f"the findings differ in {name}: {getattr(one, name)!r} and "
                f"{getattr(other, name)!r}; give one number on both samples"
            )


def without(evidence: Evidence, record_set: str) -> Evidence:
    """Return the evidence as if the data had no records of a set.

    Args:
        evidence: The models.
        record_set: The set.
    """

    def blind(subject: Subject) -> Subject:
        scores = {
            reading: _nothing(scores) if reading.record_set == record_set else scores
            for reading, scores in subject.scores.items()
        }
        return dataclasses.replace(subject, scores=scores)

    return dataclasses.replace(
        evidence,
        after=blind(evidence.after),
        before=None if evidence.before is None else blind(evidence.before),
        references=tuple(map(blind, evidence.references)),
        parts=tuple(map(blind, evidence.parts)),
    )


def answered(
    findings: Sequence[Finding],
    blind: Sequence[Finding],
    mechanism: Thresholdout,
    *,
    train: str = "retain",
    holdout: str = "test",
) -> list[Finding]:
    """Return an audit's findings such that the held-out set shows through the mechanism only.

    What the audit finds without the set, too, stays as it is. Means of bounded values on the set
    are asked of the mechanism; the models after unlearning come first, while there is a budget. All
    other numbers that the set has a part in are withheld. Answers stand beside those of the
    retrained models.

    Args:
        findings: What the audit found.
        blind: What it finds ``without`` the held-out set.
        mechanism: Answers for this set.
        train: Name of the training sample in findings.
        holdout: Name of the held-out set in findings.

    Raises:
        StorageError: The ledger cannot be written.
    """
    free = {finding.digest() for finding in blind}
    changed = list(findings)
    rows = [row for row, one in enumerate(findings) if one.digest() not in free]
    twins = {_identity(one): one for one in findings if one.record_set == train}
    sizes, asked = (mechanism.num_train, mechanism.n), []
    for row in sorted(rows, key=lambda row: _FIRST.index(findings[row].subject)):
        one = findings[row]
        bounded = BOUNDED.get((one.audit, one.metric)) if one.record_set == holdout else None
        twin = twins.get(_identity(one, bounded.twin)) if bounded else None
        if bounded is None:
            changed[row] = _withheld(
                one, "it rests on the reused set and is no mean of bounded values there"
            )
        elif twin is None:
            changed[row] = _withheld(one, f"the audit has no such number of {train} records")
        elif one.value is not None and (twin.n, one.n) != sizes:
            rests = f"it rests on {twin.n} {train} and {one.n} {holdout} records"
            all_ = f"of {sizes[0]} and {sizes[1]}; let the audit take all"
            changed[row] = _withheld(one, f"{rests} {all_}")
        else:
            twin = dataclasses.replace(twin, metric=one.metric)
            changed[row] = reusable(twin, one, mechanism, high=bounded.high)
            asked.append(row)
    for row in asked:
        changed[row] = _beside_references(changed[row], [changed[other] for other in asked])
    return changed


def _nothing(scores: Scores) -> Scores:
    return Scores(
        ids=(),
        offsets=scores.offsets[:1],
        logprob_N=scores.logprob_N[:0],
        rank_N=scores.rank_N[:0],
        mean_N=scores.mean_N[:0],
        variance_N=scores.variance_N[:0],
        measured={name: values[:0] for name, values in scores.measured.items()},
    )


def _identity(one: Finding, metric: str = "") -> tuple[object, ...]:
    """Return what a number and its twin on another set share."""
    return (metric or one.metric, one.subject, one.seed, one.part)


def _withheld(one: Finding, why: str) -> Finding:
    return dataclasses.replace(
        one,
        value=None,
        interval=None,
        reference=None,
        verdict="not_applicable" if one.threshold is None else "inconclusive",
        note=f"Withheld by the reusable holdout: {why}.",
    )


def _beside_references(one: Finding, answers: Sequence[Finding]) -> Finding:
    """Return an answer with those to the same question about the retrained models."""
    values = tuple(_reference_values(one.metric, answers))
    if one.subject == "reference" or one.value is None or not values:
        return one
    gap = one.value - float(np.mean(values))
    floor = max(values) - min(values) if len(values) > 1 else None
    return dataclasses.replace(one, reference=Reference(values=values, gap=gap, noise_floor=floor))


def _reference_values(metric: str, answers: Sequence[Finding]) -> Iterator[float]:
    known = [one for one in answers if one.metric == metric and one.subject == "reference"]
    for one in sorted(known, key=lambda one: one.seed or 0):
        if one.value is not None:
            yield one.value
