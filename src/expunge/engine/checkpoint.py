"""Checkpoints of the loop: everything a killed run needs to go on with the same bits.

The data order is a function of seed and epoch, so that the step number is the whole position.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from expunge.core.digest import digest_file
from expunge.core.errors import ConfigError, IntegrityError
from expunge.core.files import read_json, write_json
from expunge.engine.weights import load_tensors, save_tensors

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


class Checkpoints:
    """The checkpoints of one training loop in one folder; the newest is kept.

    Args:
        folder: Where they lie.
        key: Digest of everything that decides the loop's result; a checkpoint with another key is
            refused.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self.key = key

    def save(
        self, state: State, weights: dict[str, Tensor], optimizer: torch.optim.Optimizer
    ) -> None:
        """Write a checkpoint; the one before it stays whole until this one is.

        Raises:
            StorageError: The folder cannot be written.
        """
        name = f"state-{state.step:07d}.safetensors"
        tensors = {f"weights.{n}": t for n, t in weights.items()}
        for index, slots in optimizer.state_dict()["state"].items():
            for slot, value in slots.items():
                if value is not None:
                    tensors[f"optimizer.{index}.{slot}"] = torch.as_tensor(value)
        save_tensors(tensors, self.folder / name)
        head = {
            "key": self.key,
            "file": name,
            "digest": digest_file(self.folder / name),
            "state": dataclasses.asdict(state),
        }
        write_json(self.folder / HEAD, head)
        for old in self.folder.glob("state-*.safetensors"):
            if old.name != name:
                old.unlink(missing_ok=True)

    def load(self, weights: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> State | None:
        """Put the newest checkpoint into the weights and the optimiser.

        Args:
            weights: The loop's weights, overwritten in place.
            optimizer: Its state is replaced.

        Returns:
            The state, or ``None`` when there is no checkpoint yet.

        Raises:
            ConfigError: The checkpoint belongs to another recipe, model or data.
            IntegrityError: Its bytes are not what was written.
        """
        if not (self.folder / HEAD).exists():
            return None
        head: dict[str, Any] = read_json(self.folder / HEAD)
        if head["key"] != self.key:
            raise ConfigError(
                f"the checkpoint in {self.folder} was made with other settings, data or model; "
                "choose another folder with --out, or delete this one"
            )
        path = self.folder / head["file"]
        if not path.exists() or digest_file(path) != head["digest"]:
            raise IntegrityError(f"checkpoint {path} is not what was written; delete {self.folder}")
        tensors = load_tensors(path)
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
        return State(**head["state"])

    def clear(self) -> None:
        """Delete the checkpoints once the loop's result is kept elsewhere."""
        for old in [self.folder / HEAD, *self.folder.glob("state-*.safetensors")]:
            old.unlink(missing_ok=True)
