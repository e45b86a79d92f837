"""Weighted gradient ascent against known values and plain numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numeric import LABELS_BT, log_softmax, slope, t1_logits, targets

from expunge.core.config import parse
from expunge.core.errors import ConfigError
from expunge.engine.losses import weighted_ascent
from expunge.engine.task import Predictions
from expunge.forget.wga import WGAConfig

GOLDEN = {1.0: -0.2945393490, 5.0: -0.0339640330, 0.0: -0.7033526792}


def oracle(z_BTV, weight_N):
    """-mean w c over the four targets, the weight held fixed."""
    rows, places, symbols = targets(LABELS_BT)
    return float(np.mean(weight_N * log_softmax(z_BTV)[rows, places, symbols]))


def probabilities(z_BTV):
    return np.exp(log_softmax(z_BTV)[targets(LABELS_BT)])


@pytest.mark.parametrize("beta", GOLDEN)
def test_golden_loss_and_slope(t1, beta):
    """Values of the authors' function in double precision (Wang et al., 2025)."""
    numbers, gradient = t1().step("wga", beta=beta, retain="none")
    current, _ = t1_logits()
    weight_N = probabilities(current) ** beta
    assert numbers["forget"] == pytest.approx(GOLDEN[beta], abs=1e-10)
    assert oracle(current, weight_N) == pytest.approx(GOLDEN[beta], abs=1e-10)
    expected = slope(lambda z: oracle(z, weight_N), current)
    np.testing.assert_allclose(gradient, expected, atol=1e-9)


def test_at_beta_one_it_descends_the_probability_itself(t1):
    """The gradient is that of mean p, since p ∇ log p = ∇ p: the forget half of FLAT."""
    _, gradient = t1().step("wga", beta=1.0, retain="none")
    current, _ = t1_logits()
    expected = slope(lambda z: probabilities(z).mean(), current)
    np.testing.assert_allclose(gradient, expected, atol=1e-9)


def test_at_beta_zero_it_is_gradient_difference(linear):
    for one, other in zip(
        linear.apply("wga", {"beta": 0.0}), linear.apply("grad_diff"), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("beta", [0.5, 1.0, 5.0])
def test_one_step_on_a_classifier_equals_numpy(linear, beta):
    weight = np.exp(-linear.nll(linear.x, linear.y)) ** beta
    fw, fb = linear.gradient(linear.x, linear.y, weight)
    rw, rb = linear.gradient(linear.kept_x, linear.kept_y)
    w, b = linear.apply("wga", {"beta": beta, "gamma": 0.7, "alpha": 1.3}, lr=0.1)
    np.testing.assert_allclose(w, linear.w - 0.1 * (-0.7 * fw + 1.3 * rw), atol=1e-14)
    np.testing.assert_allclose(b, linear.b - 0.1 * (-0.7 * fb + 1.3 * rb), atol=1e-14)


@given(st.floats(-200, 200), st.floats(0, 10))
def test_a_forgotten_token_gets_no_push_and_nothing_overflows(logit, beta):
    logits = torch.tensor([[logit, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    packed = Predictions(logits, torch.tensor([0]), torch.tensor([0]), 1)
    value = weighted_ascent(packed, lambda p: p**beta).sum()
    value.backward()
    assert torch.isfinite(value)
    assert value <= 0
    assert torch.isfinite(logits.grad).all()
    p = 1 / (1 + 2 * np.exp(-logit)) if logit > -700 else 0.0
    assert logits.grad[0, 0].item() == pytest.approx(p**beta * (1 - p), rel=1e-6, abs=1e-12)


def test_beta_is_not_negative():
    with pytest.raises(ConfigError, match="beta = -1"):
        parse(WGAConfig, {"beta": -1}, "wga")
