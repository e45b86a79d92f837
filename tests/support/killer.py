"""Kill a run with SIGKILL at random moments, start it again, and go on until it is finished."""

import random
import signal
import time
from contextlib import suppress
from pathlib import Path

from command_line import Command


def survive(recipe: Path, out: Path, cache: Path, draw: random.Random, kills: int) -> int:
    """Carry out a recipe in spite of kills; return how many there were.

    Each kill waits until the run has written something since its start, so that work gets done,
    and then a random moment more.

    Args:
        recipe: Recipe file.
        out: Run folder.
        cache: Cache folder.
        draw: Source of the moments.
        kills: Kills after which the run is left alone.
    """
    done = 0
    while True:
        before = _written(out)
        command = Command(["run", recipe, "--out", out], cache, recipe.parent)
        if done < kills:
            while command.running and _written(out) == before:
                time.sleep(0.002)
            time.sleep(draw.uniform(0, 0.3))
            with suppress(ProcessLookupError):  # it ended before its moment came
                command.signal(signal.SIGKILL)
        ended = command.wait()
        if ended.code == 0:
            return done
        assert ended.code == -signal.SIGKILL, ended.err
        done += 1


def _written(out: Path) -> int:
    """Return how many bytes of events and journal there are."""
    files = (out / "events.jsonl", out / "journal.jsonl")
    return sum(file.stat().st_size for file in files if file.exists())
