"""The page and the table of a comparison of methods, from its numbers."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.core.files import write_text
from expunge.report.rendering import render
from expunge.report.wording import MISSING

# Measured number -> (heading, digits).
MEASURED: Mapping[str, tuple[str, str]] = {
    "cpu_seconds": ("CPU s", ".1f"),
    "mebibytes": ("peak MiB", ".0f"),
}
PAGE = "bench.html"
TABLE = "table.md"


@dataclasses.dataclass(frozen=True)
class BenchRow:
    """One method on one fixture.

    Attributes:
        fixture: The fixture.
        label: Name of the row.
        method: Registered name of the method.
        evidence: Its class of evidence.
        numbers: Audited numbers by name, one per seed.
        measured: Seconds and memory by name, one per seed.
        steps: Optimiser steps.
        refused: Why the method could not run; empty when it did.
    """

    fixture: str
    label: str
    method: str
    evidence: str
    numbers: Mapping[str, Sequence[float | None]]
    measured: Mapping[str, Sequence[float]]
    steps: int
    refused: str = ""


def write_bench(folder: Path, results: Mapping[str, Any]) -> Path:
    """Write the page and the Markdown table of a comparison.

    Args:
        folder: Where to.
        results: ``title``, ``fixtures``, ``columns``, ``standards`` and ``rows``, as in
            ``results.json``; ``notes`` say how to read them.

    Returns:
        The page.
    """
    parts = [
        (title, head(results, name), body(results, name))
        for name, title in results["fixtures"].items()
    ]
    text = "".join(
        f"## {title[0].upper()}{title[1:]}\n\n{markdown(h, b)}\n" for title, h, b in parts
    )
    write_text(folder / TABLE, text)
    page = folder / PAGE
    write_text(
        page,
        render(
            "bench.html",
            title=results["title"],
            notes=results.get("notes", ()),
            parts=parts,
            settings=results["settings"],
        ),
    )
    return page


def head(results: Mapping[str, Any], fixture: str) -> list[str]:
    """Return the headings of a fixture's table."""
    told = [heading for _, heading, _ in results["columns"][fixture]]
    return ["model", *told, *(heading for heading, _ in MEASURED.values())]


def body(results: Mapping[str, Any], fixture: str) -> list[list[str]]:
    """Return the rows of one fixture: the originals, the retrained models, every method."""
    columns, standards = results["columns"][fixture], results["standards"][fixture]
    rows = []
    for label, role in (("original", "before"), ("retrained", "reference")):
        found = [numbers for name, numbers in standards.items() if name.startswith(role)]
        own = [_cell([one.get(n) for one in found], digits) for n, _, digits in columns]
        rows.append([f"{label} ({len(found)})", *own, *[""] * len(MEASURED)])
    return rows + [cells(row, columns) for row in results["rows"] if row["fixture"] == fixture]


def cells(row: Mapping[str, Any], columns: Sequence[tuple[str, str, str]]) -> list[str]:
    """Return the cells of one method's row.

    Args:
        row: As in ``results.json``.
        columns: Name, heading and format of each number, in their order.
    """
    label = row["label"] + (" *" if row["evidence"] == "output-suppressed" else "")
    if row["refused"]:
        return [label, f"refused: {row['refused']}", *[""] * (len(columns) + len(MEASURED) - 1)]
    numbers = [_cell(row["numbers"][name], digits) for name, _, digits in columns]
    measured = [_mean(row["measured"][name], digits) for name, (_, digits) in MEASURED.items()]
    return [label, *numbers, *measured]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _cell(values: Sequence[float | None], digits: str) -> str:
    """Write the mean of several runs, and their range where they differ."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return MISSING
    low, high = format(min(known), digits), format(max(known), digits)
    mean = format(statistics.fmean(known), digits)
    return mean if low == high else f"{mean} ({low} to {high})"


def _mean(values: Sequence[float], digits: str) -> str:
    return format(statistics.fmean(values), digits) if values else MISSING
