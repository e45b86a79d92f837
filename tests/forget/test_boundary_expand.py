"""Boundary expanding against a network that has the further class for real."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from expunge.core.errors import UnsupportedModelError
from expunge.core.run import Run
from expunge.engine.tasks.classifier import Classifier
from expunge.forget.method import Given, apply

STEPS = {"epochs": 2, "lr": 0.3, "momentum": 0.9, "weight_decay": 0.01, "batch_size": 64}


def network(*, bias=True):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4, bias=bias)).double()


def expanded(linear, model):
    return apply(
        "boundary_expand",
        model,
        Given(linear.task, linear.forget, guard=None),
        Run(),
        {"schedule": STEPS},
    ).model


def oracle(linear, model):
    """Train a network with five outputs by torch alone, and take its first four."""
    wide = copy.deepcopy(model)
    old, new = model[2], nn.Linear(5, 5, bias=model[2].bias is not None).double()
    generator = torch.Generator().manual_seed(Run().stream_seed("expanded-class"))
    drawn = (2 * torch.rand((1, 5), generator=generator) - 1) * 5**-0.5
    with torch.no_grad():
        new.weight.copy_(torch.cat([old.weight, drawn.double()]))
        if old.bias is not None:
            extra = (2 * torch.rand(1, generator=generator) - 1) * 5**-0.5
            new.bias.copy_(torch.cat([old.bias, extra.double()]))
    wide[2] = new
    optimizer = torch.optim.SGD(wide.parameters(), lr=0.3, momentum=0.9, weight_decay=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(wide(torch.from_numpy(linear.x)), torch.full((6,), 4)).backward()
        optimizer.step()
    return wide


@pytest.mark.parametrize("bias", [True, False])
def test_two_steps_equal_a_network_with_five_outputs(linear, bias):
    model = network(bias=bias)
    got, wide = expanded(linear, model), oracle(linear, model)
    torch.testing.assert_close(got[0].weight, wide[0].weight, rtol=0, atol=1e-12)
    torch.testing.assert_close(got[2].weight, wide[2].weight[:4], rtol=0, atol=1e-12)
    if bias:
        torch.testing.assert_close(got[2].bias, wide[2].bias[:4], rtol=0, atol=1e-12)
    assert not torch.equal(got[0].weight, model[0].weight)


def test_nothing_of_the_added_class_is_left(linear):
    model = network()
    got = expanded(linear, model)
    assert got.state_dict().keys() == model.state_dict().keys()
    assert got(torch.from_numpy(linear.x)).shape == (6, 4)


def test_nothing_of_the_added_class_is_left_after_an_error_either(linear):
    model = network()

    class Failing(Classifier):
        def predict(self, model, batch):
            raise MemoryError("no room")

    given = Given(Failing(4), linear.forget, guard=None)
    with pytest.raises(MemoryError, match="no room"):
        apply("boundary_expand", model, given, Run(), in_place=True)
    assert [name for name, _ in model.named_parameters()] == [
        "0.weight",
        "0.bias",
        "2.weight",
        "2.bias",
    ]


def test_the_added_class_counts_as_the_last_layer(linear):
    """Only the head is in scope, and the added row moves with it."""
    model = network()
    given = Given(linear.task, linear.forget, guard=None)
    settings = {"scope": {"last_layers": 1}, "schedule": STEPS}
    got = apply("boundary_expand", model, given, Run(), settings).model
    assert torch.equal(got[0].weight, model[0].weight)
    assert not torch.equal(got[2].weight, model[2].weight)


def test_a_model_without_a_linear_head_is_refused(linear):
    model = nn.Sequential(nn.Conv1d(1, 4, 3), nn.Flatten())
    with pytest.raises(UnsupportedModelError, match=r"no nn.Linear layer"):
        apply("boundary_expand", model, Given(linear.task, linear.forget), Run())
