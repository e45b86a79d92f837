"""SatImp against known values and plain numpy."""

import numpy as np
import pytest
from numeric import LABELS_BT, log_softmax, slope, t1_logits, targets

from expunge.forget.satimp import SatImpConfig

GOLDEN = {(5.0, 1.0): -0.0105896082, (1.0, 1.0): -0.1478795264}


def oracle(z_BTV, weight_N):
    """-mean w c over the four targets, the weight held fixed."""
    return float(np.mean(weight_N * log_softmax(z_BTV)[targets(LABELS_BT)]))


def weights(z_BTV, saturation, importance):
    p_N = np.exp(log_softmax(z_BTV)[targets(LABELS_BT)])
    return p_N**saturation * (1 - p_N) ** importance


@pytest.mark.parametrize(("saturation", "importance"), GOLDEN)
def test_golden_loss_and_slope(t1, saturation, importance):
    """Values of the authors' function in double precision (Yang et al., 2025)."""
    settings = {"beta_saturation": saturation, "beta_importance": importance, "retain": "none"}
    numbers, gradient = t1().step("satimp", **settings)
    current, _ = t1_logits()
    weight_N = weights(current, saturation, importance)
    golden = GOLDEN[saturation, importance]
    assert numbers["forget"] == pytest.approx(golden, abs=1e-10)
    assert oracle(current, weight_N) == pytest.approx(golden, abs=1e-10)
    expected = slope(lambda z: oracle(z, weight_N), current)
    np.testing.assert_allclose(gradient, expected, atol=1e-10)


def test_the_weight_is_not_differentiated(t1):
    _, gradient = t1().step("satimp", retain="none")
    current, _ = t1_logits()
    through = slope(lambda z: oracle(z, weights(z, 5.0, 1.0)), current)
    assert np.abs(gradient - through).max() > 1e-3


def test_without_importance_it_is_weighted_ascent(t1):
    numbers, gradient = t1().step("satimp", beta_importance=0.0, retain="none")
    other, expected = t1().step("wga", beta=5.0, retain="none")
    assert numbers["forget"] == other["forget"]
    np.testing.assert_array_equal(gradient, expected)


def test_one_step_on_a_classifier_equals_numpy(linear):
    p = np.exp(-linear.nll(linear.x, linear.y))
    fw, fb = linear.gradient(linear.x, linear.y, p**2 * (1 - p) ** 0.5)
    rw, rb = linear.gradient(linear.kept_x, linear.kept_y)
    settings = {"beta_saturation": 2.0, "beta_importance": 0.5, "gamma": 1.0, "alpha": 0.1}
    w, b = linear.apply("satimp", settings, lr=0.1)
    np.testing.assert_allclose(w, linear.w - 0.1 * (-fw + 0.1 * rw), atol=1e-14)
    np.testing.assert_allclose(b, linear.b - 0.1 * (-fb + 0.1 * rb), atol=1e-14)


def test_a_certain_model_hardly_moves(linear):
    """(1 - p) is near 0: the reason for a model that knows all by heart to forget slowly."""
    sharp = linear.model(w=linear.w * 100, b=linear.b * 100)
    known = linear.forget.replace(y=np.argmax(linear.x @ linear.w.T + linear.b, axis=1))
    linear.forget = known
    settings = {"retain": "none"}
    w, _ = linear.apply("satimp", settings, model=sharp)
    assert np.abs(w - linear.w * 100).max() < 1e-6
    soft, _ = linear.apply("satimp", settings)
    assert np.abs(soft - linear.w).max() > 1e-4


def test_the_weights_of_the_terms_are_those_of_the_readme():
    """The shipped settings of the release have them the other way round."""
    config = SatImpConfig()
    assert (config.gamma, config.alpha) == (1.0, 0.1)
    assert (config.beta_saturation, config.beta_importance) == (5.0, 1.0)
