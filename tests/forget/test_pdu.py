"""PDU: flattening under a bound on the retain loss, against known values and plain numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numeric import LABELS_BT, log_softmax, slope, t1_logits, targets

from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.losses import spread
from expunge.engine.order import epoch_steps
from expunge.engine.task import Predictions
from expunge.forget.method import Given, apply
from expunge.forget.pdu import PDUConfig, dual_variable

SCHEDULE = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "warmup_epochs": 0}


def oracle(z_BTV):
    rows, places, _ = targets(LABELS_BT)
    z_NV = z_BTV[rows, places]
    return float(np.mean((z_NV.max(-1) - z_NV.mean(-1)) ** 2))


def test_golden_loss_and_slope(t1):
    """At positions that predict answers; the public mask is not shifted and yields 0.8051541932."""
    numbers, gradient = t1().step("pdu", alpha=0.0, dual_step=0.0)
    current, _ = t1_logits()
    assert numbers["forget"] == pytest.approx(1.4360103890, abs=1e-10)
    assert oracle(current) == pytest.approx(1.4360103890, abs=1e-10)
    # One target has four equal logits: the bottom, where the difference quotient is the step's.
    np.testing.assert_allclose(gradient, slope(oracle, current), atol=1e-6)


def test_the_public_mask_drops_the_first_answer_and_adds_the_one_after(t1):
    """The public value, reproduced at the places of the labels themselves."""
    current, _ = t1_logits()
    rows, places = np.nonzero(np.array(LABELS_BT) != -100)
    z_NV = torch.from_numpy(current[rows, places])
    packed = Predictions(z_NV, torch.zeros(4, dtype=torch.long), torch.from_numpy(rows), 2)
    assert spread(packed).sum().item() / 4 == pytest.approx(0.8051541932, abs=1e-10)


def test_equal_logits_are_the_bottom():
    logits = torch.full((1, 5), 3.0, requires_grad=True)
    value = spread(Predictions(logits, torch.tensor([0]), torch.tensor([0]), 1)).sum()
    value.backward()
    assert value.item() == 0
    assert not logits.grad.any()


def test_golden_dual_variable():
    """λ0 = 1, η = 5, ε = 0.3 and losses 0.5, 0.2, 0.1."""
    values = [dual_variable(1.0, [0.5, 0.2, 0.1][:n], 5.0, 0.3) for n in range(4)]
    assert values == pytest.approx([1.0, 2.0, 1.5, 0.5], abs=1e-12)


@given(
    start=st.floats(0, 10),
    losses=st.lists(st.floats(0, 5), max_size=20),
    step=st.floats(0, 5),
    bound=st.floats(0, 5),
)
def test_the_dual_variable_is_never_negative_and_grows_with_the_loss(start, losses, step, bound):
    value = dual_variable(start, losses, step, bound)
    assert value >= 0
    assert dual_variable(start, [loss + 1 for loss in losses], step, bound) >= value
    if all(loss <= bound for loss in losses):
        assert value <= start


def test_the_bound_is_crossed_and_recovered_from():
    """Clipping is at every step, not at the end: what was below zero is not owed."""
    assert dual_variable(1.0, [0.0, 0.0, 1.0], 5.0, 0.5) == 2.5


def numpy_run(linear, steps, settings, lr, warmup):
    """Primal and dual steps by hand; returns weights and the series of λ."""
    w, b, dual, series = linear.w, linear.b, settings["alpha"], []
    for number, rows in enumerate(steps):
        x = linear.x[rows["forget"]]
        z = x @ w.T + b
        factor = 2 * (z.max(1) - z.mean(1)) / len(x)
        dz = factor[:, None] * (np.eye(4)[z.argmax(1)] - 0.25)
        kept_x, kept_y = (column[rows["retain"]] for column in (linear.kept_x, linear.kept_y))
        logprobs = log_softmax(kept_x @ w.T + b)
        loss = -logprobs[np.arange(len(kept_y)), kept_y].mean()
        rw, rb = linear.gradient(kept_x, kept_y, w=w, b=b)
        series.append(dual)
        w = w - lr * (settings["gamma"] * dz.T @ x + dual * rw)
        b = b - lr * (settings["gamma"] * dz.sum(0) + dual * rb)
        if number >= warmup:
            dual = max(0.0, dual + settings["dual_step"] * (loss - settings["epsilon"]))
    return w, b, series


@pytest.fixture
def pair(linear):
    """Three retained records in place of one, so that a micro-batch is not the step."""
    draw = np.random.default_rng(11)
    linear.kept_x, linear.kept_y = draw.normal(size=(3, 3)), draw.integers(4, size=3)
    linear.retain = Records(tuple("xyz"), {"x": linear.kept_x, "y": linear.kept_y})
    return linear


@pytest.mark.parametrize("micro_batch", [None, 1])
@pytest.mark.parametrize("warmup_epochs", [0, 2])
def test_the_dual_variable_follows_whole_steps(pair, warmup_epochs, micro_batch):
    """Three epochs of two steps equal numpy, however a step is split; λ stands still at first."""
    settings = {"gamma": 0.5, "alpha": 1.5, "dual_step": 0.8, "epsilon": 0.2}
    sizes = {"forget": 6, "retain": 3}
    steps = [s for epoch in range(3) for s in epoch_steps("paired", sizes, 3, 0, epoch)]
    w, b, series = numpy_run(pair, steps, settings, 0.05, 2 * warmup_epochs)
    assert len(set(series)) == 6 - 2 * warmup_epochs
    whole = {
        **settings,
        "dual_warmup_epochs": warmup_epochs,
        "schedule": {
            **SCHEDULE,
            "epochs": 3,
            "batch_size": 3,
            "micro_batch": micro_batch,
            "lr": 0.05,
        },
    }
    offer = Given(pair.task, pair.forget, pair.retain, guard=None)
    model = apply("pdu", pair.model(), offer, Run(), whole).model
    np.testing.assert_allclose(model.weight.detach().numpy(), w, atol=1e-13)
    np.testing.assert_allclose(model.bias.detach().numpy(), b, atol=1e-13)


def test_a_standing_dual_variable_is_an_ordinary_weight(linear):
    """Within the warm-up the step is γ F + λ_0 R."""
    w, b = linear.apply("pdu", {"gamma": 0.0, "alpha": 2.0})
    rw, rb = linear.gradient(linear.kept_x, linear.kept_y)
    np.testing.assert_allclose(w, linear.w - 0.1 * 2.0 * rw, atol=1e-14)
    np.testing.assert_allclose(b, linear.b - 0.1 * 2.0 * rb, atol=1e-14)


def test_settings_are_those_of_the_paper_on_tofu():
    config = PDUConfig()
    assert (config.alpha, config.dual_step, config.epsilon) == (100.0, 5.0, 0.3)
    assert config.dual_warmup_epochs == 5
