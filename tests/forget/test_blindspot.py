import dataclasses
import functools
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from expunge.core.errors import ConfigError, UnsupportedModelError
from expunge.core.run import Run
from expunge.engine.tasks.regressor import Regressor
from expunge.engine.weights import state_digest
from expunge.forget.blindspot import attention_distance
from expunge.forget.method import Given, apply

X = torch.tensor([[[[3.0, 0.0], [0.0, 4.0]]]])
Y = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])


def test_the_batch_loss_has_the_cards_value() -> None:
    """Outputs 10, 20, 30; blind outputs 12, 26, 33; the first two forgotten; retain target 50."""
    loss = Regressor()._loss_B
    outputs, blind = torch.tensor([[10.0], [20.0]]), torch.tensor([[12.0], [26.0]])
    own, wanted = {"a": torch.cat([X, X])}, {"a": torch.cat([Y, X])}
    forget_B = loss(outputs, blind) + 50 * attention_distance(own, wanted, ["a"])
    assert float(forget_B.mean()) == pytest.approx(4.46294975, abs=1e-5)
    retain_B = loss(torch.tensor([[30.0]]), torch.tensor([[50.0]]))
    assert float(torch.cat([forget_B, retain_B]).mean()) == pytest.approx(9.64196682, abs=1e-5)


def given(world, **changes):
    whole = Given(world.task, world.forget, world.retain, fresh=world.fresh)
    return dataclasses.replace(whole, **changes)


FAST = {"blind": {"schedule": {"epochs": 2, "batch_size": 32}}, "schedule": {"batch_size": 32}}


def test_forgotten_targets_are_not_read(heights_world) -> None:
    shuffled = heights_world.forget.replace(y=[1e6] * len(heights_world.forget))
    found = [
        apply("blindspot", heights_world.model, given(heights_world, forget=forget), Run(), FAST)
        for forget in (heights_world.forget, shuffled)
    ]
    assert state_digest(found[0].model) == state_digest(found[1].model)


def test_outputs_on_the_forget_set_move_to_the_blind_networks(heights_world) -> None:
    """With no attention term and many epochs the model says there what a network says that learned
    the retain set as the blind one does."""
    from expunge.engine.schedule import Schedule
    from expunge.train.supervised import learn

    settings = {
        "weight": 0.0,
        "blind": {"schedule": {"epochs": 10, "batch_size": 32}},
        "schedule": {"batch_size": 32, "epochs": 100, "lr": 1e-2},
    }
    offered = given(heights_world, guard=None)
    result = apply("blindspot", heights_world.model, offered, Run(), settings).model
    world, blind = heights_world, heights_world.fresh()
    schedule = Schedule(epochs=10, batch_size=32, lr=1e-2, weight_decay=0.0)
    learn(blind, world.task, world.retain, schedule, Run())
    x = torch.as_tensor(np.stack(list(world.forget["x"])))
    with torch.no_grad():
        start, end = ((m(x) - blind(x)).abs().mean() for m in (world.model, result))
    assert end < 0.7 * start


def test_quantiles_and_vectors_are_served(heights_world) -> None:
    rows = heights_world.forget.take(range(8))
    kept = heights_world.retain.take(range(12))

    def network(size):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, size))

    quantiles = Regressor(loss="quantile", quantiles=(0.1, 0.5, 0.9))
    vector = Regressor(2, loss="mse")

    def pairs(records):
        return records.replace(y=[[value, -value] for value in records["y"]])

    for task, forget, retain, size in (
        (quantiles, rows, kept, 3),
        (vector, pairs(rows), pairs(kept), 2),
    ):
        offered = Given(task, forget, retain, fresh=functools.partial(network, size))
        after = apply("blindspot", network(size), offered, Run(), FAST).model
        assert state_digest(after) != state_digest(network(size))


def test_a_negative_weight_and_an_unknown_layer_are_refused(heights_world) -> None:
    with pytest.raises(ConfigError, match="weight"):
        apply("blindspot", heights_world.model, given(heights_world), Run(), {"weight": -1})
    with pytest.raises(ConfigError, match="no layer 'first'"):
        apply("blindspot", heights_world.model, given(heights_world), Run(), {"layers": ["first"]})


def test_another_architecture_for_the_blind_network_is_refused(heights_world) -> None:
    def other():
        return nn.Sequential(nn.Linear(64, 31), nn.ReLU(), nn.Linear(31, 1))

    with pytest.raises(UnsupportedModelError, match="outputs of one shape"):
        apply("blindspot", heights_world.model, given(heights_world, fresh=other), Run(), FAST)


def test_forgetting_nearly_everything_warns(heights_world) -> None:
    few = heights_world.retain.take(range(5))
    with pytest.warns(UserWarning, match="retraining on the rest is cheaper"):
        apply("blindspot", heights_world.model, given(heights_world, retain=few), Run(), FAST)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apply("blindspot", heights_world.model, given(heights_world), Run(), FAST)
