"""SCRUB: the golden distance, plain numpy steps, and the end of the forget passes."""

import numpy as np
import pytest
import torch

from expunge.core.errors import Interrupted
from expunge.core.run import Budget, Run
from expunge.engine.losses import softened_divergence
from expunge.engine.task import Predictions
from expunge.engine.weights import state_digest
from expunge.forget.method import Given, apply
from expunge.forget.scrub import ScrubConfig


def said(*logits):
    rows = torch.tensor([logits], dtype=torch.float64)
    return Predictions(rows, torch.tensor([0]), torch.tensor([0]), 1)


def test_golden_distance_to_the_teacher():
    """T² KL = 0.331612 for T = 4."""
    got = 16 * softened_divergence(said(0.0, 0.0, 0.0), said(1.0, 0.0, -1.0), 4.0)
    assert got.item() == pytest.approx(0.331612, abs=1e-6)


def test_the_standard_weights_are_the_papers():
    config = ScrubConfig()
    assert (config.gamma, config.alpha, config.temperature) == (0.99, 0.001, 4.0)


class Numpy:
    """SCRUB on a linear softmax classifier with full batches and plain descent."""

    gamma, alpha, temperature, lr = 0.9, 0.5, 2.0, 0.4

    def __init__(self, linear):
        self.linear, self.w, self.b = linear, linear.w, linear.b

    def softened(self, x, w, b):
        logits = (x @ w.T + b) / self.temperature
        p = np.exp(logits - logits.max(1, keepdims=True))
        return p / p.sum(1, keepdims=True)

    def pull(self, x):
        """Gradient of the mean of T² KL(teacher ‖ student)."""
        teacher = self.softened(x, self.linear.w, self.linear.b)
        error = self.temperature * (self.softened(x, self.w, self.b) - teacher) / len(x)
        return error.T @ x, error.sum(0)

    def forget(self):
        gw, gb = self.pull(self.linear.x)
        self.w, self.b = self.w + self.lr * gw, self.b + self.lr * gb

    def retain(self):
        x, y = self.linear.kept_x, self.linear.kept_y
        kw, kb = self.pull(x)
        gw, gb = self.linear.gradient(x, y, w=self.w, b=self.b)
        self.w = self.w - self.lr * (self.gamma * gw + self.alpha * kw)
        self.b = self.b - self.lr * (self.gamma * gb + self.alpha * kb)

    def apply(self, epochs, forget_epochs):
        linear = self.linear
        settings = {
            "forget_epochs": forget_epochs,
            "gamma": self.gamma,
            "alpha": self.alpha,
            "temperature": self.temperature,
            "schedule": {"epochs": epochs, "lr": self.lr, "momentum": 0.0, "weight_decay": 0.0},
        }
        given = Given(linear.task, linear.forget, linear.retain, guard=None)
        return apply("scrub", linear.model(), given, Run(), settings)


def assert_same(model, oracle):
    np.testing.assert_allclose(model.weight.detach().numpy(), oracle.w, atol=1e-13)
    np.testing.assert_allclose(model.bias.detach().numpy(), oracle.b, atol=1e-13)


def test_two_epochs_with_forget_passes_equal_numpy(linear):
    oracle = Numpy(linear)
    result = oracle.apply(epochs=2, forget_epochs=2)
    for _ in range(2):
        oracle.forget()
        oracle.retain()
    assert_same(result.model, oracle)
    assert len(result.history.steps) == 4


def test_after_the_forget_epochs_only_retain_records_are_read(linear):
    oracle = Numpy(linear)
    result = oracle.apply(epochs=4, forget_epochs=2)
    for epoch in range(4):
        if epoch < 2:
            oracle.forget()
        oracle.retain()
    assert_same(result.model, oracle)
    steps = result.history.steps
    assert [step["step"] for step in steps] == [1, 2, 3, 4, 5, 6]
    assert ["forget" in step for step in steps] == [True, False, True, False, False, False]


def test_the_first_forget_pass_has_no_pull(linear):
    """Student and teacher are one at the start."""
    oracle = Numpy(linear)
    result = oracle.apply(epochs=1, forget_epochs=1)
    oracle.retain()
    assert_same(result.model, oracle)


def test_more_forget_epochs_than_epochs_are_all_epochs(linear):
    results = [Numpy(linear).apply(epochs=2, forget_epochs=m).model for m in (2, 9)]
    assert state_digest(results[0]) == state_digest(results[1])


@pytest.mark.parametrize("at", [4, 14])
def test_it_resumes_in_either_loop_with_the_same_bits(digits_world, tmp_path, at):
    """One epoch with a forget pass has 13 steps; later ones, of which there are three, have 10."""
    world = digits_world
    given = Given(world.task, world.forget, world.retain)
    schedule = {"epochs": 4, "batch_size": 16, "lr": 0.01}
    settings = {"forget_epochs": 1, "schedule": schedule}
    whole = state_digest(apply("scrub", world.model, given, Run(), settings).model)
    run = Run(folder=tmp_path, budget=Budget(max_steps=at), checkpoint_every=3)
    with pytest.raises(Interrupted):
        apply("scrub", world.model, given, run, settings)
    again = apply("scrub", world.model, given, Run(folder=tmp_path), settings)
    assert state_digest(again.model) == whole
    assert len(again.history.steps) == 13 + 30
