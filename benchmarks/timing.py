"""Alternating timing, and peak memory of a child process."""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

ROUNDS = 5

R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one arm, one entry per round.

    Attributes:
        wall: Elapsed time.
        cpu: Processor time of the process; what counts on a machine that others use too.
    """

    wall: tuple[float, ...]
    cpu: tuple[float, ...]

    @property
    def median_wall(self) -> float:
        """Median elapsed seconds."""
        return statistics.median(self.wall)

    @property
    def median_cpu(self) -> float:
        """Median processor seconds."""
        return statistics.median(self.cpu)


def alternate(
    arms: Mapping[str, Callable[[], R]], rounds: int = ROUNDS
) -> tuple[dict[str, R], dict[str, Timing]]:
    """Time the arms in turn, A-B-A-B, after one untimed turn of each.

    Args:
        arms: What to time, by name.
        rounds: Timed turns of each arm.

    Returns:
        What each arm returned in the untimed turn, to be compared, and its timing.
    """
    first = {name: run() for name, run in arms.items()}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, run in arms.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return first, {
        name: Timing(tuple(wall for wall, _ in pairs), tuple(cpu for _, cpu in pairs))
        for name, pairs in seconds.items()
    }


def median_ratio(slow: Timing, fast: Timing) -> tuple[float, float]:
    """Return the medians over rounds of slow / fast, in elapsed and in processor time.

    The turns of one round are neighbours in time, so that they share the load of the machine.
    """
    wall = statistics.median(s / f for s, f in zip(slow.wall, fast.wall, strict=True))
    cpu = statistics.median(s / f for s, f in zip(slow.cpu, fast.cpu, strict=True))
    return wall, cpu


def peak_mebibytes() -> float:
    """Return the largest resident memory of this process so far, in MiB (Linux).

    ``getrusage`` would not do: its maximum survives ``exec``, so a child reports its parent's.
    """
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmHWM; peak memory is measured on Linux only")


def in_child(script: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Run a benchmark in a process of its own and return the JSON object it prints last."""
    found = subprocess.run(
        [sys.executable, script, *arguments], check=True, capture_output=True, text=True
    )
    return json.loads(found.stdout.splitlines()[-1])
