"""EU-k: the last layers start from nothing, and learn the retain set only."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from expunge.core.errors import ConfigError
from expunge.core.run import Run
from expunge.engine.reset import redrawn
from expunge.engine.weights import state_digest
from expunge.forget.method import Given, apply, methods

SCHEDULE = {"epochs": 2, "batch_size": 16, "optimizer": "sgd", "lr": 0.05, "weight_decay": 0.0}


def run(world, model, forget=None, **settings):
    given = Given(world.task, forget or world.forget, world.retain, guard=None)
    return apply("euk", model, given, Run(), {"schedule": SCHEDULE, **settings}).model


def test_it_is_training_of_a_last_layer_that_was_drawn_anew(digits_world):
    world = digits_world
    seed = Run().stream_seed("redrawn")
    drawn = redrawn(world.model, seed, ["2.weight", "2.bias"])
    given = Given(world.task, world.forget, world.retain, guard=None)
    settings = {"scope": {"last_layers": 1}, "schedule": SCHEDULE}
    wanted = apply("finetune", drawn, given, Run(), settings).model
    got = run(world, world.model)
    assert state_digest(got) == state_digest(wanted)
    assert torch.equal(got[0].weight, world.model[0].weight)


def test_what_the_last_layer_knew_does_not_matter(digits_world):
    world = digits_world
    other = copy.deepcopy(world.model)
    with torch.no_grad():
        other[2].weight.fill_(3.0)
        other[2].bias.fill_(-1.0)
    assert state_digest(run(world, other)) == state_digest(run(world, world.model))


def test_over_all_layers_nothing_that_was_learned_matters(digits_world):
    world, scope = digits_world, {"last_layers": None}
    noise = world.forget.replace(x=np.full((40, 64), np.nan, np.float32))
    one = run(world, world.model, scope=scope)
    assert state_digest(run(world, world.fresh(), noise, scope=scope)) == state_digest(one)


def test_a_norm_that_is_drawn_anew_learns_its_statistics_anew(digits_world):
    world = digits_world
    model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
    with torch.no_grad():
        model[1].running_mean.fill_(100.0)
        model[1].num_batches_tracked.fill_(99)
    model = run(world, model, scope={"last_layers": 2})
    assert int(model[1].num_batches_tracked) == 20  # two epochs of ten steps
    assert float(model[1].running_mean.abs().max()) < 50
    frozen = run(world, model, scope={"last_layers": 1})
    assert int(frozen[1].num_batches_tracked) == 20  # before the last layer, so it keeps them


@pytest.mark.parametrize("part", [{"mask": {"by": "saliency"}}, {"lora": {"rank": 2}}])
def test_what_holds_weights_in_place_is_refused(digits_world, part):
    name = next(iter(part))
    with pytest.raises(ConfigError, match=rf"forget.scope.{name} holds weights .* choose cfk"):
        run(digits_world, digits_world.model, scope=part)


def test_more_layers_than_there_are_is_refused(digits_world):
    with pytest.raises(ConfigError, match=r"last_layers = 3 but the model has 2 layers"):
        run(digits_world, digits_world.model, scope={"last_layers": 3})


def test_it_promises_nothing_about_the_layers_before():
    info = methods.get("euk")
    assert (info.guarantee, info.evidence) == ("none", "weights-suppressed")
