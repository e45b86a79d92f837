"""Gradient ascent against known values and a plain numpy step."""

import numpy as np
import pytest


def test_golden_loss(t1):
    """The cross entropy of public implementations on this fixture; ascent follows its negative."""
    numbers, gradient = t1().step("grad_ascent")
    assert numbers["forget"] == pytest.approx(0.7033526792, abs=1e-10)
    # Row 0, position 1, label 2: -(p - onehot) / 4 tokens.
    assert gradient[0, 1] == pytest.approx(-np.array([0.1, 0.2, -0.4, 0.1]) / 4, abs=1e-12)


def test_prompt_and_padding_do_not_move(t1):
    _, gradient = t1().step("grad_ascent")
    scored = {(0, 1), (0, 2), (1, 0), (1, 1)}
    for row, place in np.ndindex(2, 4):
        assert bool(np.abs(gradient[row, place]).max() > 0) == ((row, place) in scored)


def test_one_step_equals_numpy(linear):
    w, b = linear.apply("grad_ascent", lr=0.1)
    gw, gb = linear.gradient(linear.x, linear.y)
    np.testing.assert_allclose(w, linear.w + 0.1 * gw, atol=1e-14)
    np.testing.assert_allclose(b, linear.b + 0.1 * gb, atol=1e-14)
