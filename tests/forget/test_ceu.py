"""CE-U: unlikelihood whose gradient is that of the official cross entropy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numeric import LABELS_BT, log_softmax, pack, slope, t1_logits, targets

from expunge.core.run import Run
from expunge.engine.losses import unlikelihood
from expunge.engine.task import Predictions
from expunge.forget.method import Given, apply


def official(logits_NV, targets_N):
    """The cross entropy to softmax(z with z_y = -inf), which is not differentiated."""
    others_NV = logits_NV.detach().scatter(1, targets_N[:, None], -torch.inf)
    return -(others_NV.softmax(1) * logits_NV.log_softmax(1)).sum(1)


def oracle(z_BTV, keep=(0, 1, 2, 3)):
    """-mean log(1 - p) over chosen targets."""
    p_N = np.exp(log_softmax(z_BTV)[targets(LABELS_BT)])
    return float(np.mean(-np.log(1 - p_N)[list(keep)]))


def test_the_value_is_the_unlikelihood_and_not_the_official_cross_entropy(t1):
    """Without skipping: 0.8766394743 here, 1.9348829739 there; the difference is an entropy."""
    numbers, _ = t1().step("ceu", skip=0)
    assert numbers["forget"] == pytest.approx(0.8766394743, abs=1e-10)
    current, _ = t1_logits()
    assert oracle(current) == pytest.approx(0.8766394743, abs=1e-10)
    packed = pack(current, LABELS_BT)
    value = official(packed.logits_NV, packed.targets_N)
    assert float(value.mean()) == pytest.approx(1.9348829739, abs=1e-10)
    q = packed.logits_NV.scatter(1, packed.targets_N[:, None], -torch.inf).softmax(1)
    entropy_N = -torch.special.xlogy(q, q).sum(1)
    np.testing.assert_allclose(float((value - entropy_N).mean()), numbers["forget"], atol=1e-12)


@pytest.mark.parametrize(
    ("skip", "kept", "golden"), [(0, [0, 1, 2, 3], 1.9348829739), (1, [1, 3], 1.5671808548)]
)
def test_the_gradient_is_that_of_the_official_code(t1, skip, kept, golden):
    numbers, gradient = t1().step("ceu", skip=skip)
    logits = torch.tensor(t1_logits()[0], requires_grad=True)
    packed = pack(logits, LABELS_BT)
    value = official(packed.logits_NV, packed.targets_N)[kept].mean()
    assert value.item() == pytest.approx(golden, abs=1e-10)
    value.backward()
    np.testing.assert_allclose(gradient, logits.grad.numpy(), atol=1e-15)
    current = t1_logits()[0]
    assert numbers["forget"] == pytest.approx(oracle(current, kept), abs=1e-12)
    np.testing.assert_allclose(gradient, slope(lambda z: oracle(z, kept), current), atol=1e-8)


@given(
    logits=st.lists(st.floats(-30, 30), min_size=3, max_size=6),
    target=st.integers(0, 2),
)
def test_the_gradient_identity_holds_everywhere(logits, target):
    targets_N = torch.tensor([target])
    ours = torch.tensor([logits], dtype=torch.float64, requires_grad=True)
    unlikelihood(Predictions(ours, targets_N, torch.tensor([0]), 1)).sum().backward()
    theirs = torch.tensor([logits], dtype=torch.float64, requires_grad=True)
    official(theirs, targets_N).sum().backward()
    np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), atol=1e-14)


def test_one_step_on_a_classifier_equals_numpy(linear):
    """The gradient of -log(1 - p) is p/(1 - p) times that of log p; one target is never skipped."""
    p = np.exp(-linear.nll(linear.x, linear.y))
    fw, fb = linear.gradient(linear.x, linear.y, p / (1 - p))
    for skip in (0, 1, 5):
        w, b = linear.apply("ceu", {"skip": skip, "gamma": 0.7}, lr=0.1)
        np.testing.assert_allclose(w, linear.w + 0.1 * 0.7 * fw, atol=1e-14)
        np.testing.assert_allclose(b, linear.b + 0.1 * 0.7 * fb, atol=1e-14)


@given(counts=st.lists(st.integers(1, 5), min_size=1, max_size=4), skip=st.integers(0, 6))
def test_the_first_positions_of_each_record_are_skipped_but_never_all(counts, skip):
    rows_N = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    logits = torch.zeros(len(rows_N), 3, dtype=torch.float64, requires_grad=True)
    packed = Predictions(logits, torch.zeros(len(rows_N), dtype=torch.long), rows_N, len(counts))
    value_B = unlikelihood(packed, skip)
    taking_part = [max(n - skip, 1) for n in counts]
    np.testing.assert_allclose(value_B.detach().numpy(), np.log(1.5) * np.array(taking_part))
    value_B.sum().backward()
    moved = (logits.grad.abs().sum(1) > 0).tolist()
    expected = [
        place >= n - part for n, part in zip(counts, taking_part, strict=True) for place in range(n)
    ]
    assert moved == expected


def test_the_mean_runs_over_the_positions_that_take_part(questions_world):
    world = questions_world
    given = Given(world.task, world.forget, guard=None)
    settings = {"skip": 1, "schedule": {"epochs": 1, "batch_size": 64}}
    step = apply("ceu", world.model, given, Run(), settings).history.steps[0]
    batch = world.task.batch(world.forget, range(len(world.forget)))
    with torch.no_grad():
        logits_NV = world.task.predict(world.model, batch).logits_NV.double().numpy()
    logprobs_NV = log_softmax(logits_NV)
    np.put_along_axis(logprobs_NV, batch.targets_N.numpy()[:, None], -np.inf, axis=1)
    value_N = -np.log(np.exp(logprobs_NV).sum(1))
    rows_N = batch.rows_N.numpy()
    first_N = np.concatenate([[True], rows_N[1:] != rows_N[:-1]])
    assert step["forget"] == pytest.approx(value_N[~first_N].mean(), rel=1e-5)
    assert step["forget"] != pytest.approx(value_N.mean(), rel=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_that_is_certain_is_finite(dtype):
    """1 - p rounds to 0 here; the share of the others does not."""
    logits = torch.tensor([[60.0, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    value = unlikelihood(Predictions(logits, torch.tensor([0]), torch.tensor([0]), 1))
    value.sum().backward()
    assert value.item() == pytest.approx(60 - np.log(2), rel=1e-6)
    np.testing.assert_allclose(logits.grad.float().numpy(), [[1.0, -0.5, -0.5]], atol=1e-6)
