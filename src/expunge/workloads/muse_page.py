"""The page, table and plot of one method under growing and successive requests."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expunge.core.files import write_text
from expunge.report.bench import markdown
from expunge.report.rendering import render
from expunge.report.svg import standalone_lines
from expunge.report.wording import MISSING
from expunge.workloads.muse_folds import falls

METRICS: Mapping[str, str] = {
    "verbatim": "verbatim (C1)",
    "knowledge": "knowledge (C2)",
    "privleak": "PrivLeak (C3)",
    "utility": "utility (C4)",
}
ATTACK_HEAD = ["attack", "after", "excess over retrained models", "carried out", "remark"]
PAGE, TABLE, PLOT = "muse.html", "table.md", "utility.svg"
DRIVES: Mapping[str, str] = {
    "scalability": "one request",
    "sustainability": "successive requests",
}


def write_muse(folder: Path, results: Mapping[str, Any]) -> Path:
    """Write page, Markdown table and plot.

    Args:
        folder: Where to.
        results: As in ``results.json``.

    Returns:
        The page.
    """
    rows, sentences = body(results), remarks(results)
    text = markdown(head(), rows) + "\n" + "".join(f"- {sentence}\n" for sentence in sentences)
    attacked = attack_rows(results)
    if attacked:
        text += "\n" + markdown(ATTACK_HEAD, attacked)
    write_text(folder / TABLE, text)
    plot = utility_plot(results)
    write_text(folder / PLOT, plot)
    page = folder / PAGE
    shown = render(
        "muse.html",
        method=results["settings"]["method"],
        fixture=results["fixture"],
        head=head(),
        rows=rows,
        remarks=sentences,
        attack_head=ATTACK_HEAD,
        attacks=attacked,
        plot="data:image/svg+xml;base64," + base64.b64encode(plot.encode()).decode(),
    )
    write_text(page, shown)
    return page


def head() -> list[str]:
    """Return the headings of the table."""
    return ["model", "records forgotten", *METRICS.values(), "steps of the request"]


def body(results: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows: for each forgotten part the original, the retrained and both drives."""
    table = []
    for step in range(1, results["settings"]["folds"] + 1):
        drives = {row["drive"]: row for row in results["rows"] if row["step"] == step}
        known = next((row for row in drives.values() if row["numbers"]), None)
        count = str(drives["scalability"]["records"])
        if known is not None:
            for name, role in (("original", "before"), ("retrained", "retrained")):
                table.append([name, count, *_cells(known["numbers"][role]), ""])
        for drive, row in drives.items():
            if step == 1 and drive == "sustainability":
                continue  # the first of them is the smallest request
            label = f"{results['settings']['method']}, {_drive_words(drive, step)}"
            if row["refused"]:
                blank = [""] * len(METRICS)
                table.append([label, count, f"refused: {row['refused']}", *blank])
            else:
                cells = _cells(row["numbers"]["after"])
                table.append([label, count, *cells, str(row["steps"])])
    return table


def attack_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Return the excess of each repeated attack after each request, and how much was carried out.

    Source: Open Problems in Machine Unlearning for AI Safety (Barez et al., 2025), persistence.
    """
    return [
        [
            found["audit"],
            f"{_drive_words(row['drive'], row['step'])} ({row['records']} records)",
            _share(found),
            f"{found['carried_out']} of {found['planned']}",
            found["note"],
        ]
        for row in results["rows"]
        if not (row["step"] == 1 and row["drive"] == "sustainability")
        for found in row["numbers"].get("attacks", ())
    ]


def _share(found: Mapping[str, Any]) -> str:
    if found["value"] is None or found["low"] is None:
        return MISSING
    return f"{found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


def remarks(results: Mapping[str, Any]) -> list[str]:
    """Return what the numbers say about utility, and what must be known beside them."""
    sentences = []
    for drive, words in DRIVES.items():
        values = _utilities(results, drive, "after")
        told = ", ".join(_number(value) for value in values)
        fall = falls(values)
        verdict = {
            True: "it falls with every further part",
            False: "it does not fall with every further part",
            None: "not every number is known",
        }[fall]
        sentences.append(f"Utility of {words}, smallest first: {told}; {verdict}.")
    smallest, largest = results["rows"][0], results["rows"][results["settings"]["folds"] - 1]
    for words, row in (("smallest", smallest), ("largest", largest)):
        note = row["numbers"].get("after", {}).get("privleak", {}).get("note")
        if note:
            sentences.append(f"PrivLeak of the {words} request: {note}.")
    if results["evidence"] == "output-suppressed":
        sentences.append("The method leaves the weights as they are and changes the output only.")
    return sentences


def utility_plot(results: Mapping[str, Any]) -> str:
    """Draw utility by the number of forgotten records, as an SVG file."""
    lines = {}
    for name, drive, role in (
        ("one request", "scalability", "after"),
        ("successive requests", "sustainability", "after"),
        ("original", "scalability", "before"),
        ("retrained", "scalability", "retrained"),
    ):
        counts = [row["records"] for row in results["rows"] if row["drive"] == drive]
        points = [
            (count, value)
            for count, value in zip(counts, _utilities(results, drive, role), strict=True)
            if value is not None
        ]
        if points:
            xs, ys = zip(*points, strict=True)
            lines[name] = (xs, ys)
    title = f"Utility of {results['settings']['method']}"
    return standalone_lines({"ROUGE-L F of kept answers (%)": lines}, title, "records forgotten")


def _utilities(results: Mapping[str, Any], drive: str, role: str) -> list[float | None]:
    rows = [row for row in results["rows"] if row["drive"] == drive]
    return [row["numbers"].get(role, {}).get("utility", {}).get("value") for row in rows]


def _drive_words(drive: str, step: int) -> str:
    if step == 1:
        return "first request"
    return "one request" if drive == "scalability" else f"{step} successive requests"


def _cells(numbers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [_cell(numbers.get(metric, {})) for metric in METRICS]


def _cell(found: Mapping[str, Any]) -> str:
    """Write a number with its interval (retrained models: the smallest and the largest)."""
    if found.get("value") is None:
        return MISSING
    text = _number(found["value"])
    low, high = _number(found.get("low")), _number(found.get("high"))
    return text if low == high or MISSING in (low, high) else f"{text} ({low} to {high})"


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{round(value, 1) + 0.0:.1f}"
