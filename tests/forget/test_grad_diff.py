"""Gradient difference against known values and a plain numpy step."""

import numpy as np
import pytest


def test_golden_divergence_at_target_positions_only(t1):
    """0.2448252225 over the 4 answer tokens; over all 8 positions it would be 0.1913614199."""
    # The retain stream gives one record per forget record: row 0 alone, then row 1 alone.
    halves = [t1(rows=(row,)).step("grad_diff", retain="kl")[0]["retain"] for row in (0, 1)]
    assert sum(halves) / 2 == pytest.approx(0.2448252225, abs=1e-10)


def test_divergence_moves_no_prompt_and_no_padding(t1):
    _, gradient = t1(rows=(0,)).step("grad_diff", retain="kl", gamma=0.0)
    moved = {place for place in np.ndindex(2, 4) if np.abs(gradient[place]).max() > 0}
    assert moved == {(0, 1), (0, 2)}


def test_divergence_gradient_is_the_difference_of_distributions(t1):
    _, gradient = t1(rows=(0,)).step("grad_diff", retain="kl", gamma=0.0, alpha=3.0)
    # d KL(q || softmax z) / dz = p - q; two positions per record.
    expected = 3.0 * (np.array([0.1, 0.2, 0.6, 0.1]) - np.array([0.05, 0.05, 0.8, 0.1])) / 2
    assert gradient[0, 1] == pytest.approx(expected, abs=1e-12)


def test_one_step_equals_numpy(linear):
    w, b = linear.apply("grad_diff", {"gamma": 0.7, "alpha": 1.3}, lr=0.1)
    fw, fb = linear.gradient(linear.x, linear.y)
    rw, rb = linear.gradient(linear.kept_x, linear.kept_y)
    np.testing.assert_allclose(w, linear.w - 0.1 * (-0.7 * fw + 1.3 * rw), atol=1e-14)
    np.testing.assert_allclose(b, linear.b - 0.1 * (-0.7 * fb + 1.3 * rb), atol=1e-14)


def test_divergence_has_no_pull_at_the_reference(linear):
    """At the start the model is the reference, so one step is that of ascent alone."""
    w, b = linear.apply("grad_diff", {"retain": "kl", "alpha": 5.0})
    ascent_w, ascent_b = linear.apply("grad_ascent")
    np.testing.assert_allclose(w, ascent_w, atol=1e-14)
    np.testing.assert_allclose(b, ascent_b, atol=1e-14)


def test_without_a_retain_term_it_is_gradient_ascent(linear):
    for one, other in zip(
        linear.apply("grad_diff", {"retain": "none"}), linear.apply("grad_ascent"), strict=True
    ):
        np.testing.assert_array_equal(one, other)
