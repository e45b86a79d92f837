"""Killed, cancelled or out of budget at any step, the loop goes on to the same bits."""

import copy

import pytest

from expunge.core.errors import ConfigError, Interrupted, NumericalError
from expunge.core.files import read_json
from expunge.core.run import Budget, Run
from expunge.engine.checkpoint import HEAD
from expunge.engine.guard import Guard, GuardSettings
from expunge.engine.loop import Stream, Term, fit
from expunge.engine.schedule import Schedule
from expunge.engine.weights import load_tensors, state_digest
from expunge.train.supervised import likelihood

TOTAL = 9
SCHEDULE = Schedule(epochs=3, batch_size=16, lr=1e-3, warmup_epochs=1, decay="linear")
STEEP = Schedule(epochs=3, batch_size=16, lr=8e-3)


class Killed(BaseException):
    """Stands for the end of the process: nothing in the loop may catch it."""


class At:
    """A tracker that does something once a step has been taken."""

    def __init__(self, step, do):
        self.step, self.do = step, do

    def log(self, values, step):
        if step == self.step and "step/step" in values:
            self.do()


def kill():
    raise Killed


def train(world, run, *, terms=None, guard=None, weight=1.0, schedule=SCHEDULE, forget=None):
    model = copy.deepcopy(world.model)
    streams = {"forget": Stream(forget or world.forget), "retain": Stream(world.retain)}
    terms = terms or [likelihood(world.task, "forget", -weight), likelihood(world.task, "retain")]
    history = fit(model, world.task, streams, terms, schedule, run, guard=guard)
    return state_digest(model), history


@pytest.fixture(scope="module")
def whole(digits_world):
    digest, history = train(digits_world, Run())
    assert len(history.steps) == TOTAL
    return digest, history


@pytest.mark.parametrize("step", range(1, TOTAL + 1))
def test_killed_at_any_step(digits_world, tmp_path, whole, step):
    run = Run(folder=tmp_path, checkpoint_every=4, trackers=(At(step, kill),))
    with pytest.raises(Killed):
        train(digits_world, run)
    assert train(digits_world, Run(folder=tmp_path, checkpoint_every=4)) == whole


@pytest.mark.parametrize("step", range(TOTAL))
def test_budget_of_any_number_of_steps(digits_world, tmp_path, whole, step):
    with pytest.raises(Interrupted, match=rf"budget of {step} steps is spent.*max_steps"):
        train(digits_world, Run(folder=tmp_path, budget=Budget(max_steps=step)))
    assert read_json(tmp_path / HEAD)["newest"]["state"]["step"] == step
    assert train(digits_world, Run(folder=tmp_path)) == whole


def test_interrupted_again_and_again(digits_world, tmp_path, whole):
    for steps in (2, 3, 7):
        with pytest.raises(Interrupted):
            train(digits_world, Run(folder=tmp_path, budget=Budget(max_steps=steps)))
    assert train(digits_world, Run(folder=tmp_path)) == whole


def test_cancelled_within_a_step(digits_world, tmp_path, whole):
    run = Run(folder=tmp_path)
    run.trackers = (At(4, run.cancel),)
    with pytest.raises(Interrupted, match="cancelled"):
        train(digits_world, run)
    assert read_json(tmp_path / HEAD)["newest"]["state"]["step"] == 4
    assert train(digits_world, Run(folder=tmp_path)) == whole


def test_no_seconds_left(digits_world, tmp_path):
    with pytest.raises(Interrupted, match=r"budget of 0\.0 seconds.*max_seconds"):
        train(digits_world, Run(folder=tmp_path, budget=Budget(max_seconds=0.0)))
    assert read_json(tmp_path / HEAD)["newest"]["state"]["step"] == 0


def test_a_finished_run_is_not_run_again(digits_world, tmp_path, whole):
    train(digits_world, Run(folder=tmp_path))
    run = Run(folder=tmp_path, trackers=(At(1, kill),))
    assert train(digits_world, run) == whole


def test_a_checkpoint_of_other_settings_data_order_or_seed_is_refused(digits_world, tmp_path):
    world = digits_world
    with pytest.raises(Interrupted):
        train(world, Run(folder=tmp_path, budget=Budget(max_steps=2)))
    backwards = world.forget.take(range(len(world.forget) - 1, -1, -1))
    changed = world.forget.replace(y=(world.forget["y"] + 1) % 10)
    with pytest.raises(ConfigError, match="other settings, data or model"):
        train(world, Run(folder=tmp_path), schedule=Schedule(epochs=2, batch_size=16))
    with pytest.raises(ConfigError, match="other settings, data or model"):
        train(world, Run(folder=tmp_path), forget=backwards)
    with pytest.raises(ConfigError, match="other settings, data or model"):
        train(world, Run(folder=tmp_path), forget=changed)
    with pytest.raises(ConfigError, match="other settings, data or model"):
        train(world, Run(seed=1, folder=tmp_path))


def exploding(world, at, usual, then):
    """A term with a factor that changes for one step."""
    calls = []

    def loss(model, batch):
        calls.append(batch)
        return world.task.predict(model, batch).nll_B() * (then if len(calls) == at else usual)

    return [Term("forget", loss)]


@pytest.mark.parametrize(
    ("lr", "usual", "then", "message"),
    [
        (1e-3, 1.0, float("nan"), r"loss on 'forget' became nan at step 5.*last checkpoint"),
        (1e-3, 1.0, 1e38, r"gradient became inf at step 5.*last checkpoint"),
        # Loss 1e18 and gradient are finite; the step of 1e24 times that is not.
        (1e24, 1e-27, 1e18, r"weights after step 5 \(lower schedule.lr.*4 tensors hold NaN"),
    ],
)
def test_the_last_checkpoint_survives_numbers_that_explode(
    digits_world, tmp_path, lr, usual, then, message
):
    schedule = Schedule(
        epochs=3, batch_size=16, optimizer="sgd", lr=lr, momentum=0.0, weight_decay=0.0
    )
    run = Run(folder=tmp_path, checkpoint_every=1)
    bad = exploding(digits_world, 5, usual, then)
    with pytest.raises(NumericalError, match=message):
        train(digits_world, run, schedule=schedule, terms=bad)
    assert read_json(tmp_path / HEAD)["newest"]["state"]["step"] == 4
    sane = exploding(digits_world, 0, usual, then)
    healed = train(digits_world, run, schedule=schedule, terms=sane)
    assert healed == train(digits_world, Run(), schedule=schedule, terms=sane)


def guard_of(world, bound):
    return Guard.of(GuardSettings(max_increase=bound), world.retain, 0)


def collapse(world, run, bound=0.1):
    guard = guard_of(world, bound)
    return train(world, run, guard=guard, weight=5.0, schedule=STEEP)


def test_the_guard_stops_at_the_last_good_state_and_says_so(digits_world, tmp_path):
    digest, history = collapse(digits_world, Run(checkpoint_every=2))
    stopped = history.stopped
    assert stopped is not None
    assert 0 < stopped.step < TOTAL
    assert f"the state of step {stopped.step} was kept" in stopped.reason
    assert f"at step {stopped.step + 2} the loss on retained records had risen" in stopped.reason
    assert "bound of 0.1" in stopped.reason
    # The state that was kept is the one that a run without a guard has after as many steps.
    short = Run(folder=tmp_path, budget=Budget(max_steps=stopped.step))
    with pytest.raises(Interrupted):
        train(digits_world, short, weight=5.0, schedule=STEEP)
    tensors = load_tensors(tmp_path / read_json(tmp_path / HEAD)["newest"]["file"])
    model = copy.deepcopy(digits_world.model)
    model.load_state_dict({n: tensors[f"weights.{n}"] for n in model.state_dict()})
    assert state_digest(model) == digest


@pytest.mark.parametrize("step", range(1, 4))
def test_an_interruption_does_not_change_where_the_guard_stops(digits_world, tmp_path, step):
    expected = collapse(digits_world, Run(checkpoint_every=2))
    assert expected[1].stopped is not None
    budget = Budget(max_steps=step)
    with pytest.raises(Interrupted):
        collapse(digits_world, Run(folder=tmp_path, checkpoint_every=2, budget=budget))
    assert collapse(digits_world, Run(folder=tmp_path, checkpoint_every=2)) == expected


def test_a_guard_with_room_does_not_stop(digits_world):
    _, history = collapse(digits_world, Run(checkpoint_every=2), bound=1e9)
    assert history.stopped is None
    assert len(history.steps) == TOTAL


def test_a_retain_loss_that_is_no_number_is_refused_before_the_first_step(digits_world):
    broken = digits_world.retain.replace(x=digits_world.retain["x"] * float("nan"))
    guard = Guard.of(GuardSettings(), broken, 0)
    with pytest.raises(NumericalError, match="before the first step"):
        train(digits_world, Run(), guard=guard)


def test_momentum_survives_a_resume(digits_world, tmp_path):
    """A resume that forgot the optimiser's state would end elsewhere."""
    schedule = Schedule(epochs=3, batch_size=16, optimizer="sgd", lr=0.1, momentum=0.9)
    whole = train(digits_world, Run(), schedule=schedule)
    with pytest.raises(Interrupted):
        train(digits_world, Run(folder=tmp_path, budget=Budget(max_steps=5)), schedule=schedule)
    assert train(digits_world, Run(folder=tmp_path), schedule=schedule) == whole
