"""Modes are restored exactly, whatever happens in the block."""

import pytest
import torch
from torch import nn

from expunge.engine.modes import evaluating, training


@pytest.fixture
def model():
    made = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2))
    made.train()
    made[2].eval()  # a mixture that neither train() nor eval() would restore
    return made


def modes(model):
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("block", [evaluating, lambda m: training(m, freeze_statistics=True)])
def test_modes_are_restored_after_success_and_error(model, block):
    before = modes(model)
    with block(model):
        assert modes(model) != before
    assert modes(model) == before
    with pytest.raises(KeyError), block(model):
        raise KeyError
    assert modes(model) == before


def test_training_freezes_batch_norm_alone(model):
    with training(model, freeze_statistics=True):
        assert modes(model) == [True, True, False, True, True]
    with training(model, freeze_statistics=False):
        assert modes(model) == [True] * 5


def test_statistics_move_only_when_not_frozen(model):
    x = torch.arange(8.0).reshape(4, 2)
    start = model[1].running_mean.clone()
    with training(model, freeze_statistics=True):
        model(x)
    assert torch.equal(model[1].running_mean, start)
    with training(model, freeze_statistics=False):
        model(x)
    assert not torch.equal(model[1].running_mean, start)
