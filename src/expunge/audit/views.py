"""Views: the same records, asked or answered otherwise.

A view takes the task too, so that a changed prompt works under any template. Its name may be
followed by parameters behind colons, as in ``perturbed:0``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from expunge.audit.readings import PARAPHRASE, PERTURBED, Reading, other_answers, select
from expunge.core.records import Records
from expunge.core.registry import Registry
from expunge.core.sets import Sets
from expunge.data.dataset import Dataset
from expunge.engine.task import Task


@dataclasses.dataclass(frozen=True)
class Scene:
    """What views and treatments may draw from.

    Attributes:
        dataset: The data.
        sets: Which of them are forgotten, retained, held out and tested on.
        seed: Root of every random stream.
    """

    dataset: Dataset
    sets: Sets
    seed: int = 0

    def records(self, record_set: str) -> Records:
        """Return all records of a set, as they are."""
        return select(self.dataset, self.sets, Reading(record_set))


View = Callable[[Task, Records, Scene, str], tuple[Task, Records]]
"""Returns task and records as seen; it may leave records out, but not change their order."""

views: Registry[View] = Registry("views", "expunge.audit")


def see(task: Task, scene: Scene, reading: Reading) -> tuple[Task, Records]:
    """Return the records of a reading under its view, and the task that reads them.

    Args:
        task: How to run the model.
        scene: The data.
        reading: Which records, seen how.

    Raises:
        ConfigError: There is no such view.
        DataError: The data set has no such records.
    """
    name, _, parameters = reading.view.partition(":")
    records = select(scene.dataset, scene.sets, reading)
    return views.get(name)(task, records, scene, parameters)


@views.register("answer")
def answer(task: Task, records: Records, scene: Scene, parameters: str) -> tuple[Task, Records]:
    """Return the records as they are."""
    return task, records


@views.register("paraphrase")
def paraphrase(task: Task, records: Records, scene: Scene, parameters: str) -> tuple[Task, Records]:
    """Return the records that have a paraphrased answer, with it."""
    return task, _answered(records, PARAPHRASE)


@views.register("perturbed")
def perturbed(task: Task, records: Records, scene: Scene, parameters: str) -> tuple[Task, Records]:
    """Return the records that have the wrong answer of that number, with it."""
    return task, _answered(records, PERTURBED + parameters)


def _answered(records: Records, name: str) -> Records:
    answers = other_answers(records, name)
    rows = [row for row, text in enumerate(answers) if text is not None]
    return records.take(rows).replace(answer=[answers[row] for row in rows])
