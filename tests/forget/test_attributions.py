"""Integrated gradients: golden values, and the tokens of an answer."""

import copy
import dataclasses
import importlib.util

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from expunge.core.errors import ConfigError, DataError, UnsupportedModelError
from expunge.engine.weights import state_digest
from expunge.forget.attributions import (
    answer_attributions,
    integrated_gradients,
    require_captum,
    widened,
)

POINT = torch.tensor([[2.0, 3.0]], dtype=torch.float64)


def product(z):
    return z[:, 0] * z[:, 1]


def cubes(z):
    return (z**3).sum(1)


@pytest.mark.parametrize("steps", [2, 8, 32])
def test_golden_product(steps):
    """Reference value 2 of the card: exact on any symmetric grid."""
    found, error = integrated_gradients(product, POINT, torch.zeros_like(POINT), steps)
    np.testing.assert_allclose(found.numpy(), [[3.0, 3.0]], atol=1e-6)
    assert error == pytest.approx(0, abs=1e-6)


def test_golden_cubes():
    """Reference value 2 of the card: midpoints with 32 points."""
    found, error = integrated_gradients(cubes, POINT, torch.zeros_like(POINT), 32)
    np.testing.assert_allclose(found.numpy(), [[7.9980, 26.9934]], atol=6e-5)
    assert error == pytest.approx(-0.0085, abs=6e-5)


@pytest.mark.parametrize(("steps", "off"), [(32, 0.5645), (8, 2.5)])
def test_the_official_grid_is_further_off(steps, off):
    """Equal weights at both ends and between: the card's +0.5645 and +2.5."""
    alphas = np.linspace(0, 1, steps)
    official = sum(float((3 * (alphas * z) ** 2).mean() * z) for z in (2, 3))
    assert official - 35 == pytest.approx(off, abs=6e-5)
    _, error = integrated_gradients(cubes, POINT, torch.zeros_like(POINT), steps)
    assert abs(error) < off / 10


@given(st.lists(st.floats(-3, 3), min_size=6, max_size=6), st.integers(2, 20))
def test_midpoints_by_hand(numbers, steps):
    point, start = torch.tensor(numbers, dtype=torch.float64).reshape(2, 1, 3)
    found, error = integrated_gradients(cubes, point, start, steps)
    p, s = point.numpy(), start.numpy()
    alphas = (np.arange(steps) + 0.5) / steps
    way = s + alphas[:, None] * (p - s)
    by_hand = (p - s) * (3 * way**2).mean(0)
    np.testing.assert_allclose(found.numpy(), by_hand, atol=1e-5)
    rise = (p**3).sum() - (s**3).sum()
    assert error == pytest.approx(float(by_hand.sum() - rise), abs=1e-4)


# --- answers ---


@pytest.fixture
def asked(questions_world):
    """The task, its model, and a batch of one record with an answer of four words."""
    world = questions_world
    return world.task, world.model, world.task.batch(world.forget, [0])


def test_scores_are_those_of_the_answers_tokens_and_nearly_add_up(asked):
    task, model, batch = asked
    found = answer_attributions(model, task, batch, 200, "pad", task.tokenizer.eos_token_id)
    assert found.scores_T.shape == (len(batch.targets_N),)
    layer = model.get_input_embeddings()
    with torch.no_grad():
        whole = -float(task.predict(model, batch).nll_B())
        ids = batch.inputs["input_ids"].clone()
        ids[:, -len(batch.targets_N) :] = task.tokenizer.eos_token_id
        start = layer(ids)
        handle = layer.register_forward_hook(lambda *_: start)
        empty = -float(task.predict(model, batch).nll_B())
        handle.remove()
    rise = whole - empty
    assert found.scores_T.sum() - found.error == pytest.approx(rise, abs=1e-3)
    assert abs(found.error) < 0.02 * rise


def test_the_end_of_text_explains_nothing(asked):
    """Nothing is predicted from it."""
    task, model, batch = asked
    found = answer_attributions(model, task, batch, 8, "pad", 0)
    assert found.scores_T[-1] == 0
    assert np.abs(found.scores_T[:-1]).min() > 0


def test_baselines_differ(asked):
    task, model, batch = asked
    zero, pad = (answer_attributions(model, task, batch, 8, b, 1).scores_T for b in ("zero", "pad"))
    assert np.abs(zero - pad).max() > 0.01


def test_a_model_is_left_as_it_was(asked):
    task, model, batch = asked
    model = copy.deepcopy(model).train()
    digest = state_digest(model)
    answer_attributions(model, task, batch, 4, "zero", 0)
    assert state_digest(model) == digest
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.get_input_embeddings()._forward_hooks


def test_an_answer_without_tokens_is_refused(asked):
    task, model, batch = asked
    empty = dataclasses.replace(batch, positions=torch.zeros_like(batch.positions))
    with pytest.raises(DataError, match="question-0 has no answer token to attribute"):
        answer_attributions(model, task, empty, 4, "zero", 0)


def test_a_model_without_input_embeddings_is_refused(asked):
    task, _, batch = asked
    with pytest.raises(UnsupportedModelError, match="Linear has no input embeddings"):
        answer_attributions(nn.Linear(2, 2), task, batch, 4, "zero", 0)


def test_half_precision_is_widened_in_a_copy():
    half = nn.Linear(2, 2).to(torch.bfloat16)
    wide = widened(half)
    assert wide.weight.dtype == torch.float32
    assert half.weight.dtype == torch.bfloat16
    assert widened(wide) is wide
    double = nn.Linear(2, 2).double()
    assert widened(double) is double


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"this needs captum; .* pip install 'expunge\[concept\]'"
    ):
        require_captum("this")
