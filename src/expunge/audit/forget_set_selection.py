"""Which records are the hardest to forget, or the easiest: forget sets that test methods.

A record that a model gets right although it was unlearned was redundant: others teach the same.
Unlearning such records is the hardest case, since nothing may change.

Shape legend: R records, G groups of records (each record is its own by default).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from torch import nn

from expunge.audit.capped_simplex import project
from expunge.audit.outputs import label_R
from expunge.audit.scores import score
from expunge.audit.weighted_tuning import weighted_tuning
from expunge.core.config import config
from expunge.core.errors import DataError, NumericalError, listing
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.core.streams import stream
from expunge.engine.task import Task
from expunge.engine.weights import require_finite

Selector = Literal["random", "low_loss", "high_loss", "bilevel", "worst_class"]
Unlearn = Callable[[np.ndarray], nn.Module]
"""From the weight of each record (1: to be forgotten, 0: retained) to the unlearned model."""

STUCK = 0.5
"""Overlap with the random start above which the search is told to have hardly moved."""


@config
class Bilevel:
    """How the worst case is searched for by unlearning again and again."""

    outer_steps: Annotated[int, Field(ge=1)] = 10
    """How often the weights of the records are updated, each after one unlearning."""
    epochs: Annotated[int, Field(ge=1)] = 2
    """Passes over the data of one unlearning."""
    lr: Annotated[float, Field(gt=0)] = 1e-4
    """By how much each step of unlearning moves every weight of the model, along the sign of the
    gradient. The release has 1e-3, which a small network does not survive for long."""
    batch_size: Annotated[int, Field(ge=1)] = 256
    """Records of one step of unlearning."""
    step: Annotated[float, Field(gt=0)] = 1e4
    """Length of an update of the records' weights. The paper's 1e-3 never leaves the random start,
    since losses differ by far less than weights do."""
    gamma: Annotated[float, Field(ge=0)] = 1e-4
    """Penalty on the squared weights of the records."""


@dataclasses.dataclass(frozen=True, eq=False)
class Selection:
    """A forget set, and how it was found.

    Attributes:
        ids: The chosen records, in the order of the data.
        scores_R: Difficulty of every record: the larger, the harder to forget.
        groups: The chosen groups, where records were chosen in groups.
        classes: Chosen records of each class; empty of a regressor.
        overlap: Share of the random start that was chosen in the end; ``None`` without one.
        losses: Mean loss of the records by their weights, after each unlearning.
        notes: What to mind, in a reader's words.
    """

    ids: tuple[str, ...]
    scores_R: np.ndarray
    groups: tuple[int, ...] = ()
    classes: Mapping[int, int] = dataclasses.field(default_factory=dict)
    overlap: float | None = None
    losses: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()


def select(
    by: Selector,
    model: nn.Module,
    task: Task,
    records: Records,
    count: int,
    run: Run,
    *,
    settings: Bilevel | None = None,
    groups: Sequence[int] | None = None,
    per_class: bool = False,
    reverse: bool = False,
    beside: Records | None = None,
    unlearn: Unlearn | None = None,
) -> Selection:
    """Choose records to forget.

    - ``random``: any.
    - ``low_loss``: those with the smallest losses under the model. It costs one pass, and was as
      hard a case as the search in our runs: a claim for the search must beat it.
    - ``high_loss``: those with the largest.
    - ``bilevel``: those with the smallest losses after unlearning, searched for by turns: unlearn
      by the weights of the records, then move the weights to records that are still got right.
    - ``worst_class``: the same with one weight for each class; all records of the chosen classes.

    Args:
        by: Which way.
        model: The model before unlearning; stays untouched.
        task: How to run it.
        records: What to choose among, with labels.
        count: How many records; of classes (or groups) with ``worst_class`` (or ``groups``).
        run: Gives seed, device and a folder for checkpoints.
        settings: Of the search.
        groups: The group of each record, with ``bilevel``; groups are chosen whole.
        per_class: Choose the same share of every class, which tells redundant records from easy
            classes.
        reverse: Choose the opposite: with ``bilevel`` the easiest to forget.
        beside: Retained records that are not to be chosen; unlearning trains on them too.
        unlearn: How to unlearn; when absent, fine-tuning by sign steps in which a record counts
            by 1 minus its weight, from the model given.

    Raises:
        DataError: The count cannot be had, groups do not fit, or there are no classes.
        NumericalError: The model, or a loss, is not finite.
        Interrupted: Cancelled, or the budget is spent.

    Source: Challenging Forgets (Fan et al., 2024), sections 4 and 5.

    Differs from the official code: losses are taken in eval mode, without augmentation and batch
        statistics; a class's gradient is the mean over its records, whatever the batch; the
        projection is exact to 1e-12.
    """
    labels = label_R(model, task, records, run).astype(int) if task.kind == "classifier" else None
    if by == "worst_class":
        if labels is None:
            raise DataError(f"by = 'worst_class': records of a {task.kind} have no classes")
        groups = labels.tolist()
    units, group_R = _grouped(records, groups)
    _require_count(count, len(units), "groups" if groups is not None else "records")
    if per_class and (labels is None or groups is not None):
        raise DataError("per_class needs records with classes, chosen one by one; leave it out")
    strata_G = labels if per_class else None
    require_finite(model.state_dict(), "the model before unlearning")
    start = _top(stream(run.seed, "selection").permutation(len(units)), count, strata_G)
    losses: tuple[float, ...] = ()
    flat = False
    if by == "random":
        scores_G = _indicator(start, len(units))
    elif by in ("low_loss", "high_loss"):
        loss_G = _group_means(_losses(model, task, records, run), group_R, len(units))
        scores_G, flat = loss_G if (by == "high_loss") != reverse else -loss_G, np.ptp(loss_G) == 0
    else:
        chosen = settings or Bilevel()
        forget = unlearn or weighted_tuning(model, task, records, beside, chosen, run)
        scores_G, found = _indicator(start, len(units)), []
        for _ in range(chosen.outer_steps):
            run.check()
            loss_R = _losses(forget(scores_G[group_R]), task, records, run)
            loss_G = _group_means(loss_R, group_R, len(units))
            found.append(float(scores_G @ loss_G / count))
            scores_G = outer_step(scores_G, loss_G, chosen, strata_G, reverse=reverse)
        losses, flat = tuple(found), np.ptp(loss_G) == 0
    picked = _top(scores_G, count, strata_G)
    searched = by in ("bilevel", "worst_class")
    overlap = len(set(picked) & set(start)) / count if searched else None
    rows = np.flatnonzero(np.isin(group_R, picked))
    return Selection(
        tuple(records.ids[row] for row in rows),
        scores_G[group_R],
        tuple(int(units[place]) for place in picked) if groups is not None else (),
        {} if labels is None else dict(sorted(Counter(labels[rows].tolist()).items())),
        overlap,
        losses,
        tuple(_notes(flat, overlap, 2 * count < len(units), labels, rows, records, beside)),
    )


def outer_step(
    weights_G: np.ndarray,
    loss_G: np.ndarray,
    settings: Bilevel,
    strata_G: np.ndarray | None = None,
    *,
    reverse: bool = False,
) -> np.ndarray:
    """Return the weights of the records after one update; their sum stays.

    A gradient step on ``sum of w_i loss_i + gamma w_i^2`` and a projection. Since a sign step does
    not depend on its size, unlearning hands on no gradient of the weights; the direct one is all.

    Args:
        weights_G: From 0 to 1, with a whole sum.
        loss_G: Losses after unlearning by these weights.
        settings: Length of the step, and penalty.
        strata_G: The sum of each of these classes stays; that of all when absent.
        reverse: Move to the largest losses instead.

    Source: Challenging Forgets (Fan et al., 2024), eq. 5 and 6.
    """
    gradient_G = (-loss_G if reverse else loss_G) + 2 * settings.gamma * weights_G
    moved_G = weights_G - settings.step * gradient_G
    parts = [np.arange(len(weights_G))]
    if strata_G is not None:
        parts = [np.flatnonzero(strata_G == name) for name in np.unique(strata_G)]
    found_G = weights_G.copy()
    for rows in parts:
        total = round(float(weights_G[rows].sum()))
        if 0 < total < len(rows):
            found_G[rows] = project(moved_G[rows], total)
    return found_G


def top_rows(scores_R: np.ndarray, count: int) -> np.ndarray:
    """Return the rows with the largest scores, in order; of equals the first."""
    return np.sort(np.argsort(-scores_R, kind="stable")[:count])


def _top(scores_G: np.ndarray, count: int, strata_G: np.ndarray | None) -> list[int]:
    if strata_G is None:
        return top_rows(scores_G, count).tolist()
    names, sizes = np.unique(strata_G, return_counts=True)
    share = sizes * count / len(strata_G)
    budget = np.floor(share + 1e-9).astype(int)
    budget[np.argsort(budget - share, kind="stable")[: count - budget.sum()]] += 1
    picked: list[int] = []
    for name, own in zip(names, budget, strict=True):
        rows = np.flatnonzero(strata_G == name)
        picked += rows[top_rows(scores_G[rows], own)].tolist()
    return sorted(picked)


def _grouped(records: Records, groups: Sequence[int] | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the groups' names, and the number of each record's group."""
    if groups is None:
        return np.arange(len(records)), np.arange(len(records))
    if len(groups) != len(records):
        raise DataError(
            f"groups: {len(groups)} groups for {len(records)} records; give one for each"
        )
    units, group_R = np.unique(np.asarray(groups), return_inverse=True)
    return units, group_R


def _require_count(count: int, most: int, what: str) -> None:
    whole = isinstance(count, int | np.integer) and not isinstance(count, bool)
    if not whole or not 0 < count < most:
        raise DataError(
            f"count = {count!r} of {most} {what}; choose a whole number from 1 to {most - 1}"
        )


def _losses(model: nn.Module, task: Task, records: Records, run: Run) -> np.ndarray:
    loss_R = score(model, task, records, run, batch_size=256).loss_R
    wrong = [records.ids[row] for row in np.flatnonzero(~np.isfinite(loss_R))]
    if wrong:
        raise NumericalError(f"{len(wrong)} losses are not finite ({listing(wrong)}); lower lr")
    return loss_R


def _group_means(value_R: np.ndarray, group_R: np.ndarray, count: int) -> np.ndarray:
    sums_G = np.bincount(group_R, weights=value_R, minlength=count)
    return sums_G / np.bincount(group_R, minlength=count)


def _indicator(picked: Sequence[int], size: int) -> np.ndarray:
    weights = np.zeros(size)
    weights[list(picked)] = 1
    return weights


def _notes(
    flat: bool,
    overlap: float | None,
    small: bool,
    labels: np.ndarray | None,
    rows: np.ndarray,
    records: Records,
    beside: Records | None,
) -> Iterator[str]:
    """Yield what to mind of a selection."""
    if flat:
        yield "no signal: all losses are equal, so that the choice is arbitrary"
    if overlap is not None and overlap > STUCK and small:
        yield (
            f"{100 * overlap:.0f} % of the random start were chosen in the end: the search hardly "
            "moved; raise step"
        )
    if labels is not None and len(np.unique(labels)) == 1:
        yield "the records are of one class"
    left = len(records) - len(rows)
    if beside is None and 10 * left < len(records):
        yield f"only {left} records are left to retain"
