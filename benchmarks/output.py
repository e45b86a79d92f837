"""What every script here prints and writes: a table, and JSON where a path is given."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from expunge.core.files import write_json


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--json", type=Path, help="write the numbers here too")
    made.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    return made


def machine() -> dict[str, Any]:
    """Describe the machine without naming it."""
    return {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def report(title: str, rows: Sequence[Mapping[str, Any]], numbers: Any, path: Path | None) -> None:
    """Print rows as a table, and write the numbers as JSON where a path is given.

    Args:
        title: What was measured.
        rows: Cells by column; all rows share their columns.
        numbers: Everything that was measured.
        path: File to write; none when absent.
    """
    here = machine()
    print(title)
    print(", ".join(f"{name} {value}" for name, value in here.items()))
    cells = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    for row in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    if path is not None:
        write_json(path, {"machine": here, "numbers": numbers})
