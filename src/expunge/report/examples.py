"""``examples.html``: answers before and after, the only file of a run with text of its records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from expunge.core.errors import DataError, StorageError
from expunge.core.files import remove_tree, write_text
from expunge.report.facts import EXAMPLES, NEIGHBOURS, REPORT
from expunge.report.rendering import render, require_libraries
from expunge.report.report import write_report

COLUMNS = ("before", "after", "reference")
_NEEDED = ("id", "record_set", "question", "truth", "before", "after")


def write_examples(folder: Path, rows: Sequence[Mapping[str, str]]) -> Path:
    """Write the page of answers side by side.

    Args:
        folder: The run folder.
        rows: One mapping per record with ``id``, ``record_set``, ``question``, ``truth``, the
            answers ``before`` and ``after``, and ``reference`` where a model was retrained.

    Returns:
        The page.

    Raises:
        ConfigError: A library that pages are made with is not installed.
        DataError: A row lacks a field.
        StorageError: The file cannot be written.
    """
    require_libraries()
    for place, row in enumerate(rows):
        missing = [name for name in _NEEDED if name not in row]
        if missing:
            raise DataError(f"examples: row {place} lacks {', '.join(missing)}; give every field")
    shown = [name for name in COLUMNS if any(name in row for row in rows)]
    sets = dict.fromkeys(row["record_set"] for row in rows)
    groups = {name: [row for row in rows if row["record_set"] == name] for name in sets}
    path = folder / EXAMPLES
    write_text(path, render("examples.html", groups=groups, columns=shown, report=REPORT))
    return path


def purge(folder: Path) -> list[Path]:
    """Remove the pages that show records, and write the report again without the link to them.

    Args:
        folder: The run folder, or the folder of a page of neighbours.

    Returns:
        The files removed, what a killed run left of a page included.

    Raises:
        StorageError: There is no such folder, or the report cannot be written.
        IntegrityError: A file that the report needs is truncated; the page is gone nevertheless.
    """
    if not folder.is_dir():
        raise StorageError(f"{folder} is no folder; name a run folder")
    pages = sorted(page for name in (EXAMPLES, NEIGHBOURS) for page in folder.glob(f"{name}*"))
    for page in pages:
        remove_tree(page)
    if pages and (folder / REPORT).exists():
        write_report(folder)
    return pages
