"""UNDIAL against known values and plain numpy."""

import numpy as np
import pytest
import torch
from numeric import LABELS_BT, log_softmax, pack, slope, t1_logits, targets

from expunge.core.run import Run
from expunge.engine.losses import lowered_teacher
from expunge.forget.method import Given, apply, methods
from expunge.forget.undial import UndialConfig

GOLDEN = {3.0: 1.6417294867, 10.0: 1.9777757757}


def shares(reference_BTV, beta):
    """softmax(z_ref - β onehot(y)) at the four targets."""
    rows, places, symbols = targets(LABELS_BT)
    lowered = reference_BTV[rows, places].copy()
    lowered[np.arange(4), symbols] -= beta
    return np.exp(log_softmax(lowered))


def oracle(z_BTV, reference_BTV, beta):
    """Eq. 3 as a mean over the four targets."""
    rows, places, _ = targets(LABELS_BT)
    logprobs = log_softmax(z_BTV)[rows, places]
    return float(np.mean(-(shares(reference_BTV, beta) * logprobs).sum(-1)))


@pytest.mark.parametrize("beta", GOLDEN)
def test_golden_loss_and_slope(t1, beta):
    """Values by formula at answer positions (the public code has no mask, see below)."""
    numbers, gradient = t1().step("undial", beta=beta)
    current, reference = t1_logits()
    assert numbers["forget"] == pytest.approx(GOLDEN[beta], abs=1e-10)
    assert oracle(current, reference, beta) == pytest.approx(GOLDEN[beta], abs=1e-10)
    expected = slope(lambda z: oracle(z, reference, beta), current)
    np.testing.assert_allclose(gradient, expected, atol=1e-9)


@pytest.mark.parametrize(("beta", "official"), [(3.0, 1.5356232981), (10.0, 1.7567745519)])
def test_the_public_value_where_every_label_counts(beta, official):
    """The public function run with labels everywhere, where its missing mask does not matter."""
    current, reference = t1_logits()
    labels = [[1, 0, 2, 3], [2, 1, 0, 3]]
    loss = lowered_teacher(pack(reference, labels), pack(current, labels), beta).sum() / 6
    assert float(loss) == pytest.approx(official, abs=1e-10)


def test_prompt_and_padding_do_not_move(t1):
    _, gradient = t1().step("undial")
    moved = {place for place in np.ndindex(2, 4) if np.abs(gradient[place]).max() > 0}
    assert moved == {(0, 1), (0, 2), (1, 0), (1, 1)}


def test_the_fixed_point_is_the_lowered_teacher():
    """Where the model says what the target says, nothing pulls: the loss cannot run away."""
    _, reference = t1_logits()
    rows, places, _ = targets(LABELS_BT)
    settled = reference.copy()
    settled[rows, places] = np.log(shares(reference, 4.0))
    logits = torch.tensor(settled, requires_grad=True)
    lowered_teacher(pack(reference, LABELS_BT), pack(logits, LABELS_BT), 4.0).sum().backward()
    np.testing.assert_allclose(logits.grad.numpy(), 0, atol=1e-15)


def test_no_gradient_flows_into_the_teacher():
    current, reference = (torch.tensor(z, requires_grad=True) for z in t1_logits())
    lowered_teacher(pack(reference, LABELS_BT), pack(current, LABELS_BT), 3.0).sum().backward()
    assert reference.grad is None
    assert current.grad is not None


def test_the_teacher_is_the_model_before_its_first_step(linear):
    """Two steps: the second still learns from the original's distribution."""
    beta, lr = 2.0, 0.3
    schedule = {"epochs": 2, "optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "lr": lr}
    got_w, got_b = linear.apply("undial", {"beta": beta, "schedule": {**schedule}}, lr=lr)
    lowered = linear.x @ linear.w.T + linear.b
    lowered[np.arange(6), linear.y] -= beta
    wanted = np.exp(log_softmax(lowered))
    w, b = linear.w, linear.b
    # Warm-up of one epoch with one step: both steps run at the full rate.
    for _ in range(2):
        off = (np.exp(log_softmax(linear.x @ w.T + b)) - wanted) / 6
        w, b = w - lr * off.T @ linear.x, b - lr * off.sum(0)
    np.testing.assert_allclose(got_w, w, atol=1e-13)
    np.testing.assert_allclose(got_b, b, atol=1e-13)


def test_the_loss_stays_bounded_and_settles(questions_world):
    """Where ascent runs away with the number of steps, distillation comes to rest."""
    world = questions_world
    given = Given(world.task, world.forget, world.retain, guard=None)
    schedule = {"lr": 3e-3, "epochs": 40}
    steps = apply("undial", world.model, given, Run(), {"schedule": schedule}).history.steps
    losses = [step["forget"] for step in steps]
    assert min(losses) > 0
    assert losses[-1] < losses[0] / 2
    assert abs(losses[-1] - losses[-10]) < 0.1


def test_retain_records_are_read_only_for_a_retain_term(t1):
    info = methods.get("undial")
    assert info.needs(UndialConfig()) == {"forget", "labels", "reference_model"}
    assert "retain" in info.needs(UndialConfig(retain="nll"))
    numbers, _ = t1(retain=(), rows=()).step("undial")
    assert "retain" not in numbers
