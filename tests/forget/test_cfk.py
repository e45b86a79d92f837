"""CF-k: the last layers move, all before them is frozen and quiet."""

import copy

import pytest
import torch
from torch import nn

from expunge.core.errors import ConfigError
from expunge.core.run import Run
from expunge.engine.weights import state_digest
from expunge.forget.cfk import frozen_prefix
from expunge.forget.method import Given, apply

SCHEDULE = {"epochs": 2, "batch_size": 16, "lr": 0.05}


class Noting(nn.Identity):
    """Notes the mode that it is run in."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def forward(self, x):
        self.seen.add(self.training)
        return x


def deep(world):
    """The digits network with noise, batch norm and notes before and after its first layer."""
    first, _, last = copy.deepcopy(world.model)
    return nn.Sequential(
        first, nn.BatchNorm1d(32), nn.Sequential(Noting(), nn.Dropout(0.5)), last, Noting()
    )


def run(world, model, method="cfk", **settings):
    given = Given(world.task, world.forget, world.retain, guard=None)
    return apply(method, model, given, Run(), {"schedule": SCHEDULE, **settings}).model


def test_the_last_layer_alone_moves(digits_world):
    model = run(digits_world, digits_world.model)
    before, after = digits_world.model.state_dict(), model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"2.weight", "2.bias"}


def test_it_is_finetuning_of_the_last_layer(digits_world):
    plain = run(digits_world, digits_world.model, "finetune", scope={"last_layers": 1})
    assert state_digest(run(digits_world, digits_world.model)) == state_digest(plain)


def test_all_layers_are_plain_finetuning(digits_world):
    plain = run(digits_world, digits_world.model, "finetune")
    whole = run(digits_world, digits_world.model, scope={"last_layers": None})
    assert state_digest(whole) == state_digest(plain)


def test_layers_before_the_moving_ones_are_run_in_eval_mode(digits_world):
    """Even where statistics may move; what lies behind trains as ever."""
    model = deep(digits_world)
    schedule = {**SCHEDULE, "freeze_norm_statistics": False}
    given = Given(digits_world.task, digits_world.forget, digits_world.retain, guard=None)
    settings = {"schedule": schedule}
    result = apply("cfk", model, given, Run(), settings, in_place=True).model
    assert result[2][0].seen == {False}
    assert result[4].seen == {True}
    assert int(result[1].num_batches_tracked) == 0
    assert all(module.training for module in result.modules())  # as it was before


def test_the_prefix_is_all_that_comes_before_the_first_moving_weight(digits_world):
    model = deep(digits_world).requires_grad_(False)
    model[3].weight.requires_grad_(True)
    assert frozen_prefix(model) == [model[0], model[1], model[2], model[2][0], model[2][1]]
    model[0].bias.requires_grad_(True)
    assert frozen_prefix(model) == []


def test_more_layers_than_there_are_is_refused(digits_world):
    with pytest.raises(ConfigError, match=r"last_layers = 3 but the model has 2 layers"):
        run(digits_world, digits_world.model, scope={"last_layers": 3})
