"""Fashion-MNIST: 70,000 pictures of clothes, 28 x 28 pixels, ten classes, from IDX files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from expunge.core.config import config
from expunge.core.errors import DataError, StorageError
from expunge.core.records import Records
from expunge.data.arrays import array_records, class_facts, draw_parts
from expunge.data.dataset import Dataset, number_ids
from expunge.data.idx import read_idx
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


@source(
    "fashion_mnist", title="Fashion-MNIST, 28 x 28, 70,000 pictures (IDX files)", kind="classifier"
)
def fashion_mnist(config: FashionMnistConfig, seed: int) -> Dataset:
    """Return the pictures, grey levels scaled to 0..1, one channel.

    Source: H. Xiao, K. Rasul and R. Vollgraf, Fashion-MNIST (2017).
    """
    folder = Path(config.folder)
    if not folder.is_dir():
        raise StorageError(
            f"data.fashion_mnist.folder = {config.folder!r} does not exist; install the files with "
            "`apt-get install dataset-fashion-mnist`, or name the folder that holds them"
        )
    sizes = {"train": config.num_train, "holdout": config.num_holdout}
    drawn = draw_parts(_read(folder, "train"), sizes, seed)
    test = draw_parts(_read(folder, "t10k"), {"test": config.num_test}, seed)["test"]
    facts = class_facts(drawn["train"], num_classes=10)
    return Dataset("classifier", drawn["train"], drawn["holdout"], test, facts=facts)


def _read(folder: Path, part: str) -> Records:
    pictures = read_idx(folder / f"{part}-images-idx3-ubyte", num_axes=3)
    labels = read_idx(folder / f"{part}-labels-idx1-ubyte", num_axes=1)
    if len(pictures) != len(labels):
        raise DataError(f"{folder}: {part} has {len(pictures)} pictures but {len(labels)} labels")
    ids = number_ids(f"fashion-{part}", len(labels))
    return array_records(pictures[:, None].astype(np.float32) / 255.0, labels, ids=ids, where=part)
