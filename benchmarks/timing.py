"""Alternating timing, times of training steps, peak memory of a process, and profiles."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from output import parser
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

ROUNDS = 5
THREADS = (1, 2)

_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
_ATTENTION = "scaled_dot_product"
_BACKWARD = "autograd::engine::evaluate_function"

K = TypeVar("K")
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


def turns_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser for a benchmark whose ways take turns in one run.

    ``--threads`` takes several numbers, one after the other; what every benchmark has is there too.
    """
    made = argparse.ArgumentParser(
        description=description, parents=[parser(description)], conflict_handler="resolve"
    )
    made.add_argument(
        "--threads",
        type=positive,
        nargs="+",
        default=THREADS,
        help="threads of torch; all are timed, in this order (default 1 2)",
    )
    turns = f"timed turns of each way, after one that is not (default {ROUNDS})"
    made.add_argument("--rounds", type=positive, default=ROUNDS, help=turns)
    return made


def positive(text: str) -> int:
    """Return the whole number from 1 on that an option gives; raise ``ArgumentTypeError`` else."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def alternate(
    arms: Mapping[K, Callable[[], R]],
    rounds: int = ROUNDS,
    *,
    check: Callable[[Mapping[K, R]], None],
) -> tuple[dict[K, R], dict[K, Timing]]:
    """Time the arms in turn, A-B-A-B, after one untimed turn of each.

    Args:
        arms: What to time, by name.
        rounds: Timed turns of each arm.
        check: Takes what the arms of one round returned, the untimed one's first, and raises where
            they do not belong together: speed counts for nothing then. It is not timed.

    Returns:
        What each arm returned in the untimed turn, and its timing.
    """
    first = {name: run() for name, run in arms.items()}
    check(first)
    seconds: dict[K, list[tuple[float, float]]] = {name: [] for name in arms}
    for _ in range(rounds):
        found = {}
        for name, run in arms.items():
            wall, cpu = time.perf_counter(), time.process_time()
            found[name] = run()
            seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
        check(found)
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


class Clock:
    """Notes when the steps of a training loop end; a tracker, so that a ``Run`` can tell it."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take the numbers of an event; a loop that begins anew is timed anew."""
        if "step/lr" not in values:
            return
        if step == 1:
            self.ends.clear()
        self.tick()

    def tick(self) -> None:
        """Note the end of a step."""
        self.ends.append((time.perf_counter(), time.process_time()))

    def between(self) -> tuple[float, float]:
        """Return elapsed and processor seconds from the end of the first step to the last one's."""
        (wall, cpu), (last_wall, last_cpu) = self.ends[0], self.ends[-1]
        return last_wall - wall, last_cpu - cpu


def resident() -> float:
    """Return the memory that this process holds now, in MiB (Linux), garbage collected before."""
    gc.collect()
    return _status("VmRSS")


def watched(run: Callable[[], R]) -> tuple[float, R]:
    """Return the largest memory that this process holds during a call, in MiB, and its result.

    The kernel's mark is reset first: what loading the model took does not count. ``getrusage``
    would not do: its maximum cannot be reset and survives ``exec``.
    """
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    result = run()
    return _status("VmHWM"), result


def _status(name: str) -> float:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {name}; memory is measured on Linux only")


def in_child(script: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Run a benchmark in a process of its own and return the JSON object it prints last."""
    found = subprocess.run(
        [sys.executable, script, *arguments], check=True, capture_output=True, text=True
    )
    return json.loads(found.stdout.splitlines()[-1])


def profiled(model: nn.Module, run: Callable[[], object]) -> dict[str, float]:
    """Return what share of a call's processor time each of its parts took.

    The parts forward, frozen reference, backward and optimiser are disjoint. Products and head cut
    across them.

    Args:
        model: Watched, with the copies that the call makes of it.
        run: The call.
    """
    open_passes: list[Any] = []

    def enter(module: nn.Module, *_: Any) -> None:
        name = "step: forward" if torch.is_grad_enabled() else "step: frozen reference"
        open_passes.append(record_function(name))
        open_passes[-1].__enter__()

    def leave(module: nn.Module, *_: Any) -> None:
        open_passes.pop().__exit__(None, None, None)

    handles = [model.register_forward_pre_hook(enter), model.register_forward_hook(leave)]
    try:
        with (
            profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found,
            record_function("step: all"),
        ):
            run()
    finally:
        for handle in handles:
            handle.remove()
    vocabulary = model.config.vocab_size  # type: ignore[union-attr]
    events = found.key_averages(group_by_input_shape=True)

    def time(chosen: Callable[[Any], bool], total: bool = False) -> float:
        return sum(
            e.cpu_time_total if total else e.self_cpu_time_total for e in events if chosen(e)
        )

    def of_head(event: Any) -> bool:
        return any(isinstance(s, list) and vocabulary in s for s in event.input_shapes)

    whole = time(lambda e: e.key == "step: all", total=True)
    parts = {
        "forward": time(lambda e: e.key == "step: forward", total=True),
        "frozen reference": time(lambda e: e.key == "step: frozen reference", total=True),
        "backward": time(lambda e: e.key.startswith(_BACKWARD), total=True),
        "optimiser": time(lambda e: e.key.startswith("Optimizer.step"), total=True),
    }
    parts["rest (loss, data, checkpoint)"] = whole - sum(parts.values())
    parts["of all: matrix products of blocks"] = time(
        lambda e: e.key in _PRODUCTS and not of_head(e)
    )
    parts["of all: matrix products of the head"] = time(lambda e: e.key in _PRODUCTS and of_head(e))
    parts["of all: attention"] = time(lambda e: _ATTENTION in e.key)
    parts["of all: other work on the vocabulary"] = time(
        lambda e: e.key not in _PRODUCTS and of_head(e) and not e.key.startswith("Optimizer")
    )
    return {name: value / whole for name, value in parts.items()}
