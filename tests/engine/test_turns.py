"""Two objectives in turn on the same weights, against two optimisers of torch."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.loop import Stream, Term, fit
from expunge.engine.schedule import Schedule
from expunge.engine.tasks.classifier import Classifier
from expunge.engine.turns import Turns

TASK = Classifier(3)
RATES = (1.0, 3.0)


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


@pytest.fixture
def records():
    draw = np.random.default_rng(0)
    return Records(
        tuple(f"r{i}" for i in range(6)), {"x": draw.normal(size=(6, 4)), "y": [0, 1, 2, 0, 1, 2]}
    )


def objectives(logits, targets):
    """What the first turn minimises, and the second."""
    return nn.functional.cross_entropy(logits, targets), logits.square().sum(1).mean()


def trained(model, records, schedule, names):
    turns = Turns(model, names, RATES, schedule)

    def loss(model, batch):
        predictions = TASK.predict(model, batch)
        return objectives(predictions.logits_NV, predictions.targets_N)[turns.turn].expand(6)

    terms = [Term("all", loss, turns.begin)]
    history = fit(turns, TASK, {"all": Stream(records)}, terms, schedule, Run(), scope=turns.scope)
    return turns, history


@pytest.mark.parametrize(
    ("optimizer", "make"),
    [
        # Its gradients are larger by the rate, and so is what is added to their length smaller.
        ("adamw", lambda p, r: torch.optim.AdamW(p, 0.01 * r, weight_decay=0.0, eps=1e-8 / r)),
        ("sgd", lambda p, r: torch.optim.SGD(p, 0.01 * r, momentum=0.9)),
    ],
)
def test_each_turn_has_an_optimiser_of_its_own(records, optimizer, make):
    """Momentum of one turn never moves the other; rates are multiples of the schedule's."""
    schedule = Schedule(
        epochs=7, batch_size=6, optimizer=optimizer, lr=0.01, momentum=0.9, weight_decay=0.0
    )
    model, names = network(), ["0.weight", "0.bias"]
    turns, history = trained(model, records, schedule, names)
    assert len(history.steps) == 7

    expected = network()
    batch = TASK.batch(records, range(6))
    moving = [expected[0].weight, expected[0].bias]
    optimizers = [make(moving, rate) for rate in RATES]
    for step in range(7):
        optimizers[step % 2].zero_grad()
        loss = objectives(expected(batch.inputs["x"]), batch.targets_N)[step % 2]
        loss.backward(inputs=moving)
        optimizers[step % 2].step()
    turns.settle()
    for one, other in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_the_model_moves_when_it_is_told_to_and_only_where_it_may(records):
    schedule = Schedule(epochs=4, batch_size=6, lr=0.01, weight_decay=0.0)
    model = network()
    turns, _ = trained(model, records, schedule, ["0.weight"])
    start = copy.deepcopy(network().state_dict())
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())
    assert turns.settle() is model
    moved = {n for n, value in model.state_dict().items() if not torch.equal(value, start[n])}
    assert moved == {"0.weight"}


def test_it_runs_as_its_model_does_before_anything_moved():
    model = network()
    turns = Turns(model, ["0.weight", "2.bias"], RATES, Schedule())
    x = torch.ones(2, 4, dtype=torch.float64)
    assert torch.equal(turns(x), model(x))
    turns.settle()
    assert torch.equal(turns(x), network()(x))


def test_modes_of_the_model_stay_as_they_are():
    model = network()
    model[0].eval()
    turns = Turns(model, ["0.weight"], RATES, Schedule())
    assert [m.training for m in turns.model] == [False, True, True]
    assert turns.training


def test_only_the_set_whose_turn_it_is_gets_a_gradient():
    turns = Turns(network(), ["0.weight"], RATES, Schedule())
    for step in range(3):
        turns.begin([{}] * step)
        turns.zero_grad()
        turns(torch.ones(2, 4, dtype=torch.float64)).sum().backward()
        touched = [changes[0].grad is not None for changes in turns.changes]
        assert touched == [step % 2 == 0, step % 2 == 1]
