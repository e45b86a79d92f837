"""Task vectors: θ - α (θ_ft - θ) for every weight, to the last bit but one."""

import copy

import numpy as np
import pytest
import torch

from expunge.core.config import parse
from expunge.core.errors import ConfigError
from expunge.core.run import Run
from expunge.engine.loop import Stream, fit
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope
from expunge.forget.method import Given, apply, methods
from expunge.forget.task_vector import TaskVectorConfig
from expunge.train.supervised import likelihood


def taught(world, schedule, scope=None):
    """Return the model trained further on the forget set."""
    model = copy.deepcopy(world.model)
    terms = [likelihood(world.task, "forget")]
    streams = {"forget": Stream(world.forget)}
    fit(model, world.task, streams, terms, Schedule(**schedule), Run(), scope=scope)
    return dict(model.named_parameters())


def assert_formula(new, old, learned, alpha):
    """Compare with double precision: a product that is fused with a sum rounds once less."""
    new, old, learned = (p.detach().double() for p in (new, old, learned))
    expected = old - alpha * (learned - old)
    largest = torch.stack([expected, old, alpha * learned, alpha * old]).abs().amax(0)
    assert ((new - expected).abs() <= 2 * torch.finfo(torch.float32).eps * largest).all()


@pytest.mark.parametrize("alpha", [0.5, 1.0, 5.0])
@pytest.mark.parametrize("world", ["digits_world", "questions_world"])
def test_every_weight_is_that_of_the_formula(world, alpha, request):
    world = request.getfixturevalue(world)
    schedule = {"epochs": 2, "batch_size": 4, "lr": 3e-3}
    learned = taught(world, schedule)
    given = Given(world.task, world.forget)
    settings = {"alpha": alpha, "schedule": schedule}
    result = apply("task_vector", world.model, given, Run(), settings)
    new = dict(result.model.named_parameters())
    for name, old in world.model.named_parameters():
        assert_formula(new[name], old, learned[name], alpha)
        assert not torch.equal(new[name], old), name


def test_one_step_of_teaching_equals_numpy(linear):
    """θ_ft = θ - lr g, so that the result is θ + α lr g: gradient ascent."""
    gw, gb = linear.gradient(linear.x, linear.y)
    w, b = linear.apply("task_vector", {"alpha": 3.0}, lr=0.1)
    np.testing.assert_allclose(w, linear.w + 3.0 * 0.1 * gw, atol=1e-14)
    np.testing.assert_allclose(b, linear.b + 3.0 * 0.1 * gb, atol=1e-14)


def test_weights_outside_the_scope_keep_their_bits(digits_world):
    world = digits_world
    given = Given(world.task, world.forget)
    settings = {"scope": {"patterns": ["2.*"]}, "schedule": {"lr": 1e-3, "weight_decay": 0.1}}
    after = apply("task_vector", world.model, given, Run(), settings).model.state_dict()
    before = world.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"2.weight", "2.bias"}


def test_adapters_are_merged_before_the_difference_is_taken(questions_world):
    world = questions_world
    schedule = {"epochs": 3, "lr": 1e-2}
    scope = {"lora": {"rank": 2, "targets": ["*q_proj"]}}
    learned = taught(world, schedule, parse(Scope, scope, "scope"))
    given = Given(world.task, world.forget)
    settings = {"alpha": 2.0, "schedule": schedule, "scope": scope}
    new = dict(apply("task_vector", world.model, given, Run(), settings).model.named_parameters())
    for name, old in world.model.named_parameters():
        assert_formula(new[name], old, learned[name], 2.0)
        assert torch.equal(new[name], old) != ("q_proj" in name)


def test_the_further_back_the_more_is_forgotten(questions_world):
    world = questions_world
    batch = world.task.batch(world.forget, range(len(world.forget)))
    losses = []
    for alpha in (0.25, 0.5, 1.0, 2.0):
        settings = {"alpha": alpha, "schedule": {"epochs": 10, "lr": 3e-3}}
        given = Given(world.task, world.forget)
        model = apply("task_vector", world.model, given, Run(), settings).model
        losses.append(float(world.task.predict(model, batch).nll_B().detach().mean()))
    assert losses == sorted(losses)
    assert losses[-1] > losses[0] + 0.1


def test_no_retain_records_are_read_and_alpha_is_positive():
    assert methods.get("task_vector").needs(TaskVectorConfig()) == {"forget", "labels"}
    with pytest.raises(ConfigError, match="alpha = 0"):
        parse(TaskVectorConfig, {"alpha": 0}, "task_vector")
