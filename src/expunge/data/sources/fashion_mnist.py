"""Fashion-MNIST: 70,000 pictures of clothes, 28 x 28 pixels, ten classes, from IDX files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from expunge.core.config import config
from expunge.core.errors import DataError, StorageError
from expunge.core.records import Records
from expunge.data.arrays import array_records, class_facts, draw_parts
from expunge.data.dataset import Dataset, number_ids
from expunge.data.idx import read_idx
from expunge.data.inputs import as_column
from expunge.data.source import source


@config
class FashionMnistConfig:
    """Settings of Fashion-MNIST."""

    folder: str = "/usr/share/datasets/fashion-mnist"
    """Folder with the four IDX files, plain or gzipped; by default where Debian installs them."""
    num_train: Annotated[int, Field(ge=1)] = 50_000
    """Pictures to train on, drawn from the 60,000 of the training file."""
    num_holdout: Annotated[int, Field(ge=0)] = 10_000
    """Pictures that no model is trained on, drawn from the rest of the training file."""
    num_test: Annotated[int, Field(ge=0, le=10_000)] = 10_000
    """Pictures that measure utility, drawn from the test file."""
    pool: Literal[1, 2, 4, 7] = 1
    """Side of the squares of pixels that are averaged to one; 2 makes pictures of 14 x 14."""


@source(
    "fashion_mnist", title="Fashion-MNIST, 28 x 28, 70,000 pictures (IDX files)", kind="classifier"
)
def fashion_mnist(config: FashionMnistConfig, seed: int) -> Dataset:
    """Return the pictures, grey levels scaled to 0..1, one channel.

    Source: H. Xiao, K. Rasul and R. Vollgraf, Fashion-MNIST (2017).
    """
    parts = draw_pictures(config, seed)
    facts = class_facts(parts["train"], num_classes=10)
    return Dataset("classifier", parts["train"], parts["holdout"], parts["test"], facts=facts)


def draw_pictures(config: FashionMnistConfig, seed: int) -> dict[str, Records]:
    """Return the pictures to train on, to hold out and to test on, by role.

    Args:
        config: Where they lie, and how many.
        seed: Decides which.

    Raises:
        StorageError: The files are absent.
        DataError: There are fewer pictures, or files are torn.
    """
    folder = Path(config.folder)
    if not folder.is_dir():
        raise StorageError(
            f"folder = {config.folder!r} does not exist; install the files with "
            "`apt-get install dataset-fashion-mnist`, or name the folder that holds them"
        )
    sizes = {"train": config.num_train, "holdout": config.num_holdout}
    drawn = draw_parts(_read(folder, "train"), sizes, seed)
    drawn |= draw_parts(_read(folder, "t10k"), {"test": config.num_test}, seed)
    return {role: _scaled(part, config.pool, role) for role, part in drawn.items()}


def _read(folder: Path, part: str) -> Records:
    pictures = read_idx(folder / f"{part}-images-idx3-ubyte", num_axes=3)
    labels = read_idx(folder / f"{part}-labels-idx1-ubyte", num_axes=1)
    if len(pictures) != len(labels):
        raise DataError(f"{folder}: {part} has {len(pictures)} pictures but {len(labels)} labels")
    columns = {"x": as_column(pictures), "y": as_column(labels)}
    return Records(number_ids(f"fashion-{part}", len(labels)), columns)


def _scaled(part: Records, pool: int, role: str) -> Records:
    """Return drawn pictures as numbers in 0..1, one channel, smaller by ``pool``."""
    if not len(part):
        return part
    pictures = np.stack(list(part["x"])).astype(np.float32) / 255.0
    side = pictures.shape[1] // pool
    pooled = pictures.reshape(len(part), 1, side, pool, side, pool).mean(axis=(3, 5))
    labels = np.array(list(part["y"]), dtype=np.int64)
    return array_records(pooled, labels, ids=part.ids, where=role)
