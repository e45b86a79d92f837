"""Sign SGD: steps of one length, in the loop and across a stop."""

import copy

import pytest
import torch
from torch import nn

from expunge.core.errors import Interrupted
from expunge.core.run import Budget, Run
from expunge.engine.schedule import Schedule, make_optimizer
from expunge.engine.sign_sgd import SignSgd
from expunge.engine.weights import state_digest
from expunge.train.supervised import learn

SCHEDULE = Schedule(epochs=2, batch_size=40, optimizer="sign_sgd", lr=1e-3)


def test_a_step_moves_every_weight_by_lr_and_one_without_gradient_not_at_all():
    # Worst-case forget sets, reference values: sign step with step size 0.1.
    weight, still = nn.Parameter(torch.tensor([1.0, -1.0, 0.5])), nn.Parameter(torch.ones(1))
    optimizer = make_optimizer(SCHEDULE, [weight, still])
    assert isinstance(optimizer, SignSgd)
    weight.grad = torch.tensor([0.2, 0.0, -3.0])
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    optimizer.step()
    torch.testing.assert_close(weight.data, torch.tensor([0.9, -1.0, 0.6]))
    assert still.item() == 1.0


def test_in_the_loop_no_weight_moves_further_than_the_steps_taken(digits_world):
    model = copy.deepcopy(digits_world.model)
    history = learn(model, digits_world.task, digits_world.retain, SCHEDULE, Run())
    assert len(history.steps) == 8
    moved = [
        (after - before).abs().max().item()
        for after, before in zip(model.parameters(), digits_world.model.parameters(), strict=True)
    ]
    assert max(moved) == pytest.approx(8e-3, rel=1e-3)


def test_a_stopped_loop_goes_on_to_the_same_bits(digits_world, tmp_path):
    whole, stopped = copy.deepcopy(digits_world.model), copy.deepcopy(digits_world.model)
    learn(whole, digits_world.task, digits_world.retain, SCHEDULE, Run())
    short = Run(folder=tmp_path, budget=Budget(max_steps=3))
    with pytest.raises(Interrupted):
        learn(stopped, digits_world.task, digits_world.retain, SCHEDULE, short)
    again = copy.deepcopy(digits_world.model)
    learn(again, digits_world.task, digits_world.retain, SCHEDULE, Run(folder=tmp_path))
    assert state_digest(again) == state_digest(whole)
