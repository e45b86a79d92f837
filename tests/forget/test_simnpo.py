"""SimNPO against known values and plain numpy, on sequences and on a classifier."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numeric import LABELS_BT, nll, slope, t1_logits

from expunge.core.run import Run
from expunge.engine.losses import simnpo
from expunge.engine.weights import state_digest
from expunge.forget.method import Given, apply, methods

GOLDEN = {(4.5, 0.0): 0.0297067716, (2.5, 0.0): 0.1461775700, (4.5, 1.0): 0.7416929598}


def oracle(z_BTV, beta, delta):
    """Eq. 4, in its printed form -(2/β) log σ(β (s/n - δ)); two targets per record."""
    margin_B = nll(z_BTV, LABELS_BT) / 2 - delta
    return float(np.mean(-(2 / beta) * np.log(1 / (1 + np.exp(-beta * margin_B)))))


@pytest.mark.parametrize(("beta", "delta"), GOLDEN)
def test_golden_loss_and_slope(t1, beta, delta):
    """Values of the authors' function in double precision (Fan et al., 2024)."""
    settings = {"beta": beta, "delta": delta, "gamma": 1.0, "retain": "none"}
    numbers, gradient = t1().step("simnpo", **settings)
    current, _ = t1_logits()
    assert numbers["forget"] == pytest.approx(GOLDEN[beta, delta], abs=1e-10)
    assert oracle(current, beta, delta) == pytest.approx(GOLDEN[beta, delta], abs=1e-10)
    expected = slope(lambda z: oracle(z, beta, delta), current)
    np.testing.assert_allclose(gradient, expected, atol=1e-9)


def test_gamma_scales_the_forget_term_alone(t1):
    numbers, whole = t1().step("simnpo", gamma=1.0, retain="none")
    same, part = t1().step("simnpo", gamma=0.125, retain="none")
    assert numbers["forget"] == same["forget"]
    np.testing.assert_allclose(part, 0.125 * whole, atol=1e-16)
    both, _ = t1().step("simnpo", gamma=0.0, alpha=2.0)
    assert both["retain"] == pytest.approx(1.8971199849 / 2, abs=1e-10)  # row 0, per target


def test_the_weight_of_a_record_is_divided_by_its_length(t1):
    """W_i = 2 σ(-β (s/n - δ)) / n, times the gradient of the record's log-likelihood."""
    beta, delta = 2.5, 0.2
    _, gradient = t1().step("simnpo", beta=beta, delta=delta, gamma=1.0, retain="none")
    current, _ = t1_logits()
    for row in range(2):
        s = nll(current, LABELS_BT)[row]
        weight = 2 / (1 + np.exp(beta * (s / 2 - delta))) / 2
        ascent = slope(lambda z, row=row: -nll(z, LABELS_BT)[row], current)
        # The mean over two records halves it once more.
        np.testing.assert_allclose(gradient[row], weight * ascent[row] / 2, atol=1e-9)


def test_one_step_on_a_classifier_equals_numpy(linear):
    beta, delta, gamma, alpha = 1.5, 0.3, 0.7, 1.2
    settings = {"beta": beta, "delta": delta, "gamma": gamma, "alpha": alpha}
    weight = 2 / (1 + np.exp(beta * (linear.nll(linear.x, linear.y) - delta)))
    fw, fb = linear.gradient(linear.x, linear.y, weight)
    rw, rb = linear.gradient(linear.kept_x, linear.kept_y)
    w, b = linear.apply("simnpo", settings, lr=0.1)
    np.testing.assert_allclose(w, linear.w + 0.1 * (gamma * fw - alpha * rw), atol=1e-14)
    np.testing.assert_allclose(b, linear.b + 0.1 * (gamma * fb - alpha * rb), atol=1e-14)


@given(st.floats(0, 1e4), st.integers(1, 500), st.floats(0.1, 10), st.floats(-5, 5))
def test_it_is_finite_falls_with_the_loss_and_never_below_zero(s, n, beta, delta):
    nll_B = torch.tensor([s, s + 1.0], dtype=torch.float64, requires_grad=True)
    loss_B = simnpo(nll_B, torch.tensor([n, n]), beta, delta)
    loss_B.sum().backward()
    assert torch.isfinite(loss_B).all()
    assert 0 <= loss_B[1] <= loss_B[0]
    assert ((-2 / n <= nll_B.grad) & (nll_B.grad <= 0)).all()


def test_length_does_not_matter_where_every_token_is_alike():
    """Twice the tokens, each as likely: the same loss. NPO's sum would double its margin."""
    short = simnpo(torch.tensor([3.0]), torch.tensor([2]), 2.5, 0.0)
    long = simnpo(torch.tensor([6.0]), torch.tensor([4]), 2.5, 0.0)
    assert torch.equal(short, long)


def test_no_reference_is_needed_and_it_forgets(questions_world):
    world = questions_world
    info = methods.get("simnpo")
    assert info.needs(info.config(retain="none")) == {"forget", "labels"}
    given = Given(world.task, world.forget, world.retain)
    settings = {"gamma": 1.0, "schedule": {"lr": 3e-3, "epochs": 10}}
    result = apply("simnpo", world.model, given, Run(), settings)
    assert result.history.steps[-1]["forget"] < result.history.steps[0]["forget"]
    assert state_digest(result.model) != state_digest(world.model)
