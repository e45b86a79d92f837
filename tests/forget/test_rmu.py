"""RMU against known values, plain numpy, and the blocks that must not move."""

import copy

import numpy as np
import pytest
import torch
from numeric import slope
from torch import nn

from expunge.core.errors import ConfigError
from expunge.core.run import Run
from expunge.engine.features import features_ND
from expunge.engine.task import Batch
from expunge.forget.method import Given, apply
from expunge.forget.rmu import control_vector, distance

HIDDEN = [[[1, 2], [3, 4], [0, 0]], [[1, 0], [2, 2], [5, 5]]]
WANTED = [[[0, 0], [1, 1], [9, 9]], [[1, 1], [0, 2], [9, 9]]]
MASK = [[1, 1, 0], [0, 1, 0]]
ONE_STEP = {"epochs": 1, "batch_size": 64, "optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0}


def packed(hidden, mask):
    """Return the masked hidden states and a batch that says whose they are."""
    rows, places = np.nonzero(mask)
    ids = tuple(str(i) for i in range(len(mask)))
    batch = Batch(ids, {}, torch.zeros(len(rows), dtype=torch.long), torch.from_numpy(rows))
    return torch.tensor(np.array(hidden, dtype=float)[rows, places]), batch


def oracle(hidden_ND, wanted_ND, rows_N):
    """Mean over dimensions, then over a record's targets, then over records."""
    square = ((hidden_ND - wanted_ND) ** 2).mean(1)
    return np.mean([square[rows_N == row].mean() for row in np.unique(rows_N)])


def test_golden_distance_and_slope():
    """3.25; the public code, which mixes records by broadcasting, yields 4.125."""
    hidden, batch = packed(HIDDEN, MASK)
    wanted, _ = packed(WANTED, MASK)
    hidden.requires_grad_()
    loss = distance(hidden, wanted, batch).mean()
    assert loss.item() == 3.25
    loss.backward()
    start, rows = hidden.detach().numpy(), batch.rows_N.numpy()
    expected = slope(lambda h: oracle(h, wanted.numpy(), rows), start)
    np.testing.assert_allclose(hidden.grad.numpy(), expected, atol=1e-8)


def test_the_public_broadcast_is_another_number():
    """S_i / n_j over all pairs, as a matrix: 4.125 on this fixture."""
    hidden, batch = packed(HIDDEN, MASK)
    wanted, _ = packed(WANTED, MASK)
    sums_B = distance(hidden, wanted, batch) * batch.counts_B
    assert (sums_B / batch.counts_B[:, None]).mean().item() == 4.125


def test_golden_control_vector():
    vector = control_vector(torch.tensor([3.0, 4.0]), 2.0)
    np.testing.assert_allclose(vector.numpy(), [1.2, 1.6], atol=1e-7)


def network(linear):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double()


def steer(linear, model, **settings):
    given = Given(linear.task, linear.forget, linear.retain, guard=None)
    return apply("rmu", model, given, Run(), settings)


def test_one_step_equals_numpy(linear):
    """At the start the retain term has no pull; the steered layer is the first."""
    model = network(linear)
    uniform = torch.rand(
        5, generator=torch.Generator().manual_seed(Run().stream_seed("control-vector"))
    )
    control = control_vector(uniform, 3.0).double().numpy()
    w, b = (p.detach().numpy().copy() for p in model[0].parameters())
    hidden = linear.x @ w.T + b
    off = 2 * (hidden - control) / 5 / 6
    settings = {"layer": 1, "coefficient": 3.0, "gamma": 0.7, "alpha": 5.0}
    result = steer(linear, model, **settings, schedule={**ONE_STEP, "lr": 0.1})
    got_w, got_b = (p.detach().numpy() for p in result.model[0].parameters())
    np.testing.assert_allclose(got_w, w - 0.07 * off.T @ linear.x, atol=1e-12)
    np.testing.assert_allclose(got_b, b - 0.07 * off.sum(0), atol=1e-12)
    step = result.history.steps[0]
    assert step["forget"] == pytest.approx(((hidden - control) ** 2).mean(), abs=1e-12)
    assert step["retain"] == 0


def test_the_second_step_holds_retained_states(linear):
    """The reference is the model before the first step."""
    model = network(linear)
    settings = {"layer": 1, "gamma": 0.5, "alpha": 2.0}
    schedule = {**ONE_STEP, "epochs": 2, "lr": 0.3, "warmup_epochs": 0}
    history = steer(linear, model, **settings, schedule=schedule).history
    one = steer(linear, model, **settings, schedule={**schedule, "epochs": 1}).model
    with torch.no_grad():
        x = torch.from_numpy(linear.kept_x)
        expected = ((one[0](x) - model[0](x)) ** 2).mean()
    assert history.steps[1]["retain"] == pytest.approx(expected.item(), abs=1e-12)
    assert expected > 0


def test_forgotten_states_end_at_one_vector_of_the_asked_length(linear):
    schedule = {**ONE_STEP, "epochs": 250, "lr": 1.0}
    result = steer(linear, network(linear), layer=1, coefficient=4.0, alpha=0.0, schedule=schedule)
    with torch.no_grad():
        hidden = result.model[0](torch.from_numpy(linear.x)).numpy()
    np.testing.assert_allclose(np.linalg.norm(hidden, axis=1), 4.0, atol=0.02)
    np.testing.assert_allclose(hidden, hidden[[0] * 6], atol=0.02)
    assert (hidden > 0).all()  # uniform in [0, 1) before it is scaled


def test_the_vector_follows_the_seed(linear):
    given = Given(linear.task, linear.forget, linear.retain, guard=None)
    settings = {"layer": 1, "schedule": {**ONE_STEP, "lr": 0.1}}
    losses = [
        apply("rmu", network(linear), given, Run(seed), settings).history.steps[0]["forget"]
        for seed in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_later_blocks_keep_their_bits_under_weight_decay(questions_world):
    """Neither the second block nor the head is run, so that nothing reaches them."""
    world = questions_world
    given = Given(world.task, world.forget, world.retain)
    settings = {"layer": 1, "schedule": {"epochs": 3, "lr": 1e-2, "weight_decay": 0.1}}
    before = copy.deepcopy(world.model.state_dict())
    after = apply("rmu", world.model, given, Run(), settings).model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    first = {name for name in before if name.startswith("model.layers.0.")}
    assert moved == {"model.embed_tokens.weight", *first}


def test_states_of_answers_move_towards_the_vector(questions_world):
    world = questions_world
    given = Given(world.task, world.forget, world.retain, guard=None)
    settings = {"layer": 2, "coefficient": 8.0, "schedule": {"epochs": 60, "lr": 3e-3}}
    result = apply("rmu", world.model, given, Run(), settings)
    batch = world.task.batch(world.forget, range(len(world.forget)))
    with torch.no_grad():
        hidden = features_ND(result.model, world.task, batch, "model.layers.1")
        start = features_ND(world.model, world.task, batch, "model.layers.1")
    similar = torch.cosine_similarity(hidden, hidden.mean(0, keepdim=True)).min()
    assert similar > 0.95
    assert torch.cosine_similarity(start, start.mean(0, keepdim=True)).min() < 0.9
    steps = result.history.steps
    assert steps[-1]["forget"] < steps[0]["forget"] / 4


def test_a_layer_that_the_model_lacks_is_refused(questions_world):
    world = questions_world
    given = Given(world.task, world.forget, world.retain)
    with pytest.raises(ConfigError, match=r"forget\.layer = 3 but the model has 2 layers"):
        apply("rmu", world.model, given, Run(), {"layer": 3})


@pytest.mark.parametrize(("count", "steered"), [(1, 1), (2, 1), (3, 2), (13, 7), (16, 7)])
def test_the_usual_layer_is_the_seventh_or_the_middle_one(linear, count, steered):
    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(count))
            self.head = nn.Linear(3, 4)

        def forward(self, x):
            for block in self.blocks:
                x = block(x)
            return self.head(x)

    model = Stack().double()
    result = steer(linear, model, schedule={**ONE_STEP, "lr": 1.0}).model
    moved = [
        number
        for number, (old, new) in enumerate(zip(model.blocks, result.blocks, strict=True), 1)
        if not torch.equal(old.weight, new.weight)
    ]
    assert moved == list(range(1, steered + 1))
    assert torch.equal(model.head.weight, result.head.weight)
