"""``Run``: the explicit context that is the only way to disk, clock, device and cancellation."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from expunge.core.errors import Interrupted
from expunge.core.files import append_line
from expunge.core.progress import Progress
from expunge.core.streams import stream_seed


class Tracker(Protocol):
    """Something that plots numbers while a run goes on (TensorBoard, MLflow, …)."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Take the numbers of one step."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much work a run may do before it stops in a resumable state.

    Attributes:
        max_steps: Optimiser steps of one training loop; ``None`` is unlimited.
        max_seconds: Wall-clock seconds since the run began; ``None`` is unlimited.
    """

    max_steps: int | None = None
    max_seconds: float | None = None


class _Scratch:
    """A temporary folder that goes, without a word, when the last run that uses it is gone."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="expunge-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


class Run:
    """Everything a computation may know about the world outside its arguments.

    Args:
        seed: Root of every random stream.
        device: A torch device string, such as ``"cpu"`` or ``"cuda:0"``.
        folder: Where checkpoints and caches go; a temporary folder when absent.
        events: A JSON-lines file that receives events; none when absent. Events hold ids and
            numbers only, never text of records.
        budget: Limits on steps and seconds.
        checkpoint_every: Optimiser steps between two checkpoints.
        quiet: Show no progress.
        trackers: Take the same numbers as the events.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        device: str = "cpu",
        folder: Path | None = None,
        events: Path | None = None,
        budget: Budget | None = None,
        checkpoint_every: int = 25,
        quiet: bool = True,
        trackers: tuple[Tracker, ...] = (),
    ) -> None:
        self.seed = seed
        self.device = device
        self.events = events
        self.budget = budget or Budget()
        self.checkpoint_every = checkpoint_every
        self.quiet = quiet
        self.trackers = trackers
        self._started = time.monotonic()
        self._cancelled = threading.Event()
        self._scratch = None
        if folder is None:
            self._scratch = _Scratch()
            folder = self._scratch.path
        self.folder = folder

    def child(self, name: str, *, seed: int | None = None) -> Run:
        """Return the context of a part of this run, with a folder of its own.

        Args:
            name: The part; a folder name.
            seed: The part's seed; this run's when absent.
        """
        part = Run(
            self.seed if seed is None else seed,
            device=self.device,
            folder=self.folder / name,
            events=self.events,
            budget=self.budget,
            checkpoint_every=self.checkpoint_every,
            quiet=self.quiet,
            trackers=self.trackers,
        )
        part._started = self._started
        part._cancelled = self._cancelled
        part._scratch = self._scratch
        return part

    def stream_seed(self, purpose: str, *counters: int | str) -> int:
        """Return the seed of one named random stream; see ``expunge.core.streams``."""
        return stream_seed(self.seed, purpose, *counters)

    def emit(self, event: str, **values: Any) -> None:
        """Append one event (a name, ids and numbers) to the run's event file and trackers."""
        if self.events is not None:
            record = {
                "event": event,
                "seconds": round(time.monotonic() - self._started, 3),
                **values,
            }
            append_line(self.events, json.dumps(record, sort_keys=True), durable=False)
        numbers = {
            f"{event}/{k}": float(v) for k, v in values.items() if isinstance(v, int | float)
        }
        if numbers and self.trackers:
            for tracker in self.trackers:
                tracker.log(numbers, int(values.get("step", 0)))

    def cancel(self) -> None:
        """Ask the run to stop after the current step; safe from any thread or signal handler."""
        self._cancelled.set()

    def check(self, steps: int = 0) -> None:
        """Stop here when the run was cancelled or its budget is spent.

        Args:
            steps: Optimiser steps that the current loop has taken.

        Raises:
            Interrupted: It must stop; work so far is in the last checkpoint.
        """
        if self._cancelled.is_set():
            raise Interrupted(
                "the run was cancelled; start it again with the same folder to resume"
            )
        if self.budget.max_steps is not None and steps >= self.budget.max_steps:
            raise Interrupted(
                f"the budget of {self.budget.max_steps} steps is spent; "
                "raise max_steps of the run's budget and start it again to go on"
            )
        spent = time.monotonic() - self._started
        if self.budget.max_seconds is not None and spent >= self.budget.max_seconds:
            raise Interrupted(
                f"the budget of {self.budget.max_seconds} seconds is spent; "
                "raise max_seconds (machine.max_seconds in a recipe) and start it again to go on"
            )

    @contextmanager
    def progress(self, label: str, total: int, done: int = 0) -> Iterator[Progress]:
        """Show a bar with ETA for the block (plain lines when the output is no terminal).

        Args:
            label: What is being done.
            total: How many units there are.
            done: How many a resumed run has behind it.
        """
        bar = Progress(label, total, done=done, quiet=self.quiet)
        try:
            yield bar
        finally:
            bar.close()
