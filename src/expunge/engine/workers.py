"""``Workers``: the processes that share one loop, as ``accelerate launch`` starts them.

All talk between processes is here. Each holds the same data and the same plan, takes its share of
every step's records, and divides by the step's whole count, so that the sum over processes is the
step of one process. A process alone talks to nobody and imports nothing for it.
"""

from __future__ import annotations

import copy
import datetime
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from expunge.core.errors import ConfigError, Interrupted
from expunge.core.run import Run

Sharding = Literal["none", "fsdp", "deepspeed"]

_LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR")
# Whoever waits for the main process's audits must not give up; launchers end all when one dies.
_PATIENCE = datetime.timedelta(hours=6)


class Workers:
    """The processes of one run, seen from one of them.

    Args:
        rank: Number of this process, from 0; the main one.
        size: How many there are.
        device: Where tensors must lie that processes exchange.
        sharding: Whether each process holds the whole model, or who divides it among them.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, device: str = "cpu", sharding: Sharding = "none"
    ) -> None:
        self.rank, self.size, self.device, self.sharding = rank, size, device, sharding

    @property
    def main(self) -> bool:
        """Whether this process owns the run folder."""
        return self.rank == 0

    def parts(
        self, rows: np.ndarray, size: int | None, *, idle: bool
    ) -> list[tuple[int, np.ndarray, bool]]:
        """Return this process's share of a step's rows, one entry for each forward pass.

        Args:
            rows: All rows of the step, sorted by length so that shares cost alike.
            size: Most rows of one pass; all at once when absent.
            idle: Let every process make the same number of passes, as it must where they exchange
                weights during a pass. Rows that stand in count for nothing.

        Returns:
            Number of the pass, its rows, and whether they count.
        """
        share = rows[self.rank :: self.size]
        longest = -(-len(rows) // self.size)
        size = size or max(longest, 1)
        starts = range(0, longest if idle else len(share), size)
        found = [(start // size, share[start : start + size]) for start in starts]
        return [
            (part * self.size + self.rank, own if len(own) else rows[:1], bool(len(own)))
            for part, own in found
        ]

    def sum(self, values: Iterable[float]) -> list[float]:
        """Return the sum over processes of each value."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        return bool(self._reduced([float(flag)], dist.ReduceOp.MAX)[0])

    def agreed(self, value: float) -> float:
        """Return the main process's value."""
        return self.sum([value if self.main else 0.0])[0]

    def require_same(self, told: str, what: str) -> None:
        """Check that a text is the same in all processes before they rely on it.

        Args:
            told: The text, such as a digest.
            what: What differs otherwise, in a reader's words, and what to do.

        Raises:
            ConfigError: It is not; in all processes.
        """
        number = int.from_bytes(hashlib.sha256(told.encode()).digest()[:6])
        high, low = self._reduced([float(number), -float(number)], dist.ReduceOp.MAX)
        if high != -low:
            raise ConfigError(f"the {self.size} processes do not have the same {what}")

    def require_device(self, device: str) -> None:
        """Check that a device can be that of every process.

        Raises:
            ConfigError: All processes would compute on one device, or could not talk to each other.
        """
        own = torch.device(self.device).type
        if self.size > 1 and device != own:
            raise ConfigError(
                f"device = {device!r}, but {self.size} processes were launched on {own!r}; set the "
                f"device to {own!r} without a number, or launch on another kind of device"
            )

    def check(self, run: Run, steps: int = 0) -> None:
        """Stop when any process was cancelled or has spent its budget; see ``Run.check``.

        Raises:
            Interrupted: All must stop, at the same step.
        """
        stopped = None
        try:
            run.check(steps)
        except Interrupted as error:
            stopped = error
        if self.any(stopped is not None):
            raise stopped or Interrupted(
                "another process of this run was stopped; start all of them again to resume"
            )

    def quieted(self, run: Run) -> Run:
        """Return a run that shows and records nothing unless this is the main process."""
        if self.main:
            return run
        quiet = copy.copy(run)
        quiet.quiet, quiet.events, quiet.trackers = True, None, ()
        return quiet

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every process the sum of all gradients; none where no process has one."""
        if self.size == 1:
            return
        moved = list(parameters)
        present = self._reduced([float(p.grad is not None) for p in moved], dist.ReduceOp.MAX)
        for parameter, somewhere in zip(moved, present, strict=True):
            if somewhere:
                grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = grad.contiguous()
                with _together():
                    dist.all_reduce(parameter.grad)

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors by those of the main process, so that all go on with the same bits."""
        if self.size == 1:
            return
        for tensor in tensors:
            data = self._bytes(tensor).to(self.device)
            with _together():
                dist.broadcast(data, 0)
            if not self.main:
                with torch.no_grad():
                    tensor.copy_(data.to(tensor.device).view(tensor.dtype).view(tensor.shape))

    def told(
        self, found: tuple[Any, dict[str, Tensor]] | None
    ) -> tuple[Any, dict[str, Tensor]] | None:
        """Return what the main process found: plain data and tensors; others bring ``None``."""
        if self.size == 1:
            return found
        head = b"null"
        if self.main and found is not None:
            shapes = {n: [str(t.dtype)[6:], list(t.shape)] for n, t in found[1].items()}
            head = json.dumps([found[0], shapes]).encode()
        length = int(self.agreed(len(head)))
        text = torch.zeros(length, dtype=torch.uint8)
        if self.main:
            text = torch.frombuffer(bytearray(head), dtype=torch.uint8)
        self.spread([text])
        value = json.loads(bytes(text.tolist()))
        if value is None:
            return None
        tensors = {
            name: found[1][name] if self.main and found else torch.zeros(shape, dtype=_dtype(dtype))
            for name, (dtype, shape) in value[1].items()
        }
        self.spread(tensors.values())
        return value[0], tensors

    def wait(self) -> None:
        """Wait until every process is here."""
        self.any(False)

    def _reduced(self, values: Iterable[float], operation: Any) -> list[float]:
        numbers = list(values)
        if self.size == 1 or not numbers:
            return numbers
        tensor = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        with _together():
            dist.all_reduce(tensor, operation)
        found: list[float] = tensor.tolist()
        return found

    @staticmethod
    def _bytes(tensor: Tensor) -> Tensor:
        # As bytes, since not every backend sends every type.
        return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


@functools.cache
def workers() -> Workers:
    """Return the processes that were launched together, or this one alone.

    Raises:
        ConfigError: Several were launched, and accelerate is missing or told to change precision.
    """
    if not all(name in os.environ for name in _LAUNCHED) or int(os.environ["WORLD_SIZE"]) == 1:
        return Workers()
    sharding: Sharding = "none"
    if _set("ACCELERATE_USE_DEEPSPEED"):
        sharding = "deepspeed"
    elif _set("ACCELERATE_USE_FSDP"):
        sharding = "fsdp"
    _check_launch(os.environ, sharding)
    try:
        from accelerate import Accelerator, InitProcessGroupKwargs
    except ImportError as error:
        raise ConfigError(
            "several processes need accelerate: pip install 'expunge[distributed]'"
        ) from error
    on_cpu = not torch.accelerator.is_available() or _set("ACCELERATE_USE_CPU")
    accelerator = Accelerator(
        cpu=on_cpu and sharding != "deepspeed",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
    )
    device = "cpu" if on_cpu else accelerator.device.type
    return Workers(dist.get_rank(), dist.get_world_size(), device, sharding)


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise Interrupted(
            "another process of this run has ended; see what it said, and start all of them again "
            "to resume"
        ) from error


def _check_launch(environment: Mapping[str, str], sharding: Sharding) -> None:
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision != "no":
        raise ConfigError(
            f"the launch says mixed_precision = {precision!r}; let the recipe decide it: launch "
            "with mixed_precision 'no' and set precision of the schedule"
        )
    if sharding == "fsdp" and environment.get("FSDP_VERSION", "1") != "2":
        raise ConfigError("only version 2 of FSDP is supported; set fsdp_version: 2")


def _set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("true", "1")


def _dtype(name: str) -> torch.dtype:
    found: torch.dtype = getattr(torch, name)
    return found
