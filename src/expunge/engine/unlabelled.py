"""A task and its records without labels, for work that must not read any."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn

from expunge.core.records import Records
from expunge.engine.task import Batch, Predictions, Task


def without_labels(task: Task, records: Records) -> Records:
    """Return the records without the column that holds the task's labels, and without reading it.

    Args:
        task: Names the column.
        records: The records.
    """
    column = getattr(task, "labels", None)
    return Records(records.ids, {n: v for n, v in records.columns.items() if n != column})


class Unlabelled:
    """A task of one target position per record that never makes targets.

    Args:
        task: How the model is run.
    """

    kind: ClassVar[str] = "unlabelled"

    def __init__(self, task: Task) -> None:
        self._task = task

    def batch(self, records: Records, rows: Sequence[int], *, targets: bool = False) -> Batch:
        """Make inputs ready; see ``Task.batch``. There are no targets, whatever is asked for."""
        del targets
        return self._task.batch(records, rows, targets=False)

    def num_targets(self, records: Records) -> list[int]:
        """Return 1 for every record."""
        return [1] * len(records)

    def lengths(self, records: Records) -> list[int]:
        """Return 1 for every record."""
        return [1] * len(records)

    def predict(self, model: nn.Module, batch: Batch) -> Predictions:
        """Run the model; see ``Task.predict``."""
        return self._task.predict(model, batch)

    def neutral(
        self, records: Records, seed: int, epoch: int, answers: Sequence[str] = ()
    ) -> Records:
        """Return the records as they are: they have no labels that could be replaced."""
        del seed, epoch, answers
        return records

    def fingerprint(self) -> dict[str, Any]:
        """Return that of the task, marked."""
        return {**self._task.fingerprint(), "targets": False}
