"""Relearning: fine-tuning by someone who has the weights, as a treatment.

Shape legend: R records.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from torch import nn

from expunge.audit.treatments import (
    NOT_BEFORE,
    NotApplicable,
    attacked_ids,
    groups_of,
    require_two_groups,
    treatment,
)
from expunge.audit.views import Scene
from expunge.core.digest import digest_json
from expunge.core.errors import NumericalError
from expunge.core.files import remove_tree
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.core.streams import stream, stream_seed
from expunge.engine.loop import Stream, fit
from expunge.engine.schedule import Schedule
from expunge.engine.task import Task
from expunge.engine.weights import state_digest
from expunge.train.supervised import likelihood

LR = 1e-4
BATCH = 8
_SLOWER = (1, 3, 10)  # divisors of the learning rate, tried before an attack counts as failed


def seen_ids(
    ids: tuple[str, ...],
    share: float,
    seed: int,
    draw: int = 0,
    groups_R: np.ndarray | None = None,
) -> tuple[str, ...]:
    """Return the records that the attack learns in one draw.

    Args:
        ids: Ids of the forget set.
        share: Share of them.
        seed: The run's seed.
        draw: Number of the draw, from 0; the first is that of every other attack.
        groups_R: The group of each; see ``treatments.groups_of``.
    """
    return attacked_ids(ids, share, stream_seed(seed, "draw", draw) if draw else seed, groups_R)


def split_ids(
    ids: tuple[str, ...], splits: int, seed: int, groups_R: np.ndarray | None = None
) -> list[tuple[str, ...]]:
    """Return parts of the forget set with equally many groups, each id in one of them.

    Args:
        ids: Ids of the forget set.
        splits: How many parts; with fewer groups than that, records are divided instead.
        seed: The run's seed.
        groups_R: The group of each, see ``treatments.groups_of``; each is its own when absent.
    """
    if groups_R is None or len(np.unique(groups_R)) < splits:
        groups_R = np.arange(len(ids))
    units = np.unique(groups_R)
    parts = np.array_split(units[stream(seed, "splits").permutation(len(units))], splits)
    return [tuple(ids[row] for row in np.flatnonzero(np.isin(groups_R, part))) for part in parts]


@treatment("relearn", roles=NOT_BEFORE)
def relearn_some(
    model: nn.Module, task: Task, scene: Scene, parameters: str, run: Run
) -> tuple[nn.Module, Task]:
    """Fine-tune on a share of the forget records.

    Args:
        model: Every weight may move.
        task: How to run it.
        scene: The data.
        parameters: Steps, share and, where they differ from the defaults, learning rate and draw.
        run: Context.

    Raises:
        NotApplicable: There is no group to learn and one to score, the model is a composite, or
            the attack diverged.
    """
    steps, share, *rest = parameters.split(":")
    lr = float(rest[0]) if rest else LR
    draw = int(rest[1]) if len(rest) > 1 else 0
    forget = scene.records("forget")
    _require(len(forget) > 1, "one forget record cannot be learned and scored by another")
    groups_R = groups_of(forget)
    require_two_groups(groups_R)
    seen = seen_ids(forget.ids, float(share), scene.seed, draw, groups_R)
    return trained_on(model, task, forget.select(seen), int(steps), lr, draw, run), task


@treatment("relearn_split", roles=NOT_BEFORE)
def relearn_others(
    model: nn.Module, task: Task, scene: Scene, parameters: str, run: Run
) -> tuple[nn.Module, Task]:
    """Fine-tune on all parts of the forget set but one.

    Args:
        model: Every weight may move.
        task: How to run it.
        scene: The data.
        parameters: Steps, number of parts, number of the part that is left out, learning rate.
        run: Context.

    Raises:
        NotApplicable: There are fewer records than parts, the model is a composite, or the attack
            diverged.
    """
    steps, splits, left_out, *rest = parameters.split(":")
    forget = scene.records("forget")
    _require(len(forget) >= int(splits), f"the forget set has fewer than {splits} records")
    parts = split_ids(forget.ids, int(splits), scene.seed, groups_of(forget))
    seen = [i for number, part in enumerate(parts) if number != int(left_out) for i in part]
    lr = float(rest[0]) if rest else LR
    return trained_on(model, task, forget.select(seen), int(steps), lr, 0, run), task


@treatment("benign", roles=NOT_BEFORE)
def train_on_benign(
    model: nn.Module, task: Task, scene: Scene, parameters: str, run: Run
) -> tuple[nn.Module, Task]:
    """Fine-tune on records that have nothing to do with the forget set.

    Args:
        model: Every weight may move.
        task: How to run it.
        scene: The data.
        parameters: Record set, steps and, where it differs from the default, the learning rate.
        run: Context.

    Raises:
        NotApplicable: There are no such records, the model is a composite, or the attack diverged.
    """
    name, steps, *rest = parameters.split(":")
    records = scene.records(name)
    _require(len(records) > 0, f"there are no {name} records")
    lr = float(rest[0]) if rest else LR
    return trained_on(model, task, records, int(steps), lr, 0, run), task


def trained_on(
    model: nn.Module, task: Task, records: Records, steps: int, lr: float, draw: int, run: Run
) -> nn.Module:
    """Train on records for a number of steps; slower, from the start, where the loss is lost.

    Args:
        model: Every weight may move.
        task: How to run it.
        records: What to learn, at least one.
        steps: Optimiser steps.
        lr: Learning rate; a third and a tenth of it follow where the loss is lost.
        draw: Number of the go, which has an order of records of its own.
        run: Context.

    Raises:
        NotApplicable: The model is a composite, or the attack diverged at all three.
    """
    _require(not hasattr(model, "parts"), "a composite is attacked part by part")
    start = {name: value.detach().clone() for name, value in model.state_dict().items()}
    seed = stream_seed(run.seed, "relearn", draw)
    batches = _Batches(records, seed)
    name = digest_json([state_digest(model), records.digest(), steps, lr, seed])[:16]
    for slower in _SLOWER:
        part = run.child(f"attack-{name}-{slower}", seed=seed)
        schedule = Schedule(epochs=steps, batch_size=BATCH, lr=lr / slower)
        streams = {"attack": Stream(batches.at(0), batches.at)}
        try:
            terms = (likelihood(task, "attack"),)
            fit(model, task, streams, terms, schedule, part, label="relearning")
        except NumericalError:
            model.load_state_dict(start)
            remove_tree(part.folder)
            continue
        finally:
            model.zero_grad(set_to_none=True)
        remove_tree(part.folder)
        return model
    raise NotApplicable(
        f"the attack diverged at the learning rates {', '.join(f'{lr / s:g}' for s in _SLOWER)}"
    )


@dataclasses.dataclass(frozen=True)
class _Batches:
    """One batch for each step, so that a short attack is the beginning of a long one.

    Every pass takes the records in a new order; what does not fill a batch is left out of it.
    """

    records: Records
    seed: int

    def at(self, step: int) -> Records:
        size = min(BATCH, len(self.records))
        turn, place = divmod(step, len(self.records) // size)
        order = stream(self.seed, "attack", turn).permutation(len(self.records))
        return self.records.take(order[place * size : (place + 1) * size])


def _require(fits: bool, reason: str) -> None:
    if not fits:
        raise NotApplicable(reason)
