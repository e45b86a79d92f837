"""``Evidence``: the scores of the models under audit, and how they become findings.

Audits compare the model before unlearning, the model after it, and models retrained without the
forget records (references, one per seed). The spread between references is the noise floor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from torch import nn

from expunge.audit.generation import generate_answers, rouge_l_recall
from expunge.audit.readings import Reading, select
from expunge.audit.scores import Scores, score
from expunge.core.errors import DataError
from expunge.core.finding import Direction, Finding, Interval, Reference, Verdict, judge
from expunge.core.finding import Subject as Role
from expunge.core.run import Run
from expunge.core.sets import Sets
from expunge.data.dataset import Dataset
from expunge.engine.task import Task
from expunge.engine.weights import state_digest


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """One model as the audits see it: its scores, never its weights.

    Attributes:
        role: Before unlearning, after it, a retrained reference, or a part of the one after it.
        model: Digest of the model.
        scores: Scores by reading.
        seed: The training seed of a reference.
        part: Name of the part.
    """

    role: Role
    model: str
    scores: Mapping[Reading, Scores]
    seed: int | None = None
    part: str = ""


def parts_of(model: nn.Module, before: str) -> dict[str, nn.Module]:
    """Return the parts of a composite to be audited by themselves; none of any other model.

    Args:
        model: The model after unlearning.
        before: Digest of the model before it; a part that equals it has been scored already.
    """
    find = getattr(model, "parts", None)
    parts = find() if find is not None else {}
    return {name: part for name, part in parts.items() if state_digest(part) != before}


def collect(
    model: nn.Module,
    task: Task,
    dataset: Dataset,
    sets: Sets,
    readings: Sequence[Reading],
    run: Run,
    *,
    role: Role,
    seed: int | None = None,
    part: str = "",
    batch_size: int = 32,
) -> Subject:
    """Score one model on everything that the audits read, each reading once.

    Args:
        model: The model.
        task: How to run it.
        dataset: The data.
        sets: Which of them are forgotten, retained, held out and tested on.
        readings: What to score; see ``plan_readings``.
        run: Context: device, progress, events, cancellation.
        role: Which of the compared models it is.
        seed: The training seed of a reference.
        part: Name of the part.
        batch_size: Records per forward pass.

    Raises:
        NumericalError: The model yields NaN or infinity.
        Interrupted: Cancelled, or the budget is spent.
    """
    selected = {reading: select(dataset, sets, reading) for reading in readings}
    total = sum(len(records) for records in selected.values())
    scores = {}
    with run.progress(f"scoring the {role} model", total) as bar:
        for reading, records in selected.items():
            scores[reading] = score(model, task, records, run, batch_size=batch_size, bar=bar)
            told = {"role": role, "set": reading.record_set, "view": reading.view}
            run.emit("scored", **told, records=len(records))
    for reading, records in selected.items():
        if reading.max_new_tokens:
            answers = generate_answers(
                model,
                task,
                records,
                run,
                max_new_tokens=reading.max_new_tokens,
                batch_size=batch_size,
            )
            rouge_R = rouge_l_recall(answers, records["answer"])
            scores[reading] = dataclasses.replace(scores[reading], rouge_R=rouge_R)
    return Subject(role, state_digest(model), scores, seed, part)


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One number of one model.

    Attributes:
        value: The number; ``None`` when it could not be computed.
        n: How many records it rests on.
        interval: Confidence interval, where one exists.
        note: What the number does not show, or why it is missing.
        verdict: Overrides the comparison with the threshold.
    """

    value: float | None
    n: int
    interval: Interval | None = None
    note: str = ""
    verdict: Verdict | None = None


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
                    verdict=found.verdict or verdict,
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
