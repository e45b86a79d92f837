"""Windows over a picture, and the one that matters most."""

import numpy as np
import pytest
import torch
from torch import nn

from expunge.core.errors import ConfigError, DataError
from expunge.engine.tasks.classifier import Classifier
from expunge.forget.concept_patches import PatchSettings
from expunge.forget.concept_sites import (
    Grid,
    Plane,
    gradient_peaks,
    occlusion_peaks,
    plane_of,
)

PAPER = Grid(Plane(224, 224), (64, 64), 16)


class Corner(nn.Module):
    """Its representation is the sum of pixels in each quarter of a picture of 8 x 8."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(nn.functional.avg_pool2d(x, 4).flatten(1) * 16)


def blocks():
    """Two pictures, bright in the quarter below left and above right."""
    x = torch.full((2, 1, 8, 8), 0.1)
    x[0, :, 4:, :4] = 1
    x[1, :, :4, 4:] = 1
    return x


def test_golden_grid():
    """Reference value 3 of the card: 11 x 11 windows, the last one centred at 192, 192."""
    assert (PAPER.rows, PAPER.columns) == (11, 11)
    assert PAPER.centre(120) == (192, 192)
    assert PAPER.centre(0) == (32, 32)
    assert PAPER.centre(12) == (48, 48)


def test_defaults_are_the_papers_at_its_size():
    assert PatchSettings().grid(Plane(224, 224)) == PAPER
    small = PatchSettings().grid(Plane(28, 28))
    assert (small.window, small.stride, small.rows) == ((8, 8), 2, 11)


def test_windows_cover_their_own_pixels():
    grid = Grid(Plane(5, 7), (2, 3), 2)
    covered = grid.covers()
    assert covered.shape == (2 * 3, 5, 7)
    assert (covered.sum((1, 2)) == 6).all()
    assert covered[4, 2:4, 2:5].all()  # row 1, column 1
    assert grid.centre(4) == (3, 3)


def test_plain_numbers_are_one_row_of_pixels():
    plane = plane_of((64,))
    assert plane == Plane(1, 64, flat=True)
    assert PatchSettings().grid(plane).window == (1, 18)
    assert plane_of((3, 8, 9)) == plane_of((8, 9)) == Plane(8, 9)


def test_what_is_no_picture_is_refused():
    with pytest.raises(DataError, match=r"shape \(2, 3, 4, 5\) are no pictures"):
        plane_of((2, 3, 4, 5))


@pytest.mark.parametrize(
    ("shape", "words"), [((1, 28, 30), "28 x 30 pixels"), ((28,), "28 numbers")]
)
def test_windows_and_patches_larger_than_the_picture_are_refused(shape, words):
    plane = plane_of(shape)
    with pytest.raises(
        ConfigError, match=rf"patch\.size = 29 is larger .* {words}; use at most 28"
    ):
        PatchSettings(size=29).patch(plane)
    with pytest.raises(ConfigError, match=r"forget\.patch\.window = 40 is larger"):
        PatchSettings(window=40).grid(plane)
    PatchSettings(size=28, window=28).patch(plane)


def test_the_window_whose_blanking_counts_most_is_found():
    model, x = Corner().eval(), blocks()
    grid = Grid(Plane(8, 8), (4, 4), 4)
    below_left, above_right = np.eye(4)[2], np.eye(4)[1]
    directions = np.stack([below_left, above_right])
    found = occlusion_peaks(model, Classifier(2), x, directions, grid, "head")
    assert found == [(6, 2), (2, 6)]
    # Against the same concepts every other window is as good, and the first is taken.
    found = occlusion_peaks(model, Classifier(2), x, -directions, grid, "head")
    assert found == [(2, 2), (2, 2)]


def test_many_pictures_are_searched_as_one_is(monkeypatch):
    model, grid = Corner().eval(), Grid(Plane(8, 8), (3, 3), 1)
    x = torch.from_numpy(np.random.default_rng(0).random((9, 1, 8, 8), dtype=np.float32))
    directions = np.random.default_rng(1).normal(size=(9, 4))
    whole = occlusion_peaks(model, Classifier(2), x, directions, grid, "head")
    monkeypatch.setattr("expunge.forget.concept_sites.AT_ONCE", 40)
    assert occlusion_peaks(model, Classifier(2), x, directions, grid, "head") == whole
    oracle = []
    for picture, direction in zip(x, directions, strict=True):
        drops = []
        for cell, window in enumerate(grid.covers()):
            blank = torch.where(window, 0, picture)
            quarters = blank[0].reshape(2, 4, 2, 4).sum((1, 3)).flatten().numpy()
            drops.append((float(quarters @ direction), cell))
        oracle.append(grid.centre(min(drops)[1]))
    assert whole == oracle


def test_gradients_mark_the_bright_quarter_of_each_class():
    """The convolution passes pixels on; class 0 likes what is below left, class 1 above right."""
    model = nn.Sequential(
        nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2, bias=False)
    ).eval()
    weight = torch.zeros(2, 8, 8)
    weight[0, 4:, :4] = 1
    weight[1, :4, 4:] = 1
    with torch.no_grad():
        model[0].weight.fill_(1)
        model[3].weight.copy_(weight.flatten(1))
    grid = Grid(Plane(8, 8), (4, 4), 4)
    found = gradient_peaks(model, Classifier(2), blocks(), np.array([0, 1]), grid)
    assert found == [(6, 2), (2, 6)]
    assert all(p.grad is None for p in model.parameters())


def test_where_nothing_speaks_for_a_class_the_least_against_it_counts():
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Flatten(), nn.Linear(64, 2)).eval()
    with torch.no_grad():
        model[0].weight.fill_(1)
        model[2].weight.fill_(-1)
    x = torch.ones(1, 1, 8, 8)
    x[0, 0, 4:, 4:] = 0.1
    grid = Grid(Plane(8, 8), (4, 4), 4)
    assert gradient_peaks(model, Classifier(2), x, np.array([0]), grid) == [(6, 6)]


def test_layers_that_change_their_input_in_place_do_not_disturb_gradients():
    def network(in_place):
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(in_place), nn.Flatten()), nn.Linear(192, 2)
        ).eval()

    grid, classes = Grid(Plane(8, 8), (3, 3), 1), np.array([0, 1])
    with torch.random.fork_rng():
        plain, inplace = network(False), network(True)
    found = [gradient_peaks(m, Classifier(2), blocks(), classes, grid) for m in (plain, inplace)]
    assert found[0] == found[1]


def test_gradients_need_a_convolution():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    grid = Grid(Plane(8, 8), (4, 4), 4)
    with pytest.raises(
        ConfigError, match=r"no convolution .* it has Flatten, Linear\. Set it to 'o"
    ):
        gradient_peaks(model, Classifier(2), blocks(), np.array([0, 1]), grid)
