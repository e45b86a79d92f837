"""SalUn-soft: the soft threshold towards the weights of the start, in plain numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge.core.run import Run
from expunge.engine.weights import state_digest
from expunge.forget.method import Given, apply
from expunge.forget.salun_soft import pull_back, soft_threshold

FLOATS = st.floats(-10, 10, allow_subnormal=False)


def test_a_value_comes_nearer_to_zero_by_the_threshold_and_no_further():
    values = torch.tensor([-3.0, 1.0, 0.5, 2.0, 0.0])
    assert soft_threshold(values, 1.0).tolist() == [-2.0, 0.0, 0.0, 1.0, 0.0]


def by_hand(weights, start, rho, done):
    """The rule over one flat vector: everything at or below the k-th smallest change goes back."""
    change = weights - start
    rank = int(np.floor(rho * (1 - done) * len(change)))
    if rank == 0:
        return weights
    threshold = np.sort(np.abs(change))[rank - 1]
    return start + np.sign(change) * np.maximum(np.abs(change) - threshold, 0)


@given(
    pairs=st.lists(st.tuples(FLOATS, FLOATS), min_size=1, max_size=30),
    rho=st.floats(0, 1),
    done=st.floats(0, 1, exclude_max=True),
)
def test_the_rank_is_over_all_tensors_together(pairs, rho, done):
    weights, start = (np.array(part) for part in zip(*pairs, strict=True))
    cut = len(pairs) // 2
    now, before = (
        {"a": torch.tensor(v[:cut]), "b": torch.tensor(v[cut:])} for v in (weights, start)
    )
    pull_back(rho)(now, before, done)
    found = torch.cat([now["a"], now["b"]]).numpy()
    np.testing.assert_allclose(found, by_hand(weights, start, rho, done), atol=1e-12)


def test_two_steps_equal_numpy(linear):
    """One step on wrong labels (ρ = 0.5), one on true ones (ρ = 0.25), both towards the start."""
    lr, wrong = 0.1, np.array(linear.task.neutral(linear.forget, 0, 0)["y"])
    start = np.concatenate([linear.w.ravel(), linear.b])

    def step(vector, x, y, done):
        w, b = vector[:12].reshape(4, 3), vector[12:]
        gw, gb = linear.gradient(x, y, w=w, b=b)
        moved = vector - lr * np.concatenate([gw.ravel(), gb])
        return by_hand(moved, start, 0.5, done)

    expected = step(step(start, linear.x, wrong, 0.0), linear.kept_x, linear.kept_y, 0.5)
    got_w, got_b = linear.apply("salun_soft", {"rho": 0.5}, lr=lr)
    np.testing.assert_allclose(np.concatenate([got_w.ravel(), got_b]), expected, atol=1e-14)
    assert int((got_w == linear.w).sum() + (got_b == linear.b).sum()) >= 4


def test_weights_that_are_put_back_have_the_bits_of_the_original():
    start = {"w": torch.tensor([0.1, 0.2, 0.3, 0.4]).double() / 3}
    now = {"w": start["w"] + torch.tensor([1e-17, 1e-9, -1e-3, 0.5]).double()}
    pull_back(0.5)(now, start, 0.0)
    assert torch.equal(now["w"][:2], start["w"][:2])
    assert bool((now["w"][2:] != start["w"][2:]).all())


def test_without_a_share_it_is_random_labelling_exactly(digits_world):
    world = digits_world
    given = Given(world.task, world.forget, world.retain)
    soft = apply("salun_soft", world.model, given, Run(), {"rho": 0.0})
    plain = apply("random_label", world.model, given, Run())
    assert state_digest(soft.model) == state_digest(plain.model)


def test_a_larger_share_stays_nearer_to_the_original(digits_world):
    world = digits_world
    given = Given(world.task, world.forget, world.retain)

    def distance(rho):
        result = apply("salun_soft", world.model, given, Run(), {"rho": rho})
        pairs = zip(result.model.parameters(), world.model.parameters(), strict=True)
        return sum(float((a - b).detach().abs().sum()) for a, b in pairs)

    distances = [distance(rho) for rho in (0.0, 0.5, 1.0)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.9 * distances[0]


def test_a_share_above_one_is_refused(digits_world):
    world = digits_world
    given = Given(world.task, world.forget, world.retain)
    with pytest.raises(ValueError, match=r"rho.*less than or equal to 1"):
        apply("salun_soft", world.model, given, Run(), {"rho": 1.5})
