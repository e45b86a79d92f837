"""Boundary shrinking against plain numpy."""

import numpy as np
import pytest
import torch

from expunge.core.errors import DataError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.forget.boundary_shrink import shifted
from expunge.forget.method import Given, apply, methods


def test_shifted_inputs_are_clipped_and_have_grey_levels():
    x = torch.tensor([[0.05, 0.5, 0.97, 0.3]], dtype=torch.float64)
    slope = torch.tensor([[-1.0, 0.0, 2.0, 1e-9]], dtype=torch.float64)
    got = shifted(x, slope, 0.1).numpy()
    np.testing.assert_allclose(got, [[0.0, 128 / 255, 1.0, 102 / 255]], atol=1e-15)


def pictures(linear):
    """The linear world's forget records with inputs in [0, 1]."""
    linear.x = 1 / (1 + np.exp(-linear.x))
    linear.forget = Records(tuple("abcdef"), {"x": linear.x, "y": linear.y})
    return linear


def nearest(linear, step):
    """Return the class of each shifted record by numpy."""
    logits = linear.x @ linear.w.T + linear.b
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(6), linear.y] -= 1
    moved = np.clip(linear.x + step * np.sign(p @ linear.w), 0, 1)
    moved = np.round(moved * 255) / 255
    return (moved @ linear.w.T + linear.b).argmax(1)


@pytest.mark.parametrize("step", [0.1, 0.6])
def test_one_step_equals_numpy(linear, step):
    world = pictures(linear)
    gw, gb = world.gradient(world.x, nearest(world, step))
    w, b = world.apply("boundary_shrink", {"step": step}, lr=0.1)
    np.testing.assert_allclose(w, world.w - 0.1 * gw, atol=1e-14)
    np.testing.assert_allclose(b, world.b - 0.1 * gb, atol=1e-14)


def test_a_longer_step_crosses_more_boundaries(linear):
    """The two steps of the test above do not say the same."""
    world = pictures(linear)
    assert (nearest(world, 0.1) != nearest(world, 0.6)).any()


def test_targets_come_from_the_original_model_in_every_epoch(linear):
    """Two epochs of full batches: the second step has the targets of the first."""
    world, lr = pictures(linear), 5.0
    wrong = nearest(world, 0.1)
    gw, gb = world.gradient(world.x, wrong)
    w, b = world.w - lr * gw, world.b - lr * gb
    gw, gb = world.gradient(world.x, wrong, w=w, b=b)
    settings = {
        "schedule": {"epochs": 2, "lr": lr, "momentum": 0.0, "weight_decay": 0.0},
    }
    given = Given(world.task, world.forget, guard=None)
    got = apply("boundary_shrink", world.model(), given, Run(), settings).model
    np.testing.assert_allclose(got.weight.detach().numpy(), w - lr * gw, atol=1e-12)
    np.testing.assert_allclose(got.bias.detach().numpy(), b - lr * gb, atol=1e-12)


@pytest.mark.parametrize("bad", [-0.01, 1.01, float("nan")])
def test_inputs_outside_the_unit_interval_are_refused_by_id(linear, bad):
    world = pictures(linear)
    x = world.x.copy()
    x[[1, 4], 2] = bad
    given = Given(world.task, world.forget.replace(x=x))
    with pytest.raises(DataError, match=r"2 forget records .* \(b, e\); scale inputs"):
        apply("boundary_shrink", world.model(), given, Run())


def test_whole_numbers_in_the_unit_interval_serve(linear):
    world = pictures(linear)
    bits = (world.x > 0.5).astype(np.uint8)
    results = [
        apply("boundary_shrink", world.model(), Given(world.task, world.forget.replace(x=x)), Run())
        for x in (bits, bits.astype(float))
    ]
    assert torch.equal(results[0].model.weight, results[1].model.weight)


def test_no_retain_records_are_read():
    info = methods.get("boundary_shrink")
    assert info.needs(info.config()) == {"forget", "labels"}
