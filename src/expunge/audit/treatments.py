"""Treatments: what an auditor does to a copy of a model before it is scored.

The same treatment is given to the model after unlearning and to the retrained references, so that
what it brings back is compared with what it teaches a model that never knew.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import numpy as np
from torch import nn

from expunge.audit.measures import of_model
from expunge.audit.scores import Scores
from expunge.audit.views import Scene
from expunge.core.errors import DataError, ExpungeError
from expunge.core.finding import Subject as Role
from expunge.core.records import Records
from expunge.core.registry import Registry
from expunge.core.run import Run
from expunge.core.streams import stream
from expunge.engine.device import forked_random
from expunge.engine.task import Task

Function = Callable[[nn.Module, Task, Scene, str, Run], tuple[nn.Module, Task]]
"""Takes a model that it may change, and returns the model to score and the task to run it."""


GROUP = "group"
"""Measure of the forget set that audits need to tell what an attack saw."""

_GROUPED = ("author", "country", "group")  # columns, the first that there is
_LEAST_GROUPS = 4
_TEXTS = ("question", "answer", "text")  # columns that make a text what it is
_INPUT = "x"  # the same for arrays


class NotApplicable(ExpungeError):
    """A treatment cannot be given to this model; the audit says so and goes on."""


@dataclasses.dataclass(frozen=True)
class TreatmentInfo:
    """A registered treatment.

    Attributes:
        name: Registered name.
        function: The treatment.
        roles: The models that undergo it.
    """

    name: str
    function: Function
    roles: frozenset[Role]


treatments: Registry[TreatmentInfo] = Registry("treatments", "expunge.audit")

EVERYONE: frozenset[Role] = frozenset({"before", "after", "reference", "part"})
NOT_BEFORE: frozenset[Role] = EVERYONE - {"before"}


def treatment(name: str, *, roles: frozenset[Role] = EVERYONE) -> Callable[[Function], Function]:
    """Register a function as a treatment.

    Args:
        name: Registered name; parameters may follow it behind colons, as in ``quantize:8``.
        roles: The models that undergo it.
    """

    def file(function: Function) -> Function:
        treatments.register(name)(TreatmentInfo(name, function, roles))
        return function

    return file


def info_of(spec: str) -> TreatmentInfo:
    """Return the treatment that a specification names.

    Raises:
        ConfigError: There is none.
    """
    return treatments.get(spec.partition(":")[0])


def treat(
    model: nn.Module, task: Task, scene: Scene, spec: str, run: Run
) -> tuple[nn.Module, Task]:
    """Treat a copy of a model.

    Args:
        model: Stays untouched.
        task: How to run it.
        scene: The data.
        spec: Name and parameters.
        run: Context.

    Raises:
        ConfigError: There is no such treatment.
        NotApplicable: It cannot be given to this model.
    """
    info, parameters = info_of(spec), spec.partition(":")[2]
    with forked_random(run.device):
        return info.function(copy.deepcopy(model), task, scene, parameters, run)


def groups_of(records: Records) -> np.ndarray:
    """Return the number of each forget record's group: what it tells of, where the data say so.

    Groups are the values of the first column that there is of ``author``, ``country`` and
    ``group``. Without one, or with fewer than 4 groups, every record is its own. Groups that share
    a record are one: records with equal question and answer, or equal text, up to case and white
    space, or with equal inputs.

    Args:
        records: The whole forget set.
    """
    groups_R = np.arange(len(records))
    name = next((name for name in _GROUPED if name in records), None)
    if name is not None:
        values = [str(value) for value in records[name]]
        places = {value: place for place, value in enumerate(dict.fromkeys(values))}
        if len(places) >= _LEAST_GROUPS:
            groups_R = np.array([places[value] for value in values])
    first: dict[str, int] = {}
    for row, content in enumerate(_contents(records)):
        low, high = sorted((groups_R[first.setdefault(content, row)], groups_R[row]))
        if low < high:
            groups_R[groups_R == high] = low
    return groups_R


def _contents(records: Records) -> list[str]:
    """Return a text of each record that only equal records share; none where nothing tells."""
    names = [name for name in _TEXTS if name in records]
    if names:
        rows = zip(*(records[name] for name in names), strict=True)
        return ["\0".join(" ".join(str(v).casefold().split()) for v in row) for row in rows]
    if _INPUT in records:
        return [Records(("",), {_INPUT: [value]}).digest() for value in records[_INPUT]]
    return []


def require_two_groups(groups_R: np.ndarray) -> None:
    """Refuse a forget set of which an attack can't see a part and be scored on another.

    Args:
        groups_R: The group of each record; see ``groups_of``.

    Raises:
        NotApplicable: There are fewer than two groups.
    """
    if len(np.unique(groups_R)) < 2:
        raise NotApplicable(
            f"all {len(groups_R)} forget records are one group (equal, or of subjects that share a "
            "record), so that an attack would be scored on what it saw; name records that differ"
        )


@of_model(GROUP)
def group_R(model: nn.Module, task: Task, records: Records, run: Run) -> np.ndarray:
    """Return ``groups_of``, by which audits tell what an attack saw."""
    del model, task, run
    return groups_of(records).astype(np.float64)


def groups_read(scores: Scores) -> np.ndarray:
    """Return the groups that were noted when the forget set was scored.

    Raises:
        DataError: They were not.
    """
    if GROUP not in scores.measured:
        raise DataError(f"the measure {GROUP!r} was not taken of the scores; score the model again")
    return scores.measured[GROUP]


def split_words(groups_R: np.ndarray) -> str:
    """Return how records are divided between an attack and its scoring, in a reader's words."""
    count = len(np.unique(groups_R))
    if count < len(groups_R):
        return (
            f"of {count} groups of records, each is seen by the attack whole or not at all (a "
            "group is a subject that the data name, or equal records)"
        )
    return "the attack may have seen other records of the same subject"


def attacked_ids(
    ids: tuple[str, ...], share: float, seed: int, groups_R: np.ndarray | None = None
) -> tuple[str, ...]:
    """Return the forget records that an attack may see; the others are scored.

    Args:
        ids: Ids of the forget set.
        share: Share of their groups that the attack sees; at least one is seen and one is scored,
            where there are two.
        seed: The run's seed.
        groups_R: The group of each, see ``groups_of``; each is its own when absent.

    Source: Open Problems in Machine Unlearning for AI Safety (Barez et al., 2025): facts that an
        attack trains on say nothing of what was left.
    """
    groups_R = np.arange(len(ids)) if groups_R is None else groups_R
    units = np.unique(groups_R)
    count = min(max(round(share * len(units)), 1), len(units) - 1)
    chosen = units[stream(seed, "attacked").permutation(len(units))[:count]]
    return tuple(ids[row] for row in np.flatnonzero(np.isin(groups_R, chosen)))
