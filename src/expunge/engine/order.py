"""Which records a step sees: a pure function of (seed, epoch, position).

No state is kept, so a resumed run, another worker count or another split into micro-batches sees
the same records in the same steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from expunge.core.streams import stream

Order = Literal["paired", "sequential", "mixed"]

Step = Mapping[str, np.ndarray]
"""Row numbers by stream name."""


def epoch_steps(
    order: Order,
    sizes: Mapping[str, int],
    batch_size: int,
    seed: int,
    epoch: int,
    beside: Mapping[str, str] | None = None,
) -> list[Step]:
    """Return the steps of one epoch.

    Args:
        order: ``paired``: the epoch runs over the first stream, and every other stream gives one
            record, drawn with replacement, for each record of the first. ``sequential``: one full
            pass over each stream, one after the other. ``mixed``: all records shuffled together.
        sizes: Number of records by stream; the first is the anchor of ``paired``.
        batch_size: Records of a step (of each stream, when paired).
        seed: The run's seed.
        epoch: Which epoch, from 0.
        beside: Streams that take the rows of another one, by name: they hold the same records with
            other answers, so that a step sees both answers of a record.
    """
    beside = beside or {}
    leading = {name: size for name, size in sizes.items() if name not in beside}
    return [
        {**step, **{name: step[other] for name, other in beside.items() if other in step}}
        for step in _leading_steps(order, leading, batch_size, seed, epoch)
    ]


def _leading_steps(
    order: Order, sizes: Mapping[str, int], batch_size: int, seed: int, epoch: int
) -> list[Step]:
    if order == "paired":
        return _paired(sizes, batch_size, seed, epoch)
    if order == "sequential":
        return [
            {name: rows}
            for name, size in sizes.items()
            for rows in _chunks(_shuffled(size, seed, name, epoch), batch_size)
        ]
    owner = np.concatenate([np.full(size, i) for i, size in enumerate(sizes.values())])
    rows = np.concatenate([np.arange(size) for size in sizes.values()])
    steps: list[Step] = []
    for chunk in _chunks(_shuffled(len(rows), seed, "mixed", epoch), batch_size):
        parts = {name: rows[chunk[owner[chunk] == i]] for i, name in enumerate(sizes)}
        steps.append({name: part for name, part in parts.items() if len(part)})
    return steps


def _paired(sizes: Mapping[str, int], batch_size: int, seed: int, epoch: int) -> list[Step]:
    anchor, *others = sizes
    partners = {
        name: stream(seed, "pair", name, epoch).integers(sizes[name], size=sizes[anchor])
        for name in others
    }
    steps: list[Step] = []
    for start, rows in enumerate(
        _chunks(_shuffled(sizes[anchor], seed, anchor, epoch), batch_size)
    ):
        place = slice(start * batch_size, start * batch_size + len(rows))
        steps.append({anchor: rows, **{name: drawn[place] for name, drawn in partners.items()}})
    return steps


def _shuffled(size: int, seed: int, name: str, epoch: int) -> np.ndarray:
    return stream(seed, "order", name, epoch).permutation(size)


def _chunks(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
