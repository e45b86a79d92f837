"""Where in a picture a concept is: the window that matters most.

A picture has shape (channels, height, width) or (height, width); a record of plain numbers is taken
as one row of pixels, so that windows are runs of columns.

Shape legend: B pictures, C channels, H height, W width, D width of the representation, G windows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from expunge.core.errors import ConfigError, DataError, listing
from expunge.engine.representation import represent
from expunge.engine.task import Batch, Task
from expunge.forget.attributions import require_captum

AT_ONCE = 512
"""Pictures of one forward pass."""

Centre = tuple[int, int]
"""Row and column of a window's middle."""


@dataclasses.dataclass(frozen=True)
class Plane:
    """Height and width of a picture.

    Attributes:
        height: H; 1 for a record of plain numbers.
        width: W.
        flat: Whether it is such a record.
    """

    height: int
    width: int
    flat: bool = False

    @property
    def side(self) -> int:
        """The shorter side, to which windows and patches are compared."""
        return self.width if self.flat else min(self.height, self.width)

    def extent(self, side: int, setting: str) -> tuple[int, int]:
        """Return height and width of a square (of a run of columns, where flat).

        Args:
            side: Its side in pixels.
            setting: Where the side comes from, for the message.

        Raises:
            ConfigError: It is larger than the picture.
        """
        if side > self.side:
            what = "numbers" if self.flat else f"x {self.width} pixels"
            size = f"{self.width}" if self.flat else f"{self.height}"
            raise ConfigError(
                f"{setting} = {side} is larger than the records of {size} {what}; "
                f"use at most {self.side}"
            )
        return (1 if self.flat else side), side


@dataclasses.dataclass(frozen=True)
class Grid:
    """Windows that slide over a picture.

    Attributes:
        plane: The picture.
        window: Height and width of a window.
        stride: Pixels between two windows.
    """

    plane: Plane
    window: tuple[int, int]
    stride: int

    @property
    def rows(self) -> int:
        """How many windows lie below each other."""
        return (self.plane.height - self.window[0]) // self.stride + 1

    @property
    def columns(self) -> int:
        """How many windows lie beside each other."""
        return (self.plane.width - self.window[1]) // self.stride + 1

    def centre(self, cell: int) -> Centre:
        """Return the middle of a window, counted row by row."""
        row, column = divmod(cell, self.columns)
        height, width = self.window
        return row * self.stride + height // 2, column * self.stride + width // 2

    def covers(self) -> Bool[Tensor, "G H W"]:
        """Return the pixels of every window."""
        shape = (self.rows * self.columns, self.plane.height, self.plane.width)
        covered_GHW = torch.zeros(shape, dtype=torch.bool)
        for cell in range(len(covered_GHW)):
            row, column = divmod(cell, self.columns)
            top, left = row * self.stride, column * self.stride
            height, width = self.window
            covered_GHW[cell, top : top + height, left : left + width] = True
        return covered_GHW


def plane_of(shape: tuple[int, ...]) -> Plane:
    """Return height and width of records of this shape.

    Raises:
        DataError: They are neither pictures nor plain numbers.
    """
    if len(shape) == 1:
        return Plane(1, shape[0], flat=True)
    if len(shape) in (2, 3):
        return Plane(shape[-2], shape[-1])
    raise DataError(
        f"records of shape {shape} are no pictures; give (channels, height, width), or choose "
        "another method"
    )


def occlusion_peaks(
    model: nn.Module,
    task: Task,
    x: Float[Tensor, "B ..."],
    directions_BD: Float[np.ndarray, "B D"],
    grid: Grid,
    head: str,
    check: Callable[[], None] = lambda: None,
) -> list[Centre]:
    """Return for each picture the window whose blanking moves it furthest against a direction.

    A blanked pixel is 0. The earliest of equal windows is taken.

    Args:
        model: The model, on the device of the pictures and in eval mode.
        task: How to run it.
        x: Pictures.
        directions_BD: Direction of each picture's concepts in the representation.
        grid: Windows.
        head: Name of the last layer; see ``engine.representation.split``.
        check: Called between forward passes; raises to stop.
    """
    covered_GHW = grid.covers().to(x.device)
    found: list[Centre] = []
    size = max(1, AT_ONCE // len(covered_GHW))
    for start in range(0, len(x), size):
        check()
        part = x[start : start + size]
        blank = part[:, None].masked_fill(_over(covered_GHW, part.shape[1:]), 0)
        with torch.no_grad():
            features, _ = represent(model, task, pictures(blank.flatten(0, 1)), head)
        features_BGD = features.double().cpu().numpy().reshape(len(part), len(covered_GHW), -1)
        toward_BG = np.einsum("bgd,bd->bg", features_BGD, directions_BD[start : start + size])
        found += [grid.centre(int(cell)) for cell in toward_BG.argmin(1)]
    return found


def gradient_peaks(
    model: nn.Module, task: Task, x: Float[Tensor, "B ..."], classes: np.ndarray, grid: Grid
) -> list[Centre]:
    """Return for each picture the window that Grad-CAM of the last convolution marks most.

    Only what speaks for the class counts, where anything does.

    Args:
        model: The model, on the device of the pictures and in eval mode.
        task: How to run it.
        x: Pictures.
        classes: For which class each is read.
        grid: Windows.

    Raises:
        ConfigError: The model has no convolution, or captum is not installed.

    Source: Selvaraju et al. (2017), Grad-CAM, eq. 1 and 2.
    """
    layer = last_convolution(model)
    require_captum("forget.patch.localize = 'gradcam'")
    from captum.attr import LayerGradCam

    method = LayerGradCam(lambda inputs: task.predict(model, pictures(inputs)).logits_NV, layer)
    weight = next(model.parameters())
    found: list[Centre] = []
    for start in range(0, len(x), AT_ONCE):
        part = x[start : start + AT_ONCE].to(weight.dtype).requires_grad_()
        targets = torch.as_tensor(classes[start : start + AT_ONCE], device=part.device)
        marks = method.attribute(part, target=targets).detach()
        speaking = marks.clamp(min=0)
        marks = torch.where(speaking.flatten(1).any(1)[:, None, None, None], speaking, marks)
        plane = (grid.plane.height, grid.plane.width)
        whole = F.interpolate(marks, size=plane, mode="bilinear", align_corners=False)
        cells_BG = F.avg_pool2d(whole, grid.window, grid.stride).flatten(1).cpu().numpy()
        found += [grid.centre(int(cell)) for cell in cells_BG.argmax(1)]
    return found


def last_convolution(model: nn.Module) -> nn.Module:
    """Return the convolution over pictures that is registered last.

    Raises:
        ConfigError: There is none.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    if not layers:
        raise ConfigError(
            "forget.patch.localize = 'gradcam': the model has no convolution (nn.Conv2d) whose "
            f"output could be mapped to pixels; it has {listing(_kinds(model), 8)}. "
            "Set it to 'occlusion'"
        )
    return layers[-1]


def pictures(x: Float[Tensor, "B ..."]) -> Batch:
    """Return a batch of pictures without targets."""
    count = len(x)
    nothing = torch.empty(0, dtype=torch.long, device=x.device)
    ids = tuple(str(place) for place in range(count))
    return Batch(ids, {"x": x}, nothing, torch.arange(count, device=x.device))


def _over(covered_GHW: Tensor, shape: torch.Size) -> Tensor:
    """Give windows the axes of a picture: (G, *shape), channels and batch broadcast."""
    if len(shape) == 1:
        return covered_GHW.flatten(1)
    return covered_GHW if len(shape) == 2 else covered_GHW[:, None]


def _kinds(model: nn.Module) -> list[Any]:
    leaves = [m for m in model.modules() if not list(m.children())]
    return list(dict.fromkeys(type(m).__name__ for m in leaves))
