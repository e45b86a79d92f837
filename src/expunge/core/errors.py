"""The exception tree, and the helpers that make one clear message out of many problems."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ExpungeError(Exception):
    """Root of every error that Expunge raises on purpose; exit code 2 of the command line."""


class ConfigError(ExpungeError, ValueError):
    """A setting is unknown, of the wrong type, out of range, or at odds with another one."""


class DataError(ExpungeError, ValueError):
    """Records, sets or files that the user gave cannot be used as they are."""


class UnsupportedModelError(ExpungeError, TypeError):
    """The model lacks something that the task or the method needs."""


class IntegrityError(ExpungeError):
    """Stored bytes are not what was written, or come in a format that is never loaded."""


class StorageError(ExpungeError, OSError):
    """A file or folder cannot be read or written."""


class NumericalError(ExpungeError, ArithmeticError):
    """A loss, gradient or weight became NaN or infinite."""


class Interrupted(ExpungeError):
    """The run was cancelled or its budget is spent; it can be resumed."""


class Problems:
    """Collects everything that is wrong with one input, so that the user hears of it at once.

    Args:
        about: What is being checked; the first words of the message.
        error: The class to raise.
    """

    def __init__(self, about: str, error: type[ExpungeError] = ConfigError) -> None:
        self.about = about
        self.error = error
        self.found: list[str] = []

    def add(self, problem: str) -> None:
        """Note one problem; it should name the field, the value and the remedy."""
        self.found.append(problem)

    def raise_if_any(self) -> None:
        """Raise one error that lists every noted problem, or return when there is none."""
        if len(self.found) == 1:
            raise self.error(f"{self.about}: {self.found[0]}")
        if self.found:
            listed = "\n".join(f"  - {problem}" for problem in self.found)
            raise self.error(f"{self.about}: {len(self.found)} problems\n{listed}")


def near_matches(word: str, known: Iterable[str]) -> str:
    """Return a hint such as "did you mean 'npo'?", else the list of what exists.

    Args:
        word: What the user wrote.
        known: The words that would have been accepted.
    """
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(repr(name) for name in close) + "?"
    return "known: " + ", ".join(names) if names else "nothing is registered here"


def listing(items: Iterable[object], limit: int = 5) -> str:
    """Join the first few items for a message and count the rest: ``'a, b (+3 more)'``."""
    everything = [str(item) for item in items]
    shown = ", ".join(everything[:limit])
    rest = len(everything) - limit
    return f"{shown} (+{rest} more)" if rest > 0 else shown
