"""The journal: which steps of a run are finished, so that a killed run goes on where it was."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from expunge.core.digest import digest_json
from expunge.core.files import append_line, read_json_lines


class Journal:
    """Finished steps of one run folder.

    Args:
        path: The JSON-lines file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._finished = {
            entry["step"]: entry for entry in read_json_lines(path) if entry["status"] == "finished"
        }

    def step(
        self, name: str, inputs: Mapping[str, Any], work: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Do a step, unless the journal says that it was done with the same inputs.

        Args:
            name: The step.
            inputs: Digests and settings that decide its result; JSON values.
            work: Does the step and returns JSON values, such as digests of what it wrote.

        Returns:
            What ``work`` returned, now or then.
        """
        key = digest_json(inputs)
        entry = self._finished.get(name)
        if entry is not None and entry["inputs"] == key:
            outputs: dict[str, Any] = entry["outputs"]
            return outputs
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

    def _write(self, entry: dict[str, Any]) -> None:
        append_line(self.path, json.dumps(entry, sort_keys=True))
