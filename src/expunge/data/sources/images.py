"""Your own pictures: one folder for each class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from expunge.core.config import config
from expunge.core.errors import DataError, StorageError, listing
from expunge.core.records import Records
from expunge.data.arrays import class_facts
from expunge.data.dataset import NOTHING, Dataset, number_ids
from expunge.data.source import source

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}


@config
class ImagesConfig:
    """Settings of your own pictures."""

    train: str
    """Folder with one folder of pictures for each class."""
    holdout: str | None = None
    """Folder of the same form with pictures that the model never saw, for audits."""
    test: str | None = None
    """Folder of the same form with pictures that measure utility."""
    size: Annotated[int, Field(ge=1)] = 32
    """Height and width in pixels to which every picture is scaled."""
    color: Literal["grey", "rgb"] = "rgb"
    """One channel of grey, or three of red, green and blue."""


@source("images", title="your own pictures, a folder for each class", kind="classifier")
def images(config: ImagesConfig, seed: int) -> Dataset:
    """Return pictures of shape (channels, size, size), scaled to 0..1; decoded when they are used.

    Classes are the folder names in alphabetical order. Column ``file`` holds the path below the
    folder.
    """
    del seed
    root = Path(config.train)
    if not root.is_dir():
        raise StorageError(f"data.images.train = {config.train!r} is no folder")
    classes = sorted(folder.name for folder in root.iterdir() if folder.is_dir())
    train = _read("train", root, classes, config)
    parts = {
        role: _read(role, Path(path), classes, config) if path else NOTHING
        for role, path in (("holdout", config.holdout), ("test", config.test))
    }
    return Dataset(
        "classifier",
        train,
        holdout=parts["holdout"],
        test=parts["test"],
        facts={**class_facts(train, len(classes)), "classes": classes},
    )


class Pictures(Sequence[Any]):
    """Pictures decoded on access, as float arrays (channels, size, size) from 0 to 1.

    Args:
        files: Where they are.
        size: Height and width.
        color: ``"grey"`` or ``"rgb"``.
    """

    def __init__(self, files: Sequence[Path], size: int, color: str) -> None:
        self._files, self._size, self._mode = files, size, "L" if color == "grey" else "RGB"

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, row: Any) -> Any:
        from PIL import Image

        try:
            with Image.open(self._files[row]) as picture:
                scaled = picture.convert(self._mode).resize((self._size, self._size))
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{self._files[row]} is no whole picture: {error}") from error
        grid = np.asarray(scaled, dtype=np.float32) / 255.0
        return grid[None] if grid.ndim == 2 else grid.transpose(2, 0, 1)


def _read(role: str, root: Path, classes: list[str], config: ImagesConfig) -> Records:
    if not root.is_dir():
        raise StorageError(f"data.images.{role} = {str(root)!r} is no folder")
    files = sorted(f for f in root.glob("*/*") if f.suffix.lower() in _SUFFIXES)
    if not files:
        raise DataError(f"{root} holds no pictures; put them into one folder for each class")
    unknown = sorted({file.parent.name for file in files} - set(classes))
    if unknown:
        raise DataError(f"{root}: classes {listing(unknown)} have no folder in {config.train}")
    return Records(
        number_ids(role, len(files)),
        {
            "x": Pictures(files, config.size, config.color),
            "y": [classes.index(file.parent.name) for file in files],
            "file": [file.relative_to(root).as_posix() for file in files],
        },
    )
