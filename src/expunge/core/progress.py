"""Progress with ETA: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
import time

_LINE_EVERY_SECONDS = 10.0


class Progress:
    """Counts units of one piece of work and shows how long the rest will take.

    Args:
        label: What is being done.
        total: How many units there are.
        done: How many were done before this process began.
        quiet: Show nothing.
    """

    def __init__(self, label: str, total: int, *, done: int = 0, quiet: bool = False) -> None:
        self.label, self.total, self.done = label, total, done
        self._note = ""
        self._first = done
        self._began = self._last_line = time.monotonic()
        self._quiet = quiet
        self._bar = None
        if not quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.markup import escape
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )
            from rich.progress import Progress as RichProgress

            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("eta"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(escape(label), total=total, completed=done, note="")
            self._bar.start()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Report that ``count`` more units are done.

        Args:
            count: Units.
            note: A few words beside the bar, such as the loss.
        """
        self.done += count
        self._note = note or self._note
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, note=self._note)
            return
        now = time.monotonic()
        if not self._quiet and now - self._last_line >= _LINE_EVERY_SECONDS:
            self._last_line = now
            self._say(now)

    def close(self) -> None:
        """Finish the display."""
        if self._bar is not None:
            self._bar.stop()
        elif not self._quiet and self.done > self._first:
            self._say(time.monotonic())

    def _say(self, now: float) -> None:
        rate = (self.done - self._first) / max(now - self._began, 1e-9)
        eta = (self.total - self.done) / rate if rate else float("inf")
        note = f"  {self._note}" if self._note else ""
        print(  # noqa: T201  (this is the display)
            f"{self.label}: {self.done}/{self.total}  {now - self._began:.0f} s, "
            f"eta {eta:.0f} s{note}",
            file=sys.stderr,
            flush=True,
        )
