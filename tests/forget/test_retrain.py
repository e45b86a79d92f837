"""Retraining depends on the retain set and the untrained model alone."""

import numpy as np
import pytest
import torch

from expunge.core.errors import ConfigError
from expunge.core.run import Run
from expunge.engine.schedule import Schedule
from expunge.engine.weights import state_digest
from expunge.forget.method import Given, apply, methods
from expunge.train.supervised import learn

SCHEDULE = {"epochs": 2, "batch_size": 16, "optimizer": "sgd", "lr": 0.05}


def retrained(world, *, model=None, forget=None):
    given = Given(world.task, forget or world.forget, world.retain, fresh=world.fresh)
    return apply("retrain", model or world.model, given, Run(), {"schedule": SCHEDULE}).model


def test_it_is_ordinary_training_on_the_retain_set(digits_world):
    plain = digits_world.fresh()
    learn(plain, digits_world.task, digits_world.retain, Schedule(**SCHEDULE), Run())
    assert state_digest(retrained(digits_world)) == state_digest(plain)


def test_neither_forget_records_nor_the_trained_model_matter(digits_world):
    expected = state_digest(retrained(digits_world))
    noise = digits_world.forget.replace(x=np.full((40, 64), np.nan, np.float32), y=["?"] * 40)
    assert state_digest(retrained(digits_world, forget=noise)) == expected
    zeroed = digits_world.fresh()
    with torch.no_grad():
        for parameter in zeroed.parameters():
            parameter.zero_()
    assert state_digest(retrained(digits_world, model=zeroed)) == expected


def test_one_step_equals_numpy(linear):
    start = np.random.default_rng(3).normal(size=(4, 3))
    w, _ = linear.apply("retrain", fresh=lambda: linear.model(w=start))
    gw, _ = linear.gradient(linear.kept_x, linear.kept_y, w=start)
    np.testing.assert_allclose(w, start - 0.1 * gw, atol=1e-14)


def test_it_is_the_exact_method():
    assert methods.get("retrain").guarantee == "exact"
    assert all(info.guarantee == "none" for info in methods if info.name != "retrain")


def test_without_the_untrained_model_it_is_refused(digits_world):
    given = Given(digits_world.task, digits_world.forget, digits_world.retain)
    with pytest.raises(ConfigError, match="it needs the model from before training"):
        apply("retrain", digits_world.model, given, Run())
