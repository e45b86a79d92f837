"""The bad teacher: golden loss, a plain numpy step, and labels that enter no loss."""

import numpy as np
import pytest
import torch

from expunge.core.run import Run
from expunge.core.streams import stream
from expunge.engine.losses import softened_divergence
from expunge.engine.reset import redrawn
from expunge.engine.task import Predictions
from expunge.engine.weights import state_digest
from expunge.forget.method import Given, apply


def said(*logits):
    rows = torch.tensor([logits], dtype=torch.float64)
    return Predictions(rows, torch.tensor([0]), torch.tensor([0]), 1)


def test_golden_loss_is_a_mean_over_records_not_over_classes():
    """0.308994; the public code divides by the 3 classes too and yields 0.102998."""
    got = softened_divergence(said(0.0, 0.0, 0.0), said(1.0, 0.0, -1.0), 1.0).item()
    assert got == pytest.approx(0.308994, abs=1e-6)
    assert got / 3 == pytest.approx(0.102998, abs=1e-6)


def softmax(z):
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_one_step_equals_numpy(linear, temperature):
    """The good teacher is the model itself, so that only forget records pull: 6 of a step's 7."""
    bad = redrawn(linear.model(), Run().stream_seed("bad-teacher"))
    bad_w, bad_b = bad.weight.detach().numpy(), bad.bias.detach().numpy()
    own = softmax((linear.x @ linear.w.T + linear.b) / temperature)
    wanted = softmax((linear.x @ bad_w.T + bad_b) / temperature)
    error = (own - wanted) / temperature / 7
    w, b = linear.apply(
        "bad_teacher",
        {
            "temperature": temperature,
            "schedule": {
                "epochs": 1,
                "lr": 0.2,
                "optimizer": "sgd",
                "momentum": 0.0,
                "order": "mixed",
            },
        },
    )
    np.testing.assert_allclose(w, linear.w - 0.2 * error.T @ linear.x, atol=1e-14)
    np.testing.assert_allclose(b, linear.b - 0.2 * error.sum(0), atol=1e-14)


def test_labels_enter_no_loss(digits_world):
    world = digits_world
    given = Given(world.task, world.forget, world.retain, guard=None)
    zeroed = Given(
        world.task,
        world.forget.replace(y=np.zeros(40, dtype=np.int64)),
        world.retain.replace(y=np.zeros(160, dtype=np.int64)),
        guard=None,
    )
    results = [apply("bad_teacher", world.model, g, Run()).model for g in (given, zeroed)]
    assert state_digest(results[0]) == state_digest(results[1])


def test_a_share_of_the_retain_set_is_drawn_once(digits_world):
    world = digits_world
    rows = sorted(stream(0, "retain-share").permutation(160)[:48].tolist())
    part = Given(world.task, world.forget, world.retain.take(rows), guard=None)
    whole = Given(world.task, world.forget, world.retain, guard=None)
    wanted = apply("bad_teacher", world.model, part, Run(), {"retain_share": 1.0}).model
    got = apply("bad_teacher", world.model, whole, Run(), {"retain_share": 0.3}).model
    assert state_digest(got) == state_digest(wanted)


def test_forgotten_records_are_said_as_the_bad_teacher_says_them(digits_world):
    world = digits_world
    given = Given(world.task, world.forget, world.retain, guard=None)
    settings = {"schedule": {"epochs": 40, "lr": 1e-3}}
    model = apply("bad_teacher", world.model, given, Run(), settings).model
    bad = redrawn(world.model, Run().stream_seed("bad-teacher"))
    batch = world.task.batch(world.forget, range(40))
    with torch.no_grad():
        teacher = world.task.predict(bad, batch)
        before = softened_divergence(teacher, world.task.predict(world.model, batch), 1.0).mean()
        after = softened_divergence(teacher, world.task.predict(model, batch), 1.0).mean()
    assert after < 0.5 * before
