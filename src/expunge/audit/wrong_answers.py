"""The view ``wrong``: every record with a wrong answer, its own or another record's."""

from __future__ import annotations

import numpy as np

from expunge.audit.readings import PERTURBED, other_answers
from expunge.audit.treatments import attacked_ids, groups_of
from expunge.audit.views import Scene, views
from expunge.core.records import Records
from expunge.core.streams import stream
from expunge.engine.task import Task


@views.register("wrong")
def wrong(task: Task, records: Records, scene: Scene, parameters: str) -> tuple[Task, Records]:
    """Return the records with a wrong answer each; ``wrong:0.5``: for an attack that sees half.

    Records that the attack sees and records that are scored borrow answers among themselves only,
    so that no answer that the attack was trained on is scored.
    """
    groups_R = groups_of(records)
    seen = set(attacked_ids(records.ids, float(parameters), scene.seed, groups_R))
    sides = np.array([record_id in seen for record_id in records.ids], dtype=bool)
    return task, with_wrong_answers(records, sides, scene.seed)


def with_wrong_answers(records: Records, sides_R: np.ndarray, seed: int) -> Records:
    """Return the records with their first wrong answer, or with that of another record.

    Records that no other answer differs from are left out.

    Args:
        records: Language records with the column ``answer``.
        sides_R: Records borrow from records of the same side.
        seed: Decides who borrows from whom.
    """
    own = other_answers(records, PERTURBED + "0")
    answers = list(records["answer"])
    rows, texts = [], []
    for row, text in enumerate(own):
        found = _borrowed(answers, sides_R, row, seed, records.ids[row]) if text is None else text
        if found is not None:
            rows.append(row)
            texts.append(found)
    return records.take(rows).replace(answer=texts)


def _borrowed(
    answers: list[str], sides_R: np.ndarray, row: int, seed: int, record_id: str
) -> str | None:
    others = [
        answer
        for other, answer in enumerate(answers)
        if sides_R[other] == sides_R[row] and answer != answers[row]
    ]
    if not others:
        return None
    return others[int(stream(seed, "borrowed-answer", record_id).integers(len(others)))]
