"""Learning rate and optimiser follow from the settings; literals are worked out by hand."""

import math

import pytest
import torch
from torch import nn

from expunge.core.config import parse
from expunge.core.errors import ConfigError
from expunge.engine.schedule import Schedule, learning_rate, make_optimizer


def rates(steps_per_epoch, **settings):
    schedule = Schedule(lr=1.0, **settings)
    total = schedule.epochs * steps_per_epoch
    return [learning_rate(schedule, step, steps_per_epoch) for step in range(total)]


def test_constant():
    assert rates(2, epochs=3) == [1.0] * 6


def test_linear_warm_up_over_one_epoch_then_linear_decay():
    # 4 warm-up steps to the peak, then 4 steps of 1 - t/4.
    expected = [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert rates(4, epochs=2, warmup_epochs=1, decay="linear") == pytest.approx(expected)


def test_cosine():
    expected = [1.0, 0.5 * (1 + math.cos(math.pi / 4)), 0.5, 0.5 * (1 - math.cos(math.pi / 4))]
    assert rates(1, epochs=4, decay="cosine") == pytest.approx(expected)


def test_warm_up_of_part_of_an_epoch_and_longer_than_the_run():
    assert rates(4, epochs=1, warmup_epochs=0.5) == [0.5, 1.0, 1.0, 1.0]
    assert rates(2, epochs=1, warmup_epochs=2) == [0.25, 0.5]


def test_optimisers_take_their_settings():
    parameters = [nn.Parameter(torch.zeros(2))]
    adam = make_optimizer(Schedule(lr=0.3, weight_decay=0.2), parameters)
    assert isinstance(adam, torch.optim.AdamW)
    assert (adam.defaults["lr"], adam.defaults["weight_decay"]) == (0.3, 0.2)
    sgd = make_optimizer(Schedule(optimizer="sgd", momentum=0.7), parameters)
    assert isinstance(sgd, torch.optim.SGD)
    assert sgd.defaults["momentum"] == 0.7


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"lr": 0.0}, "lr"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"micro_batch": 0}, "micro_batch"),
        ({"momentum": 1.0}, "momentum"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"order": "random"}, "order"),
        ({"precision": "float16"}, "precision"),
        ({"lr": float("nan")}, "finite"),
    ],
)
def test_values_out_of_range_are_refused_by_name(settings, named):
    with pytest.raises(ConfigError, match=named):
        parse(Schedule, settings, "schedule")
