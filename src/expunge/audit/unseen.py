"""The view ``unseen``: the forget records that an attack did not look at."""

from __future__ import annotations

from expunge.audit.prompts import continued
from expunge.audit.treatments import attacked_ids, groups_of
from expunge.audit.views import Scene, views
from expunge.core.errors import ConfigError
from expunge.core.records import Records
from expunge.engine.task import Task


@views.register("unseen")
def unseen(task: Task, records: Records, scene: Scene, parameters: str) -> tuple[Task, Records]:
    """Keep what an attack does not see that sees half of the forget set: ``unseen:0.5``.

    The name of another view may follow, which then decides the answers.

    Raises:
        ConfigError: The share is no number between 0 and 1.
    """
    share, _, inner = parameters.partition(":")
    seen, _ = shown(scene, share_of_forget(share))
    return continued(task, without(records, seen), scene, inner)


def shown(scene: Scene, share: float) -> tuple[Records, Records]:
    """Return the forget records that an attack sees, and those that it does not.

    Args:
        scene: The data.
        share: Share of the forget set that it sees; see ``treatments.attacked_ids``.
    """
    forget = scene.records("forget")
    seen = forget.select(attacked_ids(forget.ids, share, scene.seed, groups_of(forget)))
    return seen, without(forget, seen)


def without(records: Records, others: Records) -> Records:
    """Return the records that are none of ``others``, by id."""
    gone = set(others.ids)
    return records.take([row for row, name in enumerate(records.ids) if name not in gone])


def share_of_forget(text: str) -> float:
    """Return the share that a view's or a treatment's parameters name.

    Raises:
        ConfigError: It is no number between 0 and 1.
    """
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise ConfigError(f"share {text!r} of the forget set must be a number between 0 and 1")
    return share
