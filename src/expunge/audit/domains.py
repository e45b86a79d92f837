"""Views of the inputs that a manipulation of training data affects, and of the others."""

from __future__ import annotations

from collections.abc import Collection
from typing import cast, get_args

import numpy as np

from expunge.audit.views import Scene, views
from expunge.core.errors import ConfigError
from expunge.core.records import Records
from expunge.data.corruption import Corner, patched
from expunge.data.inputs import as_column
from expunge.engine.task import Task


@views.register("patched")
def with_patch(task: Task, records: Records, scene: Scene, parameters: str) -> tuple[Task, Records]:
    """Put a square patch into a corner of every picture: ``patched:3:1.0:bottom_right``.

    Raises:
        ConfigError: Size, value and corner are no such.
        DataError: The inputs are no pictures, or smaller than the patch.
    """
    del scene
    try:
        size_text, value_text, corner_text = parameters.split(":")
        size, value = int(size_text), float(value_text)
    except ValueError:
        raise ConfigError(
            f"view 'patched:{parameters}' needs size, value and corner, as in patched:3:1.0:"
            "bottom_right"
        ) from None
    if corner_text not in get_args(Corner):
        raise ConfigError(
            f"view 'patched:{parameters}': corner {corner_text!r} is none of "
            f"{', '.join(get_args(Corner))}"
        )
    corner = cast(Corner, corner_text)
    name = getattr(task, "inputs", "x")
    pictures = records[name]
    if isinstance(pictures, np.ndarray) and pictures.ndim > 2:
        column = as_column(patched(pictures, size, value, corner))
    else:
        column = [patched(x, size, value, corner) for x in pictures]
    return task, records.replace(**{name: column})


@views.register("of_classes")
def of_classes(task: Task, records: Records, scene: Scene, parameters: str) -> tuple[Task, Records]:
    """Keep records of some classes, ``of_classes:2:4``; of all when none is named."""
    del scene
    if not parameters:
        return task, records
    return task, _chosen(task, records, _numbers(parameters), inside=True)


@views.register("not_of_classes")
def not_of_classes(
    task: Task, records: Records, scene: Scene, parameters: str
) -> tuple[Task, Records]:
    """Keep the records of all other classes: ``not_of_classes:2:4``."""
    del scene
    return task, _chosen(task, records, _numbers(parameters), inside=False)


def _numbers(parameters: str) -> set[int]:
    try:
        return {int(name) for name in parameters.split(":")}
    except ValueError:
        raise ConfigError(f"classes {parameters!r} must be numbers, as in of_classes:2:4") from None


def _chosen(task: Task, records: Records, classes: Collection[int], *, inside: bool) -> Records:
    labels = records[getattr(task, "labels", "y")]
    rows = [row for row in range(len(records)) if (int(labels[row]) in classes) is inside]
    return records.take(rows)
