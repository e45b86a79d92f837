"""The training loop: the only one in Expunge.

An objective is a tuple of terms. Each term reads one stream of records and yields a value per
record, so that terms are back-propagated one after the other and a batch may be split at will:
values are summed, and divided once by the step's whole count. The same holds for a batch that
several processes share.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from expunge.core.config import to_json
from expunge.core.digest import digest_json
from expunge.core.errors import ConfigError, Interrupted, NumericalError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.checkpoint import Checkpoints, State
from expunge.engine.device import forked_random
from expunge.engine.guard import Guard
from expunge.engine.holding import Copy, hold, placed
from expunge.engine.lone_batches import require_batches
from expunge.engine.modes import checkpointed, training
from expunge.engine.order import Step, epoch_steps
from expunge.engine.schedule import Schedule, learning_rate
from expunge.engine.scope import Scope, scoped
from expunge.engine.task import Task
from expunge.engine.weights import require_finite, state_digest
from expunge.engine.workers import Workers, workers


@dataclasses.dataclass(frozen=True)
class Stream:
    """Records that a term reads.

    Attributes:
        records: The records.
        at_epoch: Yields what the same records look like in a given epoch, for targets that are
            drawn anew; the records themselves when absent.
        beside: Name of a stream with the same records in the same order, under other answers; a
            step then sees the same rows of both.
    """

    records: Records
    at_epoch: Callable[[int], Records] | None = None
    beside: str | None = None


Numbers = Mapping[str, float]
"""Numbers of one optimiser step."""


@dataclasses.dataclass(frozen=True)
class Term:
    """One term of an objective, to be minimised.

    Attributes:
        stream: Name of the stream it reads.
        loss: Yields a value for each record of a batch, shape (B,); called with the model, the
            batch, and the same rows of the stream ``beside`` where one is named.
        weight: Factor of the term, or a function from the numbers of all steps so far to it.
        per: Divide the sum over a step by its number of records, of target positions, or by the
            sum of a function of each record's number of target positions.
        beside: A stream beside the first whose answers enter the same loss.
        name: Under which its value stands in the history; the stream's name when absent.
        slope: Derivative of a function f at a number, for a term that is f of the step's value
            (a bound on a mean, say). The value is measured first, by forward passes of its own, so
            that a batch may still be split at will; the history holds it, not f of it.
    """

    stream: str
    loss: Callable[..., Tensor]
    weight: float | Callable[[Sequence[Numbers]], float] = 1.0
    per: Literal["record", "target"] | Callable[[np.ndarray], np.ndarray] = "record"
    beside: str | None = None
    name: str = ""
    slope: Callable[[float], float] | None = None

    @property
    def label(self) -> str:
        """Under which its value stands in the history."""
        return self.name or self.stream


AfterStep = Callable[[Mapping[str, Tensor], Mapping[str, Tensor], float], None]
"""Changes the moving weights in place after each step. It is given them by name, as they are and as
they were when the loop began, and the share of the loop that was done before the step."""


@dataclasses.dataclass(frozen=True)
class Stopped:
    """Why a loop ended before its schedule.

    Attributes:
        reason: In a reader's words.
        step: Step of the state that was kept.
    """

    reason: str
    step: int


@dataclasses.dataclass(frozen=True)
class History:
    """What happened in a loop.

    Attributes:
        steps: Numbers of each step: ``step``, ``lr``, ``grad_norm`` before clipping, and the mean
            of each term under its stream's name.
        stopped: Set when the collapse guard ended the loop.
        guarded: Whether the collapse guard watched.
        groups: Norm of the change of each group of weights, for methods that choose among groups;
            0 where a small change was undone.
        notes: What a method wants its user to know, in a reader's words.
    """

    steps: list[dict[str, float]]
    stopped: Stopped | None = None
    guarded: bool = False
    groups: dict[str, float] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return dataclasses.asdict(self)


def fit(
    model: nn.Module,
    task: Task,
    streams: Mapping[str, Stream],
    terms: Sequence[Term],
    schedule: Schedule,
    run: Run,
    *,
    scope: Scope | None = None,
    aside: Mapping[str, Records] | None = None,
    guard: Guard | None = None,
    after: AfterStep | None = None,
    label: str = "training",
) -> History:
    """Minimise a sum of terms by changing the model in place.

    Checkpoints lie in ``run.folder``; called again with the same arguments after a crash, the loop
    goes on from the last one and ends with the same bits. Only the weights in scope change; modes,
    ``requires_grad`` flags and global random state are restored. Processes that were launched
    together call it with the same arguments, share the records of each step and end with the same
    weights; the main one's ``run`` decides folder, events and progress.

    Args:
        model: The model.
        task: How to run it.
        streams: Records by name; the first is the anchor of a paired epoch.
        terms: The objective.
        schedule: Settings of the loop.
        run: Context: seed, device, folder, budget, events, cancellation.
        scope: Which weights may move; all when absent.
        aside: Records that only a mask reads, by role.
        guard: Stops the loop at the last good state when retained records are being lost.
        after: Changes weights after each step, such as a proximal step.
        label: Words beside the progress bar.

    Returns:
        The numbers of every step, and why the loop stopped early if it did.

    Raises:
        ConfigError: The model or the launch cannot do what the settings ask for.
        NumericalError: A loss or gradient is not finite; the last checkpoint is good.
        Interrupted: Cancelled, or the budget is spent; call again to resume.
    """
    scope, aside, team = scope or Scope(), aside or {}, workers()
    team.require_device(run.device)
    if scope.mask is not None and team.sharding != "none":
        raise ConfigError(
            f"scope.mask needs whole weights in each process, and {team.sharding} divides them; "
            "leave the mask out, or launch without it"
        )
    if after is not None and team.sharding != "none":
        raise ConfigError(
            "the method changes weights after each step, which needs them whole in each process, "
            f"and {team.sharding} divides them; launch without it"
        )
    key = _key(model, task, streams, terms, schedule, scope, aside, guard, run)
    team.require_same(key, "model, data and settings; start them with the same arguments")
    records = {name: stream.records for name, stream in streams.items()}
    sources = {**aside, **records}
    run = team.quieted(run)
    with (
        placed(model, run.device, team),
        forked_random(run.device),
        scoped(model, task, scope, sources, run) as selection,
        training(model, freeze_statistics=schedule.freeze_norm_statistics),
        checkpointed(model) if schedule.gradient_checkpointing else nullcontext(),
    ):
        require_batches(model, task, records, schedule, run)
        holding = hold(model, selection, schedule, run, team)
        loop = _Loop(holding, task, streams, terms, schedule, run, guard, after, key, team)
        history = loop.run_to_end(label)
        holding.finish()
        return history


class _Loop:
    """The state of one call of ``fit``."""

    def __init__(
        self,
        holding: Copy,
        task: Task,
        streams: Mapping[str, Stream],
        terms: Sequence[Term],
        schedule: Schedule,
        run: Run,
        guard: Guard | None,
        after: AfterStep | None,
        key: str,
        team: Workers,
    ) -> None:
        self.holding, self.task, self.streams, self.terms = holding, task, streams, terms
        self.schedule, self.run, self.guard, self.team = schedule, run, guard, team
        self.after, self.moving = after, holding.selection.parameters
        # Taken before a checkpoint is read, so that a resumed loop has the same.
        self.start = {n: p.detach().clone() for n, p in self.moving.items()} if after else {}
        self.checkpoints = Checkpoints(run.folder, key, team)
        self.sizes = {name: len(stream.records) for name, stream in streams.items()}
        self.steps_per_epoch = len(self._steps(0))
        self.total = schedule.epochs * self.steps_per_epoch
        self._epoch = -1

    def run_to_end(self, label: str) -> History:
        state = self._load("newest") if self.holding.resumes else None
        if state is None:
            state = State()
            if self.guard is not None:
                state.baseline = self._guard_loss()
                if not math.isfinite(state.baseline):
                    raise NumericalError(
                        f"the loss on retained records is {state.baseline} before the first step; "
                        "check the model, and the inputs of the retain set for NaN"
                    )
                self._save(state)
        with self.run.progress(label, self.total, state.step) as bar:
            while state.step < self.total:
                try:
                    self.team.check(self.run, state.step)
                except Interrupted:
                    self._save(state, good=self.guard is None)
                    raise
                numbers = self._step(state)
                state.step += 1
                state.steps.append({"step": state.step, **numbers})
                self.run.emit("step", loop=label, **state.steps[-1])
                bar.advance(note=self._note(numbers))
                if state.step % self.run.checkpoint_every == 0 or state.step == self.total:
                    stopped = self._keep(state)
                    if stopped is not None:
                        return History(state.steps, stopped, guarded=True)
        return History(state.steps, guarded=self.guard is not None)

    def _keep(self, state: State) -> Stopped | None:
        """Save a checkpoint when the state is good; otherwise go back to the last one."""
        if self.guard is not None and state.baseline is not None:
            loss = self._guard_loss()
            rise = loss - state.baseline
            self.run.emit("guard", step=state.step, retain_loss=loss, rise=rise)
            if not rise <= self.guard.max_increase:
                good = self._load("good")
                kept = good.step if good is not None else 0
                return Stopped(
                    f"collapse guard: at step {state.step} the loss on retained records had risen "
                    f"by {rise:.3f} nats per target, more than the bound of "
                    f"{self.guard.max_increase}; the state of step {kept} was kept",
                    kept,
                )
        self._save(state)
        return None

    def _load(self, which: Literal["newest", "good"]) -> State | None:
        found = self.checkpoints.load(self.holding.weights, self.holding.optimizer, which=which)
        if found is not None:
            self.holding.push()
        return found

    def _save(self, state: State, *, good: bool = True) -> None:
        self.holding.pull()
        require_finite(
            self.holding.weights,
            f"the weights after step {state.step} (lower schedule.lr; the last checkpoint is from "
            "before)",
        )
        self.checkpoints.save(state, self.holding.weights, self.holding.optimizer, good=good)

    def _note(self, numbers: dict[str, float]) -> str:
        labels = dict.fromkeys(term.label for term in self.terms)
        return "  ".join(f"{name} {numbers[name]:.3f}" for name in labels if name in numbers)

    def _guard_loss(self) -> float:
        assert self.guard is not None
        size = self.schedule.micro_batch or self.schedule.batch_size
        loss = self.guard.measure(self.holding.model, self.task, self.run.device, size)
        return self.team.agreed(loss)

    def _steps(self, epoch: int) -> list[Step]:
        schedule = self.schedule
        beside = {name: s.beside for name, s in self.streams.items() if s.beside is not None}
        return epoch_steps(
            schedule.order, self.sizes, schedule.batch_size, self.run.seed, epoch, beside
        )

    def _enter(self, epoch: int) -> None:
        if epoch == self._epoch:
            return
        self._epoch = epoch
        self._plan = self._steps(epoch)
        self._records = {
            name: stream.at_epoch(epoch) if stream.at_epoch else stream.records
            for name, stream in self.streams.items()
        }
        self._counts = {n: np.array(self.task.num_targets(r)) for n, r in self._records.items()}
        self._lengths = {n: np.array(self.task.lengths(r)) for n, r in self._records.items()}

    def _step(self, state: State) -> dict[str, float]:
        step = state.step
        epoch, place = divmod(step, self.steps_per_epoch)
        self._enter(epoch)
        rows = self._plan[place]
        lr = learning_rate(self.schedule, step, self.steps_per_epoch)
        self.holding.start(lr)
        active = [term for term in self.terms if term.stream in rows]
        units = [self._units(term, rows[term.stream]) for term in active]
        counts = self._divisors(active, units)
        values = []
        for index, (term, unit, count) in enumerate(zip(active, units, counts, strict=True)):
            weight = term.weight(state.steps) if callable(term.weight) else term.weight
            ends, chosen = index == len(active) - 1, rows[term.stream]
            if term.slope is not None:
                weight *= term.slope(self._measured(term, chosen, unit, (step, index)))
            values.append(self._backward(term, weight, chosen, count, (step, index), ends=ends))
        numbers = {"lr": lr}
        sums = self.team.sum(values)
        for term, unit, count, value in zip(active, units, counts, sums, strict=True):
            if not math.isfinite(value):
                raise NumericalError(
                    f"the loss on {term.label!r} became {value} at step {step + 1}; lower the "
                    "learning rate (schedule.lr). The last checkpoint is from before"
                )
            numbers[term.label] = value * count / unit
        norm = self.holding.advance()
        if not math.isfinite(norm):
            raise NumericalError(
                f"the gradient became {norm} at step {step + 1}; lower schedule.lr or set "
                "schedule.clip_norm. The last checkpoint is from before"
            )
        if self.after is not None:
            with torch.no_grad():
                self.after(self.moving, self.start, step / self.total)
        return {**numbers, "grad_norm": norm}

    def _divisors(self, terms: Sequence[Term], units: Sequence[int]) -> list[float]:
        """Return what each term's sum is divided by: its own count, or the mixed step's share.

        In a mixed step a stream has the weight of its part of the step. Further terms on the same
        records (answers beside them, too) do not add to it.
        """
        if self.schedule.order != "mixed":
            return list(units)
        leading = [self.streams[term.stream].beside or term.stream for term in terms]
        first: dict[str, int] = {}
        for name, unit in zip(leading, units, strict=True):
            first.setdefault(name, unit)
        pooled = sum(first.values())
        return [unit * pooled / first[name] for name, unit in zip(leading, units, strict=True)]

    def _units(self, term: Term, rows: np.ndarray) -> int:
        if term.per == "record":
            return len(rows)
        counts = self._counts[term.stream][rows]
        return int((term.per(counts) if callable(term.per) else counts).sum())

    def _backward(
        self,
        term: Term,
        weight: float,
        rows: np.ndarray,
        count: float,
        name: tuple[int, int],
        *,
        ends: bool,
    ) -> float:
        """Add the gradient of this process's share of a term, one micro-batch after the other.

        Returns:
            The share's unweighted value.
        """
        total = 0.0
        for value, final in self._passes(term, rows, name):
            share = value / count
            self.holding.backward(weight * share, last=ends and final)
            total += float(share.detach())
        return total

    @torch.no_grad()
    def _measured(self, term: Term, rows: np.ndarray, unit: int, name: tuple[int, int]) -> float:
        """Return the value of a term over the whole step, of all processes."""
        own = sum(float(value) for value, _ in self._passes(term, rows, name))
        return self.team.sum([own])[0] / unit

    def _passes(
        self, term: Term, rows: np.ndarray, name: tuple[int, int]
    ) -> Iterator[tuple[Tensor, bool]]:
        """Yield the sum of a term over each micro-batch of this process; is it the last one?"""
        rows = rows[np.argsort(self._lengths[term.stream][rows], kind="stable")]
        parts = self.team.parts(rows, self.schedule.micro_batch, idle=self.holding.idle)
        device = self.run.device
        for place, (part, chosen, counts) in enumerate(parts, start=1):
            torch.manual_seed(self.run.stream_seed("dropout", *name, part))
            streams = [term.stream, *([term.beside] if term.beside else [])]
            batches = [self.task.batch(self._records[s], chosen.tolist()) for s in streams]
            with self._arithmetic():
                value_B = term.loss(self.holding.model, *(batch.to(device) for batch in batches))
            value = _wide(value_B).sum()
            yield (value if counts else 0.0 * value), place == len(parts)

    def _arithmetic(self) -> AbstractContextManager[Any]:
        if self.schedule.precision == "float32":
            return nullcontext()
        # Without the cache of cast weights: a pass without gradients would leave casts without any.
        kind = torch.device(self.run.device).type
        return torch.autocast(kind, dtype=torch.bfloat16, cache_enabled=False)


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _key(
    model: nn.Module,
    task: Task,
    streams: Mapping[str, Stream],
    terms: Sequence[Term],
    schedule: Schedule,
    scope: Scope,
    aside: Mapping[str, Records],
    guard: Guard | None,
    run: Run,
) -> str:
    """Digest everything that decides the loop's result."""
    return digest_json(
        {
            "model": state_digest(model),
            "task": task.fingerprint(),
            "streams": [
                [name, stream.records.digest(), digest_json(stream.records.ids), stream.beside]
                for name, stream in streams.items()
            ],
            "terms": [
                [
                    t.label,
                    t.stream,
                    t.beside,
                    *(None if callable(x) else x for x in (t.weight, t.per)),
                ]
                for t in terms
            ],
            "schedule": to_json(schedule),
            "scope": to_json(scope),
            "aside": [[name, records.digest()] for name, records in aside.items()],
            "guard": None if guard is None else [guard.records.digest(), guard.max_increase],
            "seed": run.seed,
        }
    )
