"""The ledger of a reusable holdout: a file of questions and answers, chained by digests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from expunge.core.digest import canonical_json, digest_json
from expunge.core.errors import IntegrityError, StorageError
from expunge.core.files import append_line, read_json_lines

FORMAT = 2
_START = "0" * 64
_LINKS = {"previous", "digest"}
_OPENING = {"kind", "format", "holdout", "n", "seed", "mode", "noise", "budget"}
_ANSWER = {"kind", "asker", "question", "low", "high", "threshold", "source", "value", "remaining"}


class Ledger:
    """What one holdout was asked, as a chain: each entry holds the digest of the one before.

    Numbers that are no counts are written as decimal text, so that a changed digit is a changed
    entry.

    Args:
        path: JSON-lines file; ``None`` keeps the ledger in memory, for simulations.
        anchor: Digest of an entry that was noted elsewhere (``head``); a ledger without it was cut
            back or replaced, which the chain alone cannot tell.

    Attributes:
        head: Digest of the last entry.
        opening: The first entry; ``None`` in a new ledger.
        asked: Questions that were answered.
        spent: Disagreements among them.
        answers: The last answer to each question that has words.

    Raises:
        IntegrityError: The file is not the chain that was written, or lacks the anchor.
        StorageError: It cannot be read.
    """

    def __init__(self, path: Path | None, anchor: str = "") -> None:
        self.path = path
        self._anchor = anchor
        self._seen: tuple[int, int] | None = None
        self._reset()
        self.refresh()

    def _reset(self) -> None:
        self.head = _START
        self.opening: Mapping[str, Any] | None = None
        self.asked = 0
        self.spent = 0
        self.answers: dict[str, Mapping[str, Any]] = {}
        self._digests: set[str] = set()

    @property
    def remaining(self) -> int | None:
        """Disagreements that are left; ``None`` where there is no budget or nothing was opened."""
        budget = None if self.opening is None else self.opening["budget"]
        return None if budget is None else budget - self.spent

    @property
    def exhausted(self) -> bool:
        """Whether the budget is spent, for every asker and for good."""
        return self.remaining == 0

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process out, and see what they wrote before.

        Raises:
            StorageError: The ledger's folder is not writable.
        """
        if self.path is None:
            yield
            return
        lock = FileLock(self.path.with_name(self.path.name + ".lock"))
        try:
            lock.acquire()
        except OSError as error:
            raise StorageError(
                f"cannot lock the ledger {self.path}: {error.strerror or error}; "
                "keep it in a folder you can write to"
            ) from error
        try:
            self.refresh()
            yield
        finally:
            lock.release()

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write an entry before anything follows from it; call it while ``locked``.

        Raises:
            StorageError: It cannot be written.
        """
        whole = {**entry, "previous": self.head}
        whole["digest"] = digest_json(whole)
        if self.path is not None:
            append_line(self.path, canonical_json(whole).decode())
            self._seen = self._stamp()
        self._take(whole, self.asked + 2)
        self._anchor = self.head

    def refresh(self) -> None:
        """Read and check the file, unless it is as it was left; it may only have grown.

        Raises:
            IntegrityError: It did something else.
            StorageError: It cannot be read.
        """
        if self.path is None:
            return
        stamp = self._stamp()
        if stamp is None or stamp != self._seen:
            self._seen = None
            self._reset()
            for number, entry in enumerate(read_json_lines(self.path), start=1):
                self._take(entry, number)
            self._seen = stamp
        if self._anchor and self._anchor not in self._digests:
            raise IntegrityError(
                f"{self.path} lacks the entry {self._anchor[:12]}: it was cut back or replaced; "
                "restore it, or take a fresh holdout"
            )
        if self.opening is not None:
            self._anchor = self.head

    def _stamp(self) -> tuple[int, int] | None:
        try:
            found = self.path.stat() if self.path is not None else None
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"cannot read {self.path}: {error.strerror or error}") from error
        return None if found is None else (found.st_size, found.st_mtime_ns)

    def _take(self, entry: Any, number: int) -> None:
        """Add a checked entry to the state."""
        if not self._follows(entry):
            raise IntegrityError(
                f"{self.path} line {number} is not what was written to this ledger; restore it, "
                "or take a fresh holdout"
            )
        if self.opening is None:
            self.opening = entry
        else:
            self.asked += 1
            self.spent += entry["source"] == "holdout"
            if isinstance(entry["question"], str) and entry["question"]:
                self.answers[entry["question"]] = entry
        self.head = entry["digest"]
        self._digests.add(self.head)

    def _follows(self, entry: Any) -> bool:
        """Tell whether an entry continues the chain and counts the budget rightly."""
        fields = _OPENING if self.opening is None else _ANSWER
        if not isinstance(entry, dict) or entry.keys() != fields | _LINKS:
            return False
        try:
            digest = digest_json({k: v for k, v in entry.items() if k != "digest"})
        except (ValueError, RecursionError):  # NaN, lone surrogates
            return False
        if entry["digest"] != digest or entry["previous"] != self.head:
            return False
        if self.opening is None:
            return bool(entry["kind"] == "open" and entry["format"] == FORMAT)
        if entry["kind"] != "answer" or entry["source"] not in ("train", "holdout"):
            return False
        before = self.remaining
        after = None if before is None else before - (entry["source"] == "holdout")
        return before != 0 and bool(entry["remaining"] == after)
