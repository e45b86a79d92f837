"""l1-sparse: plain numpy steps, and a penalty that fades epoch by epoch."""

import numpy as np
import pytest
import torch

from expunge.core.run import Run
from expunge.engine.weights import state_digest
from expunge.forget.l1_sparse import faded
from expunge.forget.method import Given, apply


def test_the_penalty_falls_linearly_and_once_an_epoch():
    weight = faded(0.8, epochs=4, steps_per_epoch=3)
    got = [weight([{}] * steps) for steps in range(12)]
    assert got == pytest.approx([0.8] * 3 + [0.6] * 3 + [0.4] * 3 + [0.2] * 3, abs=1e-15)


def test_two_epochs_equal_numpy(linear):
    """α in the first epoch, α / 2 in the second, on weights and biases alike."""
    lr, alpha, w, b = 0.1, 0.3, linear.w, linear.b
    for share in (alpha, alpha / 2):
        gw, gb = linear.gradient(linear.kept_x, linear.kept_y, w=w, b=b)
        w, b = w - lr * (gw + share * np.sign(w)), b - lr * (gb + share * np.sign(b))
    schedule = {"epochs": 2, "lr": lr, "momentum": 0.0, "weight_decay": 0.0}
    given = Given(linear.task, linear.forget, linear.retain, guard=None)
    settings = {"alpha": alpha, "schedule": schedule}
    result = apply("l1_sparse", linear.model(), given, Run(), settings)
    np.testing.assert_allclose(result.model.weight.detach().numpy(), w, atol=1e-14)
    np.testing.assert_allclose(result.model.bias.detach().numpy(), b, atol=1e-14)
    size = np.abs(linear.w).sum() + np.abs(linear.b).sum()
    assert result.history.steps[0]["l1"] == pytest.approx(size, rel=1e-12)


def test_without_a_penalty_it_is_finetuning(digits_world):
    world = digits_world
    given = Given(world.task, world.forget, world.retain)
    schedule = {"epochs": 2, "batch_size": 16, "lr": 0.01}
    plain = apply("finetune", world.model, given, Run(), {"schedule": schedule})
    none = apply("l1_sparse", world.model, given, Run(), {"alpha": 0.0, "schedule": schedule})
    assert state_digest(none.model) == state_digest(plain.model)


def test_more_penalty_makes_smaller_weights(digits_world):
    world = digits_world
    given = Given(world.task, world.forget, world.retain)
    sizes = []
    for alpha in (0.0, 1e-3, 1e-2):
        settings = {"alpha": alpha, "schedule": {"epochs": 5, "batch_size": 16, "lr": 0.03}}
        model = apply("l1_sparse", world.model, given, Run(), settings).model
        sizes.append(sum(float(p.detach().abs().sum()) for p in model.parameters()))
    assert sizes[0] > sizes[1] > sizes[2]


def test_weights_outside_the_scope_are_not_penalised(digits_world):
    world = digits_world
    given = Given(world.task, world.forget, world.retain)
    settings = {"alpha": 0.1, "scope": {"patterns": ["2.*"]}}
    result = apply("l1_sparse", world.model, given, Run(), settings)
    assert torch.equal(result.model[0].weight, world.model[0].weight)
    last = sum(float(p.detach().abs().sum()) for p in world.model[2].parameters())
    assert result.history.steps[0]["l1"] == pytest.approx(last, rel=1e-5)
