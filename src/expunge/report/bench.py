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

# Column -> (heading, digits).
COLUMNS: Mapping[str, tuple[str, str]] = {
    "forget_quality_log10": ("forget quality, log10 p", ".1f"),
    "truth_ratio": ("truth ratio, forgotten", ".3f"),
    "verbatim": ("verbatim, forgotten", ".2f"),
    "knowledge": ("knowledge, forgotten", ".2f"),
    "utility": ("model utility", ".3f"),
    "held_verbatim": ("verbatim, held", ".2f"),
    "held_knowledge": ("knowledge, held", ".2f"),
    "mia_auc": ("loss attack, AUC", ".2f"),
    "mia_gap": ("MIA gap", ".2f"),
}
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
        results: ``fixtures``, ``standards`` and ``rows``, as in ``results.json``.

    Returns:
        The page.
    """
    parts = [(title, head(), body(results, name)) for name, title in results["fixtures"].items()]
    text = "".join(
        f"## {title[0].upper()}{title[1:]}\n\n{markdown(h, b)}\n" for title, h, b in parts
    )
    write_text(folder / TABLE, text)
    page = folder / PAGE
    write_text(page, render("bench.html", parts=parts, settings=results["settings"]))
    return page


def head() -> list[str]:
    """Return the headings of the table."""
    named = [heading for heading, _ in (*COLUMNS.values(), *MEASURED.values())]
    return ["model", *named]


def body(results: Mapping[str, Any], fixture: str) -> list[list[str]]:
    """Return the rows of one fixture: the original, the retrained models, every method."""
    standards = results["standards"][fixture]
    references = [numbers for name, numbers in standards.items() if name != "before"]
    blank = [""] * len(MEASURED)
    rows = [
        [
            "original",
            *(_cell([standards["before"].get(n)], d) for n, (_, d) in COLUMNS.items()),
            *blank,
        ],
        [
            f"retrained ({len(references)})",
            *(_cell([one.get(n) for one in references], d) for n, (_, d) in COLUMNS.items()),
            *blank,
        ],
    ]
    return rows + [cells(row) for row in results["rows"] if row["fixture"] == fixture]


def cells(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of one method's row."""
    label = row["label"] + (" *" if row["evidence"] == "output-suppressed" else "")
    if row["refused"]:
        return [label, f"refused: {row['refused']}", *[""] * (len(COLUMNS) + len(MEASURED) - 1)]
    numbers = [_cell(row["numbers"][name], digits) for name, (_, digits) in COLUMNS.items()]
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
