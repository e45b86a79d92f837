"""``Evidence``: the scores of the models under audit, and how they become findings.

Audits compare the model before unlearning, the model after it, and models retrained without the
forget records (references, one per seed). The spread between references is the noise floor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from expunge.audit.readings import Reading
from expunge.audit.scores import Scores
from expunge.core.errors import DataError
from expunge.core.finding import Direction, Finding, Interval, Reference, Verdict, judge
from expunge.core.finding import Subject as Role


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """One model as the audits see it: its scores, never its weights.

    Attributes:
        role: Before unlearning, after it, a retrained reference, or a part of the one after it.
        model: Digest of the model.
        scores: Scores by reading.
        seed: The training seed of a reference.
        part: Name of the part.
        absent: Why readings that need a treatment could not be had of this model.
    """

    role: Role
    model: str
    scores: Mapping[Reading, Scores]
    seed: int | None = None
    part: str = ""
    absent: Mapping[Reading, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One number of one model.

    Attributes:
        value: The number; ``None`` when it could not be computed.
        n: How many records it rests on.
        interval: Confidence interval, where one exists.
        note: What the number does not show, or why it is missing.
        verdict: Overrides the comparison with the threshold; a bound that does not apply leaves it
            open whether it is met, which is ``inconclusive``.
        error: Chance that the verdict is wrong, where no interval tells it; see ``Finding``.
    """

    value: float | None
    n: int
    interval: Interval | None = None
    note: str = ""
    verdict: Verdict | None = None
    error: float | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Evidence:
    """The compared models, scored on the same records.

    Attributes:
        after: The model after unlearning.
        before: The model before unlearning, where there is one.
        references: Models retrained without the forget records, in seed order.
        sets: Digest of the record sets.
        audit: Name of the audit that is looking.
        version: Its version.
        parts: Parts of the model after unlearning, each alone.

    Raises:
        DataError: Two models were scored on different records.
    """

    after: Subject
    before: Subject | None
    references: tuple[Subject, ...]
    sets: str
    audit: str = ""
    version: int = 1
    parts: tuple[Subject, ...] = ()

    def __post_init__(self) -> None:
        for subject in self:
            for reading, scores in self.after.scores.items():
                other = subject.scores.get(reading)
                if other is None and reading.treatment:
                    continue  # not every model undergoes every treatment
                if other is None or other.ids != scores.ids:
                    raise DataError(
                        f"the {subject.role} model was not scored on the same "
                        f"{reading.record_set!r} records ({reading.view}) as the one after "
                        "forgetting; score both again"
                    )

    def __iter__(self) -> Iterator[Subject]:
        """Yield every model: before, after, references, parts."""
        if self.before is not None:
            yield self.before
        yield self.after
        yield from self.references
        yield from self.parts

    def others(self, subject: Subject) -> tuple[Subject, ...]:
        """Return the references to compare a model with: all, or the others if it is one."""
        return tuple(reference for reference in self.references if reference is not subject)

    def compare(
        self,
        metric: str,
        title: str,
        compute: Callable[[Subject], Measurement],
        *,
        direction: Direction,
        record_set: str = "",
        unit: str = "",
        threshold: float | None = None,
        pairwise: bool = False,
    ) -> list[Finding]:
        """Compute one number for every model and set it beside the references.

        Args:
            metric: Name of the number.
            title: The number in a reader's words.
            compute: The number of one model.
            direction: Which way is better.
            record_set: The records it is computed on.
            unit: Unit of the value.
            threshold: Bound for the model after unlearning, fixed beforehand.
            pairwise: The number compares a model with the other references, so that two references
                share one number and show no noise floor.

        Returns:
            One finding per model: before, after, references, parts.
        """
        measured = [(subject, compute(subject)) for subject in self]
        standards = tuple(
            found.value
            for subject, found in measured
            if subject.role == "reference" and found.value is not None
        )
        findings = []
        for subject, found in measured:
            judged = subject.role == "after" and threshold is not None
            verdict: Verdict = "not_applicable"
            if judged and threshold is not None:
                verdict = judge(found.value, found.interval, threshold, direction)
            verdict = found.verdict or verdict
            if judged and verdict == "not_applicable":
                verdict = "inconclusive"
            findings.append(
                Finding(
                    audit=self.audit,
                    metric=metric,
                    title=title,
                    subject=subject.role,
                    value=found.value,
                    n=found.n,
                    direction=direction,
                    unit=unit,
                    record_set=record_set,
                    seed=subject.seed,
                    part=subject.part,
                    interval=found.interval,
                    reference=None
                    if subject.role == "reference"
                    else _beside(found, standards, 3 if pairwise else 2),
                    threshold=threshold if judged else None,
                    verdict=verdict,
                    error=found.error,
                    version=self.version,
                    model=subject.model,
                    sets=self.sets,
                    note=found.note,
                )
            )
        return findings


def _beside(found: Measurement, standards: tuple[float, ...], least: int) -> Reference | None:
    if found.value is None or not standards:
        return None
    return Reference(
        values=standards,
        gap=found.value - float(np.mean(standards)),
        noise_floor=max(standards) - min(standards) if len(standards) >= least else None,
    )
