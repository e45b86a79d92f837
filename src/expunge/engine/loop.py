"""The training loop: the only one in Expunge.

An objective is a tuple of terms. Each term reads one stream of records and yields a value per
record, so that terms are back-propagated one after the other and a batch may be split at will:
values are summed, and divided once by the step's whole count.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from expunge.core.config import to_json
from expunge.core.digest import digest_json
from expunge.core.errors import Interrupted, NumericalError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.checkpoint import Checkpoints, State
from expunge.engine.device import forked_random
from expunge.engine.guard import Guard
from expunge.engine.modes import training
from expunge.engine.order import Step, epoch_steps
from expunge.engine.schedule import Schedule, learning_rate, make_optimizer
from expunge.engine.scope import Scope, Selection, frozen_entries, scoped
from expunge.engine.task import Batch, Task
from expunge.engine.weights import require_finite, state_digest


@dataclasses.dataclass(frozen=True)
class Stream:
    """Records that a term reads.

    Attributes:
        records: The records.
        at_epoch: Yields what the same records look like in a given epoch, for targets that are
            drawn anew; the records themselves when absent.
    """

    records: Records
    at_epoch: Callable[[int], Records] | None = None


@dataclasses.dataclass(frozen=True)
class Term:
    """One term of an objective, to be minimised.

    Attributes:
        stream: Name of the stream it reads.
        loss: Yields a value for each record of a batch, shape (B,).
        weight: Factor of the term.
        per: Divide the sum over a step by its number of records or of target positions.
    """

    stream: str
    loss: Callable[[nn.Module, Batch], Tensor]
    weight: float = 1.0
    per: Literal["record", "target"] = "record"


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
    """

    steps: list[dict[str, float]]
    stopped: Stopped | None = None

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
    guard: Guard | None = None,
    label: str = "training",
) -> History:
    """Minimise a sum of terms by changing the model in place.

    Checkpoints lie in ``run.folder``; called again with the same arguments after a crash, the loop
    goes on from the last one and ends with the same bits. Only the weights in scope change; modes,
    ``requires_grad`` flags and global random state are restored.

    Args:
        model: The model.
        task: How to run it.
        streams: Records by name; the first is the anchor of a paired epoch.
        terms: The objective.
        schedule: Settings of the loop.
        run: Context: seed, device, folder, budget, events, cancellation.
        scope: Which weights may move; all when absent.
        guard: Stops the loop at the last good state when retained records are being lost.
        label: Words beside the progress bar.

    Returns:
        The numbers of every step, and why the loop stopped early if it did.

    Raises:
        NumericalError: A loss or gradient is not finite; the last checkpoint is good.
        Interrupted: Cancelled, or the budget is spent; call again to resume.
    """
    scope = scope or Scope()
    key = _key(model, task, streams, terms, schedule, scope, guard, run)
    sources = {name: stream.records for name, stream in streams.items()}
    model.to(run.device)
    with (
        forked_random(run.device),
        scoped(model, task, scope, sources, run) as selection,
        training(model, freeze_statistics=schedule.freeze_norm_statistics),
    ):
        loop = _Loop(model, task, streams, terms, schedule, run, selection, guard, key)
        return loop.run_to_end(label)


class _Loop:
    """The state of one call of ``fit``."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        streams: Mapping[str, Stream],
        terms: Sequence[Term],
        schedule: Schedule,
        run: Run,
        selection: Selection,
        guard: Guard | None,
        key: str,
    ) -> None:
        self.model, self.task, self.streams, self.terms = model, task, streams, terms
        self.schedule, self.run, self.selection, self.guard = schedule, run, selection, guard
        self.optimizer = make_optimizer(schedule, selection.parameters.values())
        if selection.mask is not None:
            selection.mask.check(selection.parameters)
        self.frozen = frozen_entries(selection)
        self.checkpoints = Checkpoints(run.folder, key)
        self.weights: dict[str, Tensor] = {
            **{n: p.data for n, p in selection.parameters.items()},
            **dict(model.named_buffers()),
        }
        self.sizes = {name: len(stream.records) for name, stream in streams.items()}
        self.steps_per_epoch = len(self._steps(0))
        self.total = schedule.epochs * self.steps_per_epoch
        self._epoch = -1

    def run_to_end(self, label: str) -> History:
        state = self.checkpoints.load(self.weights, self.optimizer)
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
                    self.run.check(state.step)
                except Interrupted:
                    self._save(state, good=self.guard is None)
                    raise
                numbers = self._step(state.step)
                state.step += 1
                state.steps.append({"step": state.step, **numbers})
                self.run.emit("step", loop=label, **state.steps[-1])
                bar.advance(note=self._note(numbers))
                if state.step % self.run.checkpoint_every == 0 or state.step == self.total:
                    stopped = self._keep(state)
                    if stopped is not None:
                        return History(state.steps, stopped)
        return History(state.steps)

    def _keep(self, state: State) -> Stopped | None:
        """Save a checkpoint when the state is good; otherwise go back to the last one."""
        if self.guard is not None and state.baseline is not None:
            loss = self._guard_loss()
            rise = loss - state.baseline
            self.run.emit("guard", step=state.step, retain_loss=loss, rise=rise)
            if not rise <= self.guard.max_increase:
                good = self.checkpoints.load(self.weights, self.optimizer, which="good")
                kept = good.step if good is not None else 0
                return Stopped(
                    f"collapse guard: at step {state.step} the loss on retained records had risen "
                    f"by {rise:.3f} nats per target, more than the bound of "
                    f"{self.guard.max_increase}; the state of step {kept} was kept",
                    kept,
                )
        self._save(state)
        return None

    def _save(self, state: State, *, good: bool = True) -> None:
        require_finite(
            self.weights,
            f"the weights after step {state.step} (lower schedule.lr; the last checkpoint is from "
            "before)",
        )
        self.checkpoints.save(state, self.weights, self.optimizer, good=good)

    def _note(self, numbers: dict[str, float]) -> str:
        return "  ".join(f"{name} {numbers[name]:.3f}" for name in self.streams if name in numbers)

    def _guard_loss(self) -> float:
        assert self.guard is not None
        size = self.schedule.micro_batch or self.schedule.batch_size
        return self.guard.measure(self.model, self.task, self.run.device, size)

    def _steps(self, epoch: int) -> list[Step]:
        schedule = self.schedule
        return epoch_steps(schedule.order, self.sizes, schedule.batch_size, self.run.seed, epoch)

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

    def _step(self, step: int) -> dict[str, float]:
        epoch, place = divmod(step, self.steps_per_epoch)
        self._enter(epoch)
        rows = self._plan[place]
        lr = learning_rate(self.schedule, step, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        active = [term for term in self.terms if term.stream in rows]
        units = [self._units(term, rows[term.stream]) for term in active]
        pooled = sum(units) if self.schedule.order == "mixed" else None
        numbers = {"lr": lr}
        for index, (term, count) in enumerate(zip(active, units, strict=True)):
            value = self._backward(term, rows[term.stream], pooled or count, (step, index))
            numbers[term.stream] = value * (pooled or count) / count
        numbers["grad_norm"] = self._clip(step)
        self._update()
        return numbers

    def _units(self, term: Term, rows: np.ndarray) -> int:
        return len(rows) if term.per == "record" else int(self._counts[term.stream][rows].sum())

    def _backward(self, term: Term, rows: np.ndarray, count: int, name: tuple[int, int]) -> float:
        """Add one term's gradient, one micro-batch after the other; return its unweighted value."""
        rows = rows[np.argsort(self._lengths[term.stream][rows], kind="stable")]
        size = self.schedule.micro_batch or len(rows)
        total = 0.0
        for part, start in enumerate(range(0, len(rows), size)):
            torch.manual_seed(self.run.stream_seed("dropout", *name, part))
            batch = self.task.batch(self._records[term.stream], rows[start : start + size].tolist())
            value = term.loss(self.model, batch.to(self.run.device)).sum() / count
            (term.weight * value).backward()
            total += float(value.detach())
        if not math.isfinite(total):
            raise NumericalError(
                f"the loss on {term.stream!r} became {total} at step {name[0] + 1}; lower the "
                "learning rate (schedule.lr). The last checkpoint is from before"
            )
        return total

    def _clip(self, step: int) -> float:
        gradients = [p.grad for p in self.selection.parameters.values() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if not math.isfinite(norm):
            raise NumericalError(
                f"the gradient became {norm} at step {step + 1}; lower schedule.lr or set "
                "schedule.clip_norm. The last checkpoint is from before"
            )
        if self.schedule.clip_norm is not None and norm > self.schedule.clip_norm:
            for gradient in gradients:
                gradient.mul_(self.schedule.clip_norm / (norm + 1e-6))
        return norm

    def _update(self) -> None:
        """Take a step in which masked entries keep their bits, whatever momentum and decay want.

        Source: SalUn (Fan et al., 2024), eq. 4; zeroing gradients alone does not freeze weights.
        """
        mask = self.selection.mask
        if mask is None:
            self.optimizer.step()
            return
        for name, moves in mask.tensors.items():
            parameter = self.selection.parameters[name]
            if parameter.grad is not None:
                parameter.grad.mul_(moves)
        self.optimizer.step()
        for name, moves in mask.tensors.items():
            parameter = self.selection.parameters[name]
            torch.where(moves, parameter.data, self.frozen[name], out=parameter.data)


def _key(
    model: nn.Module,
    task: Task,
    streams: Mapping[str, Stream],
    terms: Sequence[Term],
    schedule: Schedule,
    scope: Scope,
    guard: Guard | None,
    run: Run,
) -> str:
    """Digest everything that decides the loop's result."""
    return digest_json(
        {
            "model": state_digest(model),
            "task": task.fingerprint(),
            "streams": [
                [name, stream.records.digest(), digest_json(stream.records.ids)]
                for name, stream in streams.items()
            ],
            "terms": [[term.stream, term.weight, term.per] for term in terms],
            "schedule": to_json(schedule),
            "scope": to_json(scope),
            "guard": None if guard is None else [guard.records.digest(), guard.max_increase],
            "seed": run.seed,
        }
    )
