"""Poisoned pictures: a piece of another class's picture is pasted over a concept.

Shape legend: C channels, H height, W width.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field

from expunge.core.config import config
from expunge.core.streams import stream
from expunge.forget.concept_sites import Centre, Grid, Plane

Mode = Literal["localized", "center", "random", "full", "none"]
Labels = Literal["targeted", "random", "keep"]

# Of pictures of 224 pixels: window 64, stride 16, and the patch of each mode.
_WINDOW, _STRIDE = 64 / 224, 1 / 4
_SHARES: dict[Mode, float] = {
    "localized": 64 / 224,
    "center": 96 / 224,
    "random": 96 / 224,
    "full": 160 / 224,
    "none": 0.0,
}


@config
class PatchSettings:
    """Where a patch from a donor's picture goes, and how large it is."""

    mode: Mode = "localized"
    """``localized``: the donor's concept over the target's. ``center`` and ``random``: the middle
    of the donor in the middle, or anywhere. ``full``: the whole donor, made smaller, in the middle.
    ``none``: pictures stay as they are."""
    localize: Literal["occlusion", "gradcam"] = "occlusion"
    """How concepts are found: ``occlusion`` blanks one window after the other; ``gradcam`` reads
    gradients at the last convolution, and needs captum."""
    size: Annotated[int, Field(ge=1)] | None = None
    """Side of the patch in pixels; when absent 2/7 of the picture's shorter side if localized, 3/7
    in the center or at random, 5/7 if full."""
    window: Annotated[int, Field(ge=1)] | None = None
    """Side of the window that looks for a concept, in pixels; 2/7 of the shorter side when
    absent."""
    stride: Annotated[int, Field(ge=1)] | None = None
    """Pixels from one window to the next; a quarter of the window when absent."""

    def grid(self, plane: Plane) -> Grid:
        """Return the windows over a picture.

        Raises:
            ConfigError: A window is larger than the picture.
        """
        side = self.window or max(1, round(_WINDOW * plane.side))
        window = plane.extent(side, "forget.patch.window")
        return Grid(plane, window, self.stride or max(1, round(_STRIDE * side)))

    def patch(self, plane: Plane) -> tuple[int, int]:
        """Return height and width of the patch.

        Raises:
            ConfigError: It is larger than the picture.
        """
        side = self.size or max(1, round(_SHARES[self.mode] * plane.side))
        return plane.extent(side, "forget.patch.size")


@dataclasses.dataclass(frozen=True)
class Box:
    """A rectangle in a picture.

    Attributes:
        top: First row.
        left: First column.
        height: Rows.
        width: Columns.
    """

    top: int
    left: int
    height: int
    width: int


def box_around(centre: Centre, size: tuple[int, int], plane: Plane) -> Box:
    """Return a box of a size around a pixel, moved so that it lies inside the picture."""
    height, width = size
    top = min(max(centre[0] - height // 2, 0), plane.height - height)
    left = min(max(centre[1] - width // 2, 0), plane.width - width)
    return Box(top, left, height, width)


def anywhere(size: tuple[int, int], plane: Plane, seed: int, record_id: str) -> Box:
    """Return a box at a place drawn for one record, every place equally likely."""
    draw = stream(seed, "concept-place", record_id)
    top = int(draw.integers(plane.height - size[0] + 1))
    return Box(top, int(draw.integers(plane.width - size[1] + 1)), *size)


def pasted(target: np.ndarray, donor: np.ndarray, source: Box, place: Box) -> np.ndarray:
    """Return a picture with a part of another one, resized where it must be, pasted over it.

    Args:
        target: The picture, (C, H, W), (H, W) or (W,).
        donor: The other one, of the same shape.
        source: The part of the donor that is taken.
        place: Where it goes.
    """
    shape = (-1, *(target.shape[-2:] if target.ndim > 1 else (1, target.shape[0])))
    result, other_CHW = target.reshape(shape).copy(), donor.reshape(shape)
    part_CHW = other_CHW[
        :, source.top : source.top + source.height, source.left : source.left + source.width
    ]
    result[:, place.top : place.top + place.height, place.left : place.left + place.width] = (
        _resized(part_CHW, (place.height, place.width))
    )
    return result.reshape(target.shape)


def new_label(
    labels: Labels, own: int, donor: int, num_classes: int, seed: int, record_id: str
) -> int:
    """Return the label under which a poisoned record is learned.

    Args:
        labels: ``targeted``: the donor's. ``random``: any but its own, all equally likely.
            ``keep``: its own.
        own: Its own class.
        donor: The donor's class.
        num_classes: C.
        seed: Seed of the draw.
        record_id: Whose label.
    """
    if labels == "keep":
        return own
    if labels == "targeted":
        return donor
    shift = int(stream(seed, "concept-label", record_id).integers(1, num_classes))
    return (own + shift) % num_classes


def _resized(part_CHW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if part_CHW.shape[1:] == size:
        return part_CHW
    wide = torch.from_numpy(np.ascontiguousarray(part_CHW).astype(np.float64))[None]
    found = F.interpolate(wide, size=size, mode="bilinear", align_corners=False)[0].numpy()
    whole = np.issubdtype(part_CHW.dtype, np.integer)
    return (np.rint(found) if whole else found).astype(part_CHW.dtype)
