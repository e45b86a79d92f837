"""GS-LoRA: the hinge on the step's mean, the late lasso, undone blocks, and what is refused."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from expunge.core.errors import ConfigError, UnsupportedModelError
from expunge.core.files import read_json_lines
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.tasks.classifier import Classifier
from expunge.forget.gs_lora import GSLoraConfig, hinge_slope
from expunge.forget.method import Given, apply

QUICK = {"epochs": 12, "batch_size": 20}


@pytest.fixture(scope="module")
def classes(digits_world):
    """The world's digits, of which two whole classes are to go."""
    world = digits_world
    x = np.concatenate([world.forget["x"], world.retain["x"]])
    y = np.concatenate([world.forget["y"], world.retain["y"]])
    whole = Records(tuple(f"d{i}" for i in range(len(y))), {"x": x, "y": y})

    def of(wanted):
        return whole.take(np.flatnonzero(np.isin(y, list(wanted))).tolist())

    return of


def accuracy(world, model, records):
    batch = world.task.batch(records, range(len(records)))
    with torch.no_grad():
        found = world.task.predict(model, batch)
    return float((found.logits_NV.argmax(1) == found.targets_N).double().mean())


def forget(world, classes, gone, settings=None, run=None, model=None, name="gs_lora"):
    kept = [c for c in range(10) if c not in gone]
    given = Given(world.task, classes(gone), classes(kept))
    whole = {"schedule": QUICK, "lasso_after": 0.5, **(settings or {})}
    return apply(name, model or world.model, given, run or Run(), whole)


def test_the_hinge_pulls_up_to_the_bound_and_no_further():
    slope = hinge_slope(10.0)
    assert [slope(value) for value in (0.001, 9.999, 10.0, 12.0)] == [-1.0, -1.0, 0.0, 0.0]
    # Value and slope agree: at a batch loss of 0.001 the hinge is 9.999, weighted 1.49985.
    assert max(10.0 - 0.001, 0) == pytest.approx(9.999)
    assert 0.15 * max(10.0 - 0.001, 0) == pytest.approx(1.49985)


def test_two_classes_go_and_the_rest_stays(digits_world, classes):
    world = digits_world
    result = forget(world, classes, {8, 9})
    assert accuracy(world, world.model, classes({8, 9})) > 0.95
    assert accuracy(world, result.model, classes({8, 9})) < 0.05
    kept = classes(range(8))
    assert accuracy(world, result.model, kept) > accuracy(world, world.model, kept) - 0.03
    last = result.history.steps[-1]
    assert set(last) == {"step", "lr", "grad_norm", "retain", "forget", "groups"}


def test_the_loss_stays_near_the_bound(digits_world, classes):
    world = digits_world
    losses = []
    for bound in (3.0, 9.0):
        steps = forget(world, classes, {3}, {"bound": bound}).history.steps
        losses.append(np.mean([numbers["forget"] for numbers in steps[-10:]]))
    assert losses[0] == pytest.approx(3.0, abs=1.0)
    assert losses[1] == pytest.approx(9.0, abs=1.5)


def test_only_layers_with_adapters_move_and_nothing_of_the_head(digits_world, classes):
    world = digits_world
    result = forget(world, classes, {1})
    before, after = world.model.state_dict(), result.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"0.weight"}
    difference = (after["0.weight"] - before["0.weight"]).double()
    assert result.history.groups == {"0": pytest.approx(float(difference.norm()), rel=1e-6)}
    assert torch.linalg.matrix_rank(difference, rtol=1e-4) <= 8


def test_the_lasso_sets_in_after_whole_epochs(digits_world, classes):
    """Until then a huge weight of it changes nothing; afterwards it does."""
    world = digits_world
    settings = {"schedule": {**QUICK, "epochs": 5}, "lasso_after": 0.5}
    small, large = (
        forget(world, classes, {8}, {**settings, "alpha": alpha}).history.steps
        for alpha in (0.0, 3.0)
    )
    per_epoch = len(small) // 5
    first = 3 * per_epoch  # 2.5 epochs are rounded up to whole ones
    assert small[: first + 1] != large[: first + 1]  # the first pull shows in its gradient
    assert small[:first] == large[:first]
    assert large[-1]["groups"] < small[-1]["groups"]


def three_layers(world):
    """A deeper perceptron that learned the digits."""
    from expunge.engine.schedule import Schedule
    from expunge.train.supervised import learn

    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = nn.Sequential(
            *(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU()),
            *(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)),
        )
    ids = tuple(f"d{i}" for i in range(200))
    x = np.concatenate([world.forget["x"], world.retain["x"]])
    y = np.concatenate([world.forget["y"], world.retain["y"]])
    schedule = Schedule(epochs=60, batch_size=16, optimizer="sgd", lr=0.05)
    learn(model, world.task, Records(ids, {"x": x, "y": y}), schedule, Run())
    return model


def test_the_lasso_leaves_blocks_as_they_were_bit_by_bit(digits_world, classes, tmp_path):
    world = digits_world
    model = three_layers(world)
    dense = forget(world, classes, {8, 9}, {"alpha": 0.0}, model=model)
    assert min(dense.history.groups.values()) > 0.1
    run = Run(events=tmp_path / "events.jsonl")
    strong = {"alpha": 0.45, "threshold": 0.15, "schedule": {**QUICK, "epochs": 30}}
    sparse = forget(world, classes, {8, 9}, strong, run, model)
    groups = sparse.history.groups
    undone = {block for block, norm in groups.items() if norm == 0}
    assert 1 <= len(undone) < 3
    before, after = model.state_dict(), sparse.model.state_dict()
    for block in groups:
        same = torch.equal(before[f"{block}.weight"], after[f"{block}.weight"])
        assert same == (block in undone)
    told = [e for e in read_json_lines(run.events) if e["event"] == "group"]
    assert {e["block"] for e in told if e["undone"]} == undone
    assert all(e["norm"] > 0 for e in told)
    assert accuracy(world, sparse.model, classes({8, 9})) < 0.1


def test_blocks_that_answers_depend_on_are_not_undone(digits_world, classes):
    """Nearly all blocks are small beside the largest; without them forgetting would be lost."""
    world = digits_world
    model = three_layers(world)
    result = forget(world, classes, {8, 9}, {"alpha": 0.0, "threshold": 0.999}, model=model)
    assert min(result.history.groups.values()) > 0
    assert accuracy(world, result.model, classes({8, 9})) < 0.05


def test_requests_follow_one_another_and_earlier_classes_stay_forgotten(digits_world, classes):
    world = digits_world
    model, gone = world.model, set()
    for request in ({9}, {8}):
        gone |= request
        given = Given(world.task, classes(request), classes(set(range(10)) - gone))
        model = apply("gs_lora", model, given, Run(), {"schedule": QUICK}).model
    kept = classes(range(8))
    assert accuracy(world, model, classes(gone)) < 0.1
    assert accuracy(world, model, kept) > accuracy(world, world.model, kept) - 0.03


def test_what_is_forgotten_already_is_refused_and_so_is_a_bound_that_binds_nothing(
    digits_world, classes
):
    world = digits_world
    after = forget(world, classes, {9}, {"bound": 6.0})
    with pytest.raises(
        ConfigError, match=r"the loss on the forget set is .* forget\.bound = 2\.00"
    ):
        forget(world, classes, {9}, {"bound": 2.0}, model=after.model)
    with pytest.raises(ConfigError, match="nothing would be forgotten; raise it"):
        forget(world, classes, {4}, {"bound": 1e-6})


def test_adapters_that_the_lasso_ate_up_are_an_error_with_advice(digits_world, classes):
    settings = {"alpha": 3.0, "lasso_after": 0.0, "schedule": {**QUICK, "epochs": 40}}
    with pytest.raises(ConfigError, match=r"shrank all adapters .* lower forget\.alpha = 3\.0"):
        forget(digits_world, classes, {8, 9}, settings)


def test_the_usual_bound_is_four_times_that_of_a_blind_guess(digits_world, classes):
    by_default = forget(digits_world, classes, {8}, {"schedule": {**QUICK, "epochs": 2}})
    by_hand = forget(
        digits_world,
        classes,
        {8},
        {"bound": 4 * math.log(10), "schedule": {**QUICK, "epochs": 2}},
    )
    assert by_default.history == by_hand.history


def test_a_rank_that_no_layer_can_use_is_warned_of():
    draw = np.random.default_rng(0)
    records = Records(
        tuple(f"r{i}" for i in range(12)),
        {"x": draw.normal(size=(12, 4)).astype(np.float32), "y": np.arange(12) % 3},
    )
    given = Given(Classifier(3), records.take(range(4)), records.take(range(4, 12)), guard=None)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    schedule = {"epochs": 1}
    with pytest.warns(UserWarning, match=r"rank = 9 is more than the 4 that the smallest layer"):
        apply("gs_lora", model, given, Run(), {"rank": 9, "schedule": schedule})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apply("gs_lora", model, given, Run(), {"schedule": schedule})
        apply("gs_lora", model, given, Run(), {"rank": 4, "schedule": schedule})


def test_a_model_without_blocks_is_refused_before_any_work(linear):
    given = Given(linear.task, linear.forget, linear.retain, guard=None)
    with pytest.raises(UnsupportedModelError, match="nothing else"):
        apply("gs_lora", linear.model(), given, Run(folder=None))


@pytest.mark.parametrize("name", ["alpha", "beta", "threshold"])
def test_weights_must_not_be_negative(name):
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        GSLoraConfig(**{name: -0.1})


def test_defaults_are_those_of_the_paper_but_for_the_bound_and_the_later_lasso():
    config = GSLoraConfig()
    schedule = config.schedule
    assert (config.beta, config.alpha, config.lora_alpha) == (0.15, 0.01, 1.0)
    assert (schedule.epochs, schedule.batch_size, schedule.lr) == (100, 48, 1e-2)
    assert (schedule.optimizer, schedule.weight_decay, schedule.decay) == ("adamw", 0.05, "cosine")
    assert config.bound is None
    assert config.lasso_after == 0.35
