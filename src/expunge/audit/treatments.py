"""Treatments: what an auditor does to a copy of a model before it is scored.

The same treatment is given to the model after unlearning and to the retrained references, so that
what it brings back is compared with what it teaches a model that never knew.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

from torch import nn

from expunge.audit.views import Scene
from expunge.core.errors import ExpungeError
from expunge.core.finding import Subject as Role
from expunge.core.registry import Registry
from expunge.core.run import Run
from expunge.core.streams import stream
from expunge.engine.device import forked_random
from expunge.engine.task import Task

Function = Callable[[nn.Module, Task, Scene, str, Run], tuple[nn.Module, Task]]
"""Takes a model that it may change, and returns the model to score and the task to run it."""


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


def attacked_ids(ids: tuple[str, ...], share: float, seed: int) -> tuple[str, ...]:
    """Return the forget records that an attack may see; the others are scored.

    Args:
        ids: Ids of the forget set.
        share: Share of them that the attack sees; at least one is seen and one is scored.
        seed: The run's seed.

    Source: Open Problems in Machine Unlearning for AI Safety (Barez et al., 2025): facts that an
        attack trains on say nothing of what was left.
    """
    count = min(max(round(share * len(ids)), 1), len(ids) - 1)
    order: Any = stream(seed, "attacked").permutation(len(ids))
    chosen = set(order[:count].tolist())
    return tuple(record_id for row, record_id in enumerate(ids) if row in chosen)
