"""``neighbours.html``: records like an example, shown before anybody asks to forget them."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from expunge.core.files import write_json, write_text
from expunge.report.facts import NEIGHBOURS
from expunge.report.rendering import render, require_libraries
from expunge.report.wording import count, number, one_line

IDS = "neighbours.json"
MAX_CHARACTERS = 240
MAX_VALUES = 12


def write_neighbours(
    folder: Path, rows: Sequence[Mapping[str, Any]], *, examples: int, measured: str
) -> Path:
    """Write the page, and beside it the file of ids that a request may name.

    Args:
        folder: Where to write.
        rows: One mapping for each record, examples first: ``id`` and ``distance``; what it is:
            ``picture`` (an array: (height, width), or 1 or 3 channels before), ``text`` (a list of
            texts) or neither; and ``values`` (a mapping of further columns).
        examples: How many of the rows are the examples themselves.
        measured: What the distance is measured on, in words.

    Returns:
        The page.

    Raises:
        ConfigError: A library that pages are made with is not installed.
        StorageError: A file cannot be written.
    """
    require_libraries()
    pictures = [row["picture"] for row in rows if row.get("picture") is not None]
    low = min((float(np.min(p)) for p in pictures), default=0.0)
    high = max((float(np.max(p)) for p in pictures), default=1.0)
    bounds = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)
    shown = [_shown(row, bounds, place < examples) for place, row in enumerate(rows)]
    found = count(len(rows) - examples, "training record")
    ids = folder / IDS
    write_json(ids, [{"id": row["id"], "distance": row["distance"]} for row in rows])
    page = folder / NEIGHBOURS
    write_text(
        page,
        render("neighbours.html", rows=shown, found=found, measured=measured, file=str(ids)),
    )
    return page


def picture_data(picture: np.ndarray, low: float, high: float) -> str:
    """Return a picture as a PNG inside a ``data:`` address.

    Args:
        picture: (height, width), or 1 or 3 channels before.
        low: Value that is shown as black.
        high: Value that is shown as white.
    """
    from PIL import Image

    scaled = (np.asarray(picture, dtype=np.float64) - low) / ((high - low) or 1.0)
    grid = np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)
    if grid.ndim == 3:
        grid = grid[0] if len(grid) == 1 else grid.transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(grid).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _shown(row: Mapping[str, Any], bounds: tuple[float, float], is_example: bool) -> dict[str, Any]:
    picture = row.get("picture")
    values = list(row.get("values", {}).items())[:MAX_VALUES]
    return {
        "id": row["id"],
        "distance": number(row["distance"]),
        "is_example": is_example,
        "picture": None if picture is None else picture_data(picture, *bounds),
        "texts": [_shortened(text) for text in row.get("text", ())],
        "values": [(name, _shortened(value)) for name, value in values],
    }


def _shortened(value: Any) -> str:
    text = number(float(value)) if isinstance(value, float | np.floating) else one_line(value)
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "…"
