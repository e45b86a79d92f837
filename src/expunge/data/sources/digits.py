"""Handwritten digits of 8 x 8 pixels that scikit-learn carries: 1,797 pictures, ten classes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from expunge.core.config import config
from expunge.data.arrays import array_records, split_dataset
from expunge.data.dataset import Dataset, number_ids
from expunge.data.source import source


@config
class DigitsConfig:
    """Settings of the digits."""

    num_holdout: Annotated[int, Field(ge=0)] = 360
    """Pictures that no model is trained on, for audits."""
    num_test: Annotated[int, Field(ge=0)] = 360
    """Pictures that measure utility."""


@source(
    "digits", title="handwritten digits, 8 x 8, 1,797 pictures (scikit-learn)", kind="classifier"
)
def digits(config: DigitsConfig, seed: int) -> Dataset:
    """Return the digits, grey levels scaled to 0..1, one channel.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI (1998).
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    pictures = found.images[:, None] / 16.0
    ids = number_ids("digits", len(pictures))
    records = array_records(pictures, found.target, ids=ids, where="digits")
    return split_dataset(records, config.num_holdout, config.num_test, seed)
