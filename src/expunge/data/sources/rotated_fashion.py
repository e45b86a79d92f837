"""Rotated pictures of clothes: the angle by which each was turned is to be told."""

from __future__ import annotations

import itertools
from typing import Annotated

import numpy as np
from pydantic import Field

from expunge.core.config import config
from expunge.core.records import Records
from expunge.core.streams import stream
from expunge.data.dataset import Dataset
from expunge.data.inputs import as_column
from expunge.data.regression import regression_facts, regression_records
from expunge.data.source import source
from expunge.data.sources.fashion_mnist import FashionMnistConfig, draw_pictures


@config
class RotatedFashionConfig(FashionMnistConfig):
    """Settings of the rotated pictures."""

    num_train: Annotated[int, Field(ge=2)] = 10_000
    num_holdout: Annotated[int, Field(ge=0)] = 2000
    num_test: Annotated[int, Field(ge=0, le=10_000)] = 2000
    max_angle: Annotated[float, Field(gt=0, le=180)] = 60.0
    """Largest angle in degrees, either way."""
    unit: Annotated[float, Field(gt=0)] = 10.0
    """Degrees that one unit of the target stands for."""
    num_bands: Annotated[int, Field(ge=1)] = 6
    """Bands of equal width into which the column ``band`` parts the angles."""


@source("rotated_fashion", title="Fashion-MNIST at random angles (IDX files)", kind="regressor")
def rotated_fashion(config: RotatedFashionConfig, seed: int) -> Dataset:
    """Return pictures of Fashion-MNIST, each turned counterclockwise by an angle of its own.

    What comes into view at the corners is black. Column ``angle`` holds the angle in degrees,
    ``band`` the band around it, such as ``-60..-40``, and ``article`` the class of the picture.

    Source: H. Xiao, K. Rasul and R. Vollgraf, Fashion-MNIST (2017).
    """
    drawn = draw_pictures(config, seed)
    made = {role: _turned(part, role, config, seed) for role, part in drawn.items()}
    facts = regression_facts(made["train"], "angle")
    return Dataset("regressor", made["train"], made["holdout"], made["test"], facts=facts)


def _turned(part: Records, role: str, config: RotatedFashionConfig, seed: int) -> Records:
    from scipy.ndimage import rotate

    if not len(part):
        return part
    draws = [stream(seed, "rotation", i).uniform(-1, 1) for i in part.ids]
    angles = config.max_angle * np.array(draws)
    pictures = [
        rotate(picture, angle, axes=(1, 2), reshape=False, order=1)
        for picture, angle in zip(part["x"], angles, strict=True)
    ]
    targets = angles / config.unit
    records = regression_records(pictures, targets, ids=part.ids, where=role, column="angle")
    return records.replace(angle=as_column(angles), band=_bands(angles, config), article=part["y"])


def _bands(angles: np.ndarray, config: RotatedFashionConfig) -> list[str]:
    edges = np.linspace(-config.max_angle, config.max_angle, config.num_bands + 1)
    names = [f"{low:g}..{high:g}" for low, high in itertools.pairwise(edges)]
    return [names[place] for place in np.searchsorted(edges[1:-1], angles, side="right")]
