"""``Reading``: which records an audit wants scored, seen how, and by which state of the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from expunge.core.records import Records
from expunge.core.sets import ROLES, Sets
from expunge.data.dataset import Dataset

PARAPHRASE = "paraphrase"
PERTURBED = "perturbed:"


@dataclasses.dataclass(frozen=True, order=True)
class Reading:
    """One set of records under one view.

    Attributes:
        record_set: ``"forget"``, ``"retain"``, ``"holdout"``, ``"test"`` or the name of a probe.
        view: Registered view with its parameters: ``"answer"``: the records as they are;
            ``"paraphrase"``: the true answer in other words; ``"perturbed:0"``: the first wrong
            answer; see ``audit.views``.
        limit: At most this many records, those with paraphrase and wrong answers first; 0 is all.
        treatment: Registered treatment with its parameters that the model undergoes first, such as
            ``"quantize:8"``; see ``audit.treatments``. Empty is the model as it is.
        max_new_tokens: Length of the greedy answers to generate beside the scores; 0 is none. Not
            part of the identity: who asks for more gets it for all.
        measures: Registered measures to take beside the scores; see ``audit.measures``. Not part of
            the identity either.
    """

    record_set: str
    view: str = "answer"
    limit: int = 0
    treatment: str = ""
    max_new_tokens: int = dataclasses.field(default=0, compare=False)
    measures: tuple[str, ...] = dataclasses.field(default=(), compare=False)


def union(readings: Iterable[Reading]) -> tuple[Reading, ...]:
    """Return each reading once, in a fixed order, with all that anybody asked for beside it."""
    whole: dict[Reading, Reading] = {}
    for reading in readings:
        known = whole.setdefault(reading, reading)
        whole[reading] = dataclasses.replace(
            known,
            max_new_tokens=max(known.max_new_tokens, reading.max_new_tokens),
            measures=tuple(sorted({*known.measures, *reading.measures})),
        )
    return tuple(whole[reading] for reading in sorted(whole))


def select(dataset: Dataset, sets: Sets, reading: Reading) -> Records:
    """Return the records of a reading as they are, before its view.

    Raises:
        DataError: The data set has no such records.
    """
    return _limited(_members(dataset, sets, reading.record_set), reading.limit)


def num_perturbed(records: Records) -> int:
    """Return the largest number of wrong answers that a record has."""
    if "perturbed_answer" not in records:
        return 0
    return max((len(wrong) for wrong in records["perturbed_answer"] if wrong), default=0)


def _members(dataset: Dataset, sets: Sets, name: str) -> Records:
    if name in ("forget", "retain"):
        return dataset.train.select(getattr(sets, name))
    if name in ROLES:
        return dataset.records(name).select(getattr(sets, name))
    return dataset.records(name)


def _limited(records: Records, limit: int) -> Records:
    if not limit or len(records) <= limit:
        return records
    partial = [
        a is None or b is None
        for a, b in zip(
            other_answers(records, PARAPHRASE), other_answers(records, PERTURBED + "0"), strict=True
        )
    ]
    return records.take(np.sort(np.argsort(partial, kind="stable")[:limit]))


def other_answers(records: Records, name: str) -> Sequence[Any]:
    """Return one answer per record, ``None`` where it has none.

    Args:
        records: Language records.
        name: ``"paraphrase"``, or ``"perturbed:0"`` and so on.
    """
    column = "paraphrased_answer" if name == PARAPHRASE else "perturbed_answer"
    if column not in records:
        return [None] * len(records)
    values = records[column]
    if name == PARAPHRASE:
        return values
    place = int(name.removeprefix(PERTURBED))
    return [wrong[place] if wrong and place < len(wrong) else None for wrong in values]
