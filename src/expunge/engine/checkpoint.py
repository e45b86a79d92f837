"""Checkpoints of the loop: everything a killed run needs to go on with the same bits.

The data order is a function of seed and epoch, so that the step number is the whole position.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from expunge.core.digest import digest_file, digest_json
from expunge.core.errors import ConfigError, IntegrityError
from expunge.core.files import read_json, write_json
from expunge.engine.weights import load_tensors, save_tensors
from expunge.engine.workers import Workers

HEAD = "HEAD.json"


@dataclasses.dataclass
class State:
    """What a checkpoint holds beside weights.

    Attributes:
        step: Optimiser steps taken.
        baseline: The collapse guard's bound at the start; ``None`` without a guard.
        steps: Numbers of every step so far.
    """

    step: int = 0
    baseline: float | None = None
    steps: list[dict[str, float]] = dataclasses.field(default_factory=list)


class Optimizer(Protocol):
    """An optimiser of torch, or what stands for one whose state is divided among processes."""

    param_groups: list[dict[str, Any]]

    def step(self) -> Any:
        """Move the weights."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""

    def state_dict(self) -> dict[str, Any]:
        """Return its settings and, under ``state``, its slots by number of the parameter."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what ``state_dict`` returned."""


class Checkpoints:
    """The checkpoints of one training loop in one folder: the newest, and the newest good one.

    They differ when a run with a collapse guard was interrupted between two of its checks. Going
    back to the good one keeps the result independent of when that was. Of several processes the
    main one writes and reads, and tells the others what it read.

    Args:
        folder: Where they lie.
        key: Digest of everything that decides the loop's result; a checkpoint with another key is
            refused.
        workers: The processes; this one alone when absent.
    """

    def __init__(self, folder: Path, key: str, workers: Workers | None = None) -> None:
        self.folder = folder
        self.key = key
        self.workers = workers or Workers()

    def save(
        self,
        state: State,
        weights: dict[str, Tensor],
        optimizer: Optimizer,
        *,
        good: bool = True,
    ) -> None:
        """Write a checkpoint; the one before it stays whole until this one is.

        Args:
            state: Position and numbers.
            weights: The loop's weights.
            optimizer: Its state is saved too.
            good: Whether the guard, if any, has passed this state.

        Raises:
            StorageError: The folder cannot be written.
        """
        slots_of = optimizer.state_dict()["state"]  # where it is divided, all take part
        if not self.workers.main:
            return
        name = f"state-{state.step:07d}.safetensors"
        tensors = {f"weights.{n}": t for n, t in weights.items()}
        for index, slots in slots_of.items():
            for slot, value in slots.items():
                if value is not None:
                    tensors[f"optimizer.{index}.{slot}"] = torch.as_tensor(value)
        save_tensors(tensors, self.folder / name)
        newest = {
            "file": name,
            "digest": digest_file(self.folder / name),
            "state": dataclasses.asdict(state),
        }
        head: dict[str, Any] = {
            "key": self.key,
            "newest": newest,
            "good": newest if good else self._head()["good"],
        }
        write_json(self.folder / HEAD, {**head, "seal": digest_json(head)})
        for old in self.folder.glob("state-*.safetensors"):
            if old.name not in (name, head["good"]["file"]):
                old.unlink(missing_ok=True)

    def load(
        self,
        weights: dict[str, Tensor],
        optimizer: Optimizer,
        *,
        which: Literal["newest", "good"] = "newest",
    ) -> State | None:
        """Put a checkpoint into the weights and the optimiser.

        Args:
            weights: The loop's weights, overwritten in place.
            optimizer: Its state is replaced.
            which: The newest checkpoint, or the newest that the guard has passed.

        Returns:
            The state, or ``None`` when there is no checkpoint yet.

        Raises:
            ConfigError: The checkpoint belongs to another recipe, model or data.
            IntegrityError: Its bytes are not what was written.
        """
        found = self.workers.told(self._read(which) if self.workers.main else None)
        if found is None:
            return None
        state, tensors = found
        slots: dict[int, dict[str, Tensor]] = {}
        with torch.no_grad():
            for name, value in tensors.items():
                part, rest = name.split(".", 1)
                if part == "weights":
                    weights[rest].copy_(value)
                else:
                    index, slot = rest.split(".", 1)
                    slots.setdefault(int(index), {})[slot] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})
        return State(**state)

    def clear(self) -> None:
        """Delete the checkpoints once the loop's result is kept elsewhere."""
        for old in [self.folder / HEAD, *self.folder.glob("state-*.safetensors")]:
            old.unlink(missing_ok=True)

    def _read(self, which: str) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        if not (self.folder / HEAD).exists():
            return None
        entry = self._head()[which]
        path = self.folder / entry["file"]
        if not path.exists() or digest_file(path) != entry["digest"]:
            raise IntegrityError(f"checkpoint {path} is not what was written; delete {self.folder}")
        return entry["state"], load_tensors(path)

    def _head(self) -> dict[str, Any]:
        path = self.folder / HEAD
        head: dict[str, Any] = read_json(path)
        if not isinstance(head, dict) or head.pop("seal", None) != digest_json(head):
            raise IntegrityError(f"checkpoint {path} is not what was written; delete {self.folder}")
        if head["key"] != self.key:
            raise ConfigError(
                f"the checkpoint in {self.folder} was made with other settings, data or model; "
                "choose another folder with --out, or delete this one"
            )
        return head
