"""Influence against a dense solution by numpy, on golden values and on whole models."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from expunge.core.errors import Interrupted, NumericalError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.core.streams import stream
from expunge.data.dataset import Dataset
from expunge.forget.influence import damped_solve
from expunge.forget.method import Given, apply
from expunge.models.source import load_model_source


def fisher(gradients):
    """Return u -> 1/n Σ g (g · u)."""
    rows = torch.tensor(gradients, dtype=torch.float64)
    return lambda u: rows.T @ (rows @ u) / len(rows)


def test_golden_inverse_fisher_product():
    """(0.375, 1.125); the public recursion yields (-0.25, 2.0) here."""
    product = fisher([(1, 0), (0, 1), (1, 1)])
    got = damped_solve(product, torch.tensor([1.0, 2.0], dtype=torch.float64), 1.0)
    np.testing.assert_allclose(got.numpy(), [0.375, 1.125], atol=1e-12)


numbers = st.floats(-3, 3)


@given(
    gradients=arrays(float, (5, 4), elements=numbers),
    vector=arrays(float, 4, elements=numbers),
    damping=st.floats(0.01, 10),
)
def test_it_is_the_damped_inverse_whatever_the_gradients(gradients, vector, damping):
    got = damped_solve(
        fisher(gradients), torch.from_numpy(vector), damping, tolerance=1e-10
    ).numpy()
    matrix = gradients.T @ gradients / 5 + damping * np.eye(4)
    np.testing.assert_allclose(matrix @ got, vector, atol=1e-9 * (1 + np.abs(vector).max()))


def test_an_unfinished_solution_is_an_error_that_names_the_remedy():
    vector = torch.tensor([1.0, 2.0], dtype=torch.float64)
    with pytest.raises(NumericalError, match=r"off by .* raise forget.damping \(now 0.001\)"):
        damped_solve(fisher([(1, 0), (0, 1), (1, 1)]), vector, 1e-3, max_iterations=1)


class Small:
    """A linear softmax classifier with 6 forget and 8 retained records, and its dense oracle."""

    def __init__(self, linear):
        draw = np.random.default_rng(5)
        self.linear = linear
        self.x, self.y = draw.normal(size=(8, 3)), draw.integers(4, size=8)
        self.retain = Records(tuple("stuvwxyz"), {"x": self.x, "y": self.y})

    def flat(self, x, y):
        return np.concatenate([part.ravel() for part in self.linear.gradient(x, y)])

    def change(self, alpha, damping, rows=range(8)):
        """Return α (F + λI)^-1 v by a dense solve."""
        linear = self.linear
        v = self.flat(linear.x, linear.y) - self.flat(self.x, self.y)
        v *= 6 / 14
        g = np.stack([self.flat(self.x[[i]], self.y[[i]]) for i in rows])
        return alpha * np.linalg.solve(g.T @ g / len(g) + damping * np.eye(g.shape[1]), v)

    def apply(self, **settings):
        linear = self.linear
        given = Given(linear.task, linear.forget, self.retain)
        settings = {"tolerance": 1e-12, **settings}
        model = apply("influence", linear.model(), given, Run(), settings).model
        w, b = model.weight.detach().numpy(), model.bias.detach().numpy()
        return np.concatenate([(w - linear.w).ravel(), b - linear.b])


@pytest.fixture
def small(linear):
    return Small(linear)


@pytest.mark.parametrize("damping", [1.0, 0.01])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_whole_change_equals_a_dense_solution(small, damping, batch_size):
    got = small.apply(alpha=2.0, damping=damping, batch_size=batch_size)
    np.testing.assert_allclose(got, small.change(2.0, damping), atol=1e-9)


def test_the_fisher_matrix_is_averaged_over_a_drawn_part(small):
    rows = stream(0, "fisher").permutation(8)[:3]
    got = small.apply(alpha=1.0, damping=0.1, fisher_records=3)
    np.testing.assert_allclose(got, small.change(1.0, 0.1, rows), atol=1e-9)
    assert np.abs(got - small.change(1.0, 0.1)).max() > 1e-3


def test_huge_damping_is_a_plain_gradient_step(small):
    got = small.apply(alpha=1e6, damping=1e6)
    v = small.flat(small.linear.x, small.linear.y) - small.flat(small.x, small.y)
    np.testing.assert_allclose(got, v * 6 / 14, atol=1e-5)


def test_a_mask_takes_part_of_the_change(small):
    got = small.apply(alpha=1.0, scope={"mask": {"by": "saliency", "fraction": 0.5}}, damping=0.1)
    whole = small.change(1.0, 0.1)
    assert (got != 0).sum() == 8
    np.testing.assert_allclose(got[got != 0], whole[got != 0], atol=1e-9)


def test_deep_models_and_scopes_equal_a_dense_solution(digits_world):
    world = digits_world
    model = copy.deepcopy(world.model).double()
    given = Given(world.task, world.forget, world.retain.take(range(30)))
    settings = {"scope": {"patterns": ["0.*"]}, "tolerance": 1e-10, "damping": 0.5, "alpha": 1.0}
    result = apply("influence", model, given, Run(), settings).model
    moving = list(model[0].parameters())

    def gradients(records):
        batch = world.task.batch(records, range(len(records)))
        rows = [
            torch.autograd.grad(value, moving, retain_graph=True)
            for value in world.task.predict(model, batch).nll_B()
        ]
        return np.stack([torch.cat([g.flatten() for g in row]).numpy() for row in rows])

    g = gradients(given.retain)
    v = 40 / 70 * (gradients(given.forget).mean(0) - g.mean(0))
    wanted = np.linalg.solve(g.T @ g / 30 + 0.5 * np.eye(g.shape[1]), v)
    got = torch.cat(
        [(b - a).detach().flatten() for a, b in zip(moving, result[0].parameters(), strict=True)]
    )
    np.testing.assert_allclose(got.numpy(), wanted, atol=1e-8)
    assert torch.equal(result[2].weight, model[2].weight)


def test_attention_has_the_second_derivatives_that_the_fisher_product_takes():
    """A vision transformer moves, and little at a tiny α."""
    draw = np.random.default_rng(0)
    x, y = draw.random((12, 1, 8, 8)).astype(np.float32), draw.integers(3, size=12)
    records = Records(tuple(f"r{i}" for i in range(12)), {"x": x, "y": y})
    none = records.take([])
    facts = {"input_shape": [1, 8, 8], "num_classes": 3}
    dataset = Dataset("classifier", records, none, none, facts=facts)
    loaded = load_model_source("vit", {"dim": 8, "depth": 1, "heads": 2, "mlp": 8}, dataset, 0)
    given = Given(loaded.task, records.take(range(4)), records.take(range(4, 12)))
    result = apply("influence", loaded.model, given, Run(), {"alpha": 1e-3}).model
    pairs = zip(result.parameters(), loaded.model.parameters(), strict=True)
    largest = max(float((a - b).detach().abs().max()) for a, b in pairs)
    assert 0 < largest < 0.1


def test_inputs_that_are_no_numbers_are_refused(linear):
    broken = linear.forget.replace(x=np.full((6, 3), np.nan))
    given = Given(linear.task, broken, linear.retain)
    with pytest.raises(NumericalError, match="forget or retain records is NaN or infinite"):
        apply("influence", linear.model(), given, Run())


def test_it_can_be_cancelled(linear):
    run = Run()
    run.cancel()
    with pytest.raises(Interrupted, match="cancelled"):
        apply("influence", linear.model(), Given(linear.task, linear.forget, linear.retain), run)
