"""Examples from a file: records like those of a data set that need not be in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from expunge.core.errors import DataError, StorageError
from expunge.core.records import Records
from expunge.data.dataset import Dataset, number_ids, require_columns
from expunge.data.inputs import as_column, input_array
from expunge.data.tables import read_table

_PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}


def read_examples(path: Path, dataset: Dataset) -> Records:
    """Read examples of the same form as a data set's records; they have no targets of a class.

    Args:
        path: For a language model a table (``.jsonl``, ``.csv``, ``.parquet``) with the columns of
            the training texts. Else a picture, scaled to the size of the training pictures, or a
            ``.npy`` array of one input or of several.
        dataset: What the examples are compared with.

    Raises:
        StorageError: The file is absent or unreadable.
        DataError: It holds nothing that can be compared.
    """
    if dataset.kind == "causal_lm":
        return _texts(path, dataset)
    shape = tuple(dataset.facts["input_shape"])
    values = _picture(path, shape) if path.suffix.lower() in _PICTURES else _array(path, shape)
    x = input_array(values, str(path))
    return Records(number_ids("example", len(x)), {"x": as_column(x)})


def _texts(path: Path, dataset: Dataset) -> Records:
    table = read_table(path)
    names = [n for n in ("question", "answer", "text") if n in dataset.train]
    found = Records(number_ids("example", len(next(iter(table.values())))), table)
    require_columns(found, names, str(path))
    return Records(found.ids, {name: found[name] for name in names})


def _picture(path: Path, shape: tuple[int, ...]) -> Sequence[Any]:
    from PIL import Image

    if len(shape) != 3 or shape[0] not in (1, 3):
        raise DataError(
            f"{path} is a picture, but inputs of the data have shape {shape}; give a .npy array"
        )
    try:
        with Image.open(path) as picture:
            mode = "L" if shape[0] == 1 else "RGB"
            grid = np.asarray(picture.convert(mode).resize((shape[2], shape[1])), np.float32) / 255
    except FileNotFoundError as error:
        raise StorageError(f"cannot read {path}: no such file") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is no whole picture: {error}") from error
    return [grid[None] if grid.ndim == 2 else grid.transpose(2, 0, 1)]


def _array(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    try:
        values = np.load(path, allow_pickle=False)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise DataError(
            f"{path} is no .npy array of numbers ({error}); write one with numpy.save"
        ) from error
    if not isinstance(values, np.ndarray) or shape not in (values.shape, values.shape[1:]):
        raise DataError(
            f"{path}: the array has shape {getattr(values, 'shape', None)}; inputs of the data "
            f"have shape {shape}: give one, or several along a first axis"
        )
    return values[None] if values.shape == shape else values
