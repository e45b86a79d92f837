"""``Task``: how to run one kind of model, so that objectives and audits serve every kind.

The common currency is the *target position*. A batch of B records has N positions at which a
target symbol is predicted (a classifier: one per record; a language model: one per answer token).
Logits exist at those positions only, packed without padding, with the record of each position
beside them.

Shape legend: B records of a batch, N target positions of a batch, V classes or vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from expunge.core.records import Records
from expunge.core.registry import Registry


@dataclasses.dataclass(frozen=True)
class Batch:
    """Records made ready for one forward pass.

    Attributes:
        ids: Record ids, length B.
        inputs: Tensors that the model is called with, batch axis first.
        targets_N: Target symbol at each position; empty when built without targets. A regressor's
            are numbers, (B, D).
        rows_N: Which record of the batch (0..B-1) each position belongs to.
        positions: Boolean mask (B, T) of the places whose output predicts a target, for models
            that yield one output per token; ``None`` for one output per record.
    """

    ids: tuple[str, ...]
    inputs: Mapping[str, Tensor]
    targets_N: Tensor
    rows_N: Int[Tensor, " N"]
    positions: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def counts_B(self) -> Int[Tensor, " B"]:
        """Number of target positions of each record."""
        return torch.bincount(self.rows_N, minlength=len(self))

    def to(self, device: str | torch.device) -> Batch:
        """Return the batch on another device."""
        return dataclasses.replace(
            self,
            inputs={name: value.to(device) for name, value in self.inputs.items()},
            targets_N=self.targets_N.to(device),
            rows_N=self.rows_N.to(device),
            positions=None if self.positions is None else self.positions.to(device),
        )


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a model says at the target positions of a batch.

    Attributes:
        logits_NV: Unnormalised log-probabilities.
        targets_N: Target symbols.
        rows_N: Record of each position.
        num_rows: B.
    """

    logits_NV: Float[Tensor, "N V"]
    targets_N: Int[Tensor, " N"]
    rows_N: Int[Tensor, " N"]
    num_rows: int

    def logprobs_N(self) -> Float[Tensor, " N"]:
        """Return the log-probability of each target, in nats.

        Half-precision logits are widened first: sums over an answer would lose whole nats.
        """
        wide_NV = self.logits_NV.to(torch.promote_types(self.logits_NV.dtype, torch.float32))
        return -F.cross_entropy(wide_NV, self.targets_N, reduction="none")

    def sum_rows(self, values_N: Float[Tensor, " N"]) -> Float[Tensor, " B"]:
        """Sum a value per position to a value per record."""
        zeros = torch.zeros(self.num_rows, dtype=values_N.dtype, device=values_N.device)
        return zeros.index_add(0, self.rows_N, values_N)

    def nll_B(self) -> Float[Tensor, " B"]:
        """Return each record's negative log-likelihood, summed over its positions, in nats."""
        return self.sum_rows(-self.logprobs_N())


@dataclasses.dataclass(frozen=True)
class Estimates(Predictions):
    """What a regressor says of a batch: its outputs stand where other models have logits.

    Attributes:
        logits_NV: Outputs, (B, D).
        targets_N: Targets, (B, D), or (B, 1) where the outputs are quantiles of one number.
        loss: From outputs and targets to each record's loss, shape (B,), never negative.
    """

    targets_N: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]

    @property
    def outputs_BD(self) -> Float[Tensor, "B D"]:
        """The outputs under their own name."""
        return self.logits_NV

    def logprobs_N(self) -> Float[Tensor, " N"]:
        """Return minus each record's loss: a log-likelihood but for scale and constant."""
        wide = torch.promote_types(self.logits_NV.dtype, torch.float32)
        return -self.loss(self.logits_NV.to(wide), self.targets_N.to(wide))


@runtime_checkable
class Task(Protocol):
    """Adapter for one kind of model. Pure: no side effects, nothing reduced over records."""

    kind: ClassVar[str]

    def batch(self, records: Records, rows: Sequence[int], *, targets: bool = True) -> Batch:
        """Make the given rows ready for a forward pass.

        Args:
            records: The data.
            rows: Row numbers.
            targets: Read the targets too; a method without labels asks for none.
        """

    def num_targets(self, records: Records) -> list[int]:
        """Return the number of target positions of every record, without a forward pass."""

    def lengths(self, records: Records) -> list[int]:
        """Return the input length of every record, by which a scoring pass sorts its batches."""

    def predict(self, model: nn.Module, batch: Batch) -> Predictions:
        """Run the model once and return its logits at the target positions."""

    def neutral(
        self, records: Records, seed: int, epoch: int, answers: Sequence[str] = ()
    ) -> Records:
        """Return the records with answers that carry no information.

        A classifier gets random other labels, a language model refusals or one of ``answers``;
        which one is a function of (seed, epoch, record id).
        """

    def fingerprint(self) -> dict[str, Any]:
        """Return plain data that decide what ``batch`` yields, for digests and caches."""


@dataclasses.dataclass(frozen=True)
class TaskInfo:
    """A registered kind of task.

    Attributes:
        name: Registered name.
        title: One line for listings.
        make: Builds the task; see each task for its arguments.
    """

    name: str
    title: str
    make: Callable[..., Task]


tasks: Registry[TaskInfo] = Registry("tasks", "expunge.engine.tasks")

K = TypeVar("K", bound=type)


def task(name: str, title: str) -> Callable[[K], K]:
    """Register a task class under a name."""

    def file(cls: K) -> K:
        tasks.register(name)(TaskInfo(name, title, cls))
        return cls

    return file
