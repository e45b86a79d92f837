"""Patches: where they go, what they hold, and under which label a picture is learned."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.forget.concept_patches import (
    Box,
    PatchSettings,
    anywhere,
    box_around,
    new_label,
    pasted,
)
from expunge.forget.concept_sites import Plane

SIDES = st.integers(1, 12)


@pytest.mark.parametrize(
    ("mode", "side"), [("localized", 64), ("center", 96), ("random", 96), ("full", 160)]
)
def test_golden_patch_sizes(mode, side):
    """The card's sizes on 224 pixels."""
    assert PatchSettings(mode=mode).patch(Plane(224, 224)) == (side, side)


@given(SIDES, SIDES, st.data())
def test_a_box_lies_inside_and_is_moved_no_further_than_it_must_be(height, width, data):
    plane = Plane(height, width)
    size = data.draw(st.tuples(st.integers(1, height), st.integers(1, width)))
    centre = data.draw(st.tuples(st.integers(0, height - 1), st.integers(0, width - 1)))
    box = box_around(centre, size, plane)
    assert (box.height, box.width) == size
    for start, length, whole, middle in (
        (box.top, size[0], height, centre[0]),
        (box.left, size[1], width, centre[1]),
    ):
        assert 0 <= start <= whole - length
        wished = middle - length // 2
        if 0 <= wished <= whole - length:
            assert start == wished
        else:
            assert start in (0, whole - length)


def test_random_places_cover_the_picture_and_follow_the_record():
    plane = Plane(3, 4)
    boxes = [anywhere((2, 2), plane, 0, f"r{i}") for i in range(200)]
    counts = Counter((box.top, box.left) for box in boxes)
    assert set(counts) == {(top, left) for top in range(2) for left in range(3)}
    assert min(counts.values()) > 15
    assert boxes[7] == anywhere((2, 2), plane, 0, "r7")


def test_a_patch_is_copied_pixel_by_pixel():
    target, donor = np.zeros((2, 4, 5)), np.arange(40.0).reshape(2, 4, 5)
    found = pasted(target, donor, Box(0, 1, 2, 2), Box(2, 3, 2, 2))
    np.testing.assert_array_equal(found[:, 2:4, 3:5], donor[:, 0:2, 1:3])
    assert found.sum() == donor[:, 0:2, 1:3].sum()
    assert not target.any()


def test_a_patch_is_resized_to_its_place():
    """Bilinear at pixel centres: each pair of columns becomes its mean."""
    donor = np.arange(16.0).reshape(1, 4, 4)
    found = pasted(np.zeros((1, 4, 4)), donor, Box(0, 0, 4, 4), Box(1, 1, 2, 2))
    np.testing.assert_allclose(found[0, 1:3, 1:3], [[2.5, 4.5], [10.5, 12.5]], atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 4, 4), (4, 4)])
def test_whole_numbers_stay_whole(shape):
    donor = np.arange(16, dtype=np.uint8).reshape(shape)
    found = pasted(np.zeros(shape, np.uint8), donor, Box(0, 0, 4, 4), Box(1, 1, 2, 2))
    assert found.dtype == np.uint8
    assert found.shape == shape
    np.testing.assert_array_equal(found.reshape(4, 4)[1:3, 1:3], [[2, 4], [10, 12]])


def test_plain_numbers_get_a_run_of_another():
    found = pasted(np.zeros(6), np.arange(6.0), Box(0, 2, 1, 2), Box(0, 4, 1, 2))
    np.testing.assert_array_equal(found, [0, 0, 0, 0, 2, 3])


def test_labels_are_the_donors_its_own_or_any_other():
    assert new_label("targeted", 3, 7, 10, 0, "a") == 7
    assert new_label("keep", 3, 7, 10, 0, "a") == 3
    drawn = Counter(new_label("random", 3, 7, 5, 0, f"r{i}") for i in range(400))
    assert set(drawn) == {0, 1, 2, 4}
    assert min(drawn.values()) > 70
    assert new_label("random", 3, 7, 5, 0, "r1") == new_label("random", 3, 0, 5, 0, "r1")
