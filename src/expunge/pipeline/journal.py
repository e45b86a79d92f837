"""The journal: which steps of a run are finished, so that a killed run goes on where it was."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from expunge.core.digest import digest_file, digest_json
from expunge.core.errors import IntegrityError, listing
from expunge.core.files import append_line, read_json_lines

_STARTED = {"step", "status", "inputs"}
_FINISHED = {*_STARTED, "outputs", "seconds"}


class Journal:
    """Finished steps of one run folder.

    Args:
        path: The JSON-lines file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @functools.cached_property
    def _finished(self) -> dict[str, dict[str, Any]]:
        """Return finished steps by name; read at the first step, when the folder is locked."""
        found = {}
        for number, entry in enumerate(read_json_lines(self.path), start=1):
            finished = isinstance(entry, dict) and entry.get("status") == "finished"
            if not isinstance(entry, dict) or not (_FINISHED if finished else _STARTED) <= {*entry}:
                raise IntegrityError(f"{self.path} line {number} is no entry of a journal")
            if finished:
                found[entry["step"]] = entry
        return found

    def step(
        self, name: str, inputs: Mapping[str, Any], work: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Do a step, unless the journal says that it was done with the same inputs.

        Args:
            name: The step.
            inputs: Digests and settings that decide its result; JSON values.
            work: Does the step and returns JSON values; ``files`` maps each file that it wrote,
                by its path below the journal's folder, to its digest.

        Returns:
            What ``work`` returned, now or then.

        Raises:
            IntegrityError: A file of a finished step is missing, or not what was written.
        """
        key = digest_json(inputs)
        entry = self._finished.get(name)
        if entry is not None and entry["inputs"] == key:
            found: dict[str, Any] = entry["outputs"]
            self._require_whole(name, found.get("files", {}))
            return found
        self._write({"step": name, "status": "started", "inputs": key})
        began = time.monotonic()
        outputs = work()
        entry = {
            "step": name,
            "status": "finished",
            "inputs": key,
            "outputs": outputs,
            "seconds": round(time.monotonic() - began, 3),
        }
        self._write(entry)
        self._finished[name] = entry
        return outputs

    def seconds(self) -> dict[str, float]:
        """Return the duration of every finished step (of its last attempt, when it was resumed)."""
        return {name: entry["seconds"] for name, entry in self._finished.items()}

    def _require_whole(self, step: str, files: Mapping[str, str]) -> None:
        folder = self.path.parent
        wrong = [n for n, d in files.items() if not _holds(folder / n, d)]
        if wrong:
            raise IntegrityError(
                f"{folder}: {listing(wrong)}, written by the finished step {step!r}, is missing or "
                "is not what was written; restore it, or start again in another folder"
            )

    def _write(self, entry: dict[str, Any]) -> None:
        append_line(self.path, json.dumps(entry, sort_keys=True))


def _holds(file: Path, digest: str) -> bool:
    return file.is_file() and digest_file(file) == digest
