"""The conformance suite: what every registered method must do on every kind of task it takes."""

import copy
import dataclasses
import inspect
import json
import os
import random
import socket
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from expunge.core.config import fields, parse, schema, to_json
from expunge.core.errors import ConfigError, DataError, ExpungeError, Interrupted
from expunge.core.run import Budget, Run
from expunge.core.streams import stream
from expunge.engine.weights import state_digest
from expunge.forget.method import methods

# (method, check without "test_") -> why it cannot hold. Printed at the end of every test run.
EXCLUDED: dict[tuple[str, str], str] = {
    ("rmu", "frozen_parameters_keep_their_bits"): "only weights up to the steered block may move",
    **{
        (name, "frozen_parameters_keep_their_bits"): "its scope is that of a part beside the target"
        for name in ("uld", "whp")
    },
    ("o3", "frozen_parameters_keep_their_bits"): "it has no scope: its adapter moves, nothing else",
    ("laf", "frozen_parameters_keep_their_bits"): "it has no scope: all moves but the head",
    **{
        (name, "frozen_parameters_keep_their_bits"): "it has no scope: its adapters move, no more"
        for name in ("gs_lora", "gs_lora_pp")
    },
}

# What a method promises on the toy worlds, at one of these multiples of its own learning rate:
# the mean loss on forget records rises by MIN_RISE nats per target, and by more than the loss on
# retained records, which rises by at most MAX_LOSS nats.
LABELS = (
    "Source:",
    "Needs:",
    "Units:",
    "When to use:",
    "Cost:",
    "Differs from the official code:",
)

MULTIPLES = (100, 300, 30, 1, 50, 10)
MIN_RISE = 0.1
MAX_LOSS = 0.5

# (method, kind of task) -> settings at which it makes its claim here, and why not at its defaults.
CLAIMED_AT: dict[tuple[str, str], tuple[dict[str, float], str]] = {
    ("whp", "causal_lm"): ({"alpha": 5.0}, "at 1 little is subtracted; MUSE chooses from 1 to 256"),
    ("flat", "causal_lm"): (
        {"warmup_ce_steps": 3},
        "without, templates that are next to impossible get no pull, and only rates between 100 "
        "and 300 times its own do",
    ),
    ("simnpo", "classifier"): ({"gamma": 1.0}, "0.125 belongs to answers of many tokens"),
    ("laf", "classifier"): (
        {"tau": 2.0},
        "random records are no class that could be pushed away as one, so that only a strong "
        "repulsion shows; the paper goes to 5 for them",
    ),
    ("ssd", "classifier"): (
        {"alpha": 2.0, "force": True},
        "no weight matters 10 times more to some random records than to all",
    ),
    ("ssd", "regressor"): (
        {"alpha": 1.0, "per_sample": True, "force": True},
        "no weight matters 10 times more to some random records than to all",
    ),
}


class Counter:
    """A tracker that counts optimiser steps and may act after one of them.

    Attributes:
        steps: Steps of all loops of a method.
        place: Step of the loop that was seen last.
    """

    def __init__(self, at=None, do=None):
        self.steps, self.place, self.at, self.do = 0, 0, at, do

    def log(self, values, step):
        if "step/step" in values:
            self.steps += 1
            self.place = values["step/step"]
            if self.steps == self.at:
                self.do()


class Untouchable(Sequence):
    """A column that nobody may read."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, row):
        raise AssertionError("the method read data that it does not declare to need")


class FailingTask:
    """A task whose forward pass fails after some calls."""

    def __init__(self, task, calls):
        self._task, self.calls = task, calls

    def __getattr__(self, name):
        return getattr(self._task, name)

    def predict(self, model, batch):
        self.calls -= 1
        if self.calls < 0:
            raise MemoryError("no room")
        return self._task.predict(model, batch)


def untouchable(records):
    return records.replace(**{name: Untouchable(len(records)) for name in records.columns})


def traits(model):
    """Modes, gradient flags and numbers of hooks of a model."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return (
        [module.training for module in model.modules()],
        {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        [len(getattr(module, kind)) for module in model.modules() for kind in hooks],
        [type(module) for module in model.modules()],
    )


def layout(model):
    return {name: (v.shape, v.dtype, v.device) for name, v in model.state_dict().items()}


def global_state():
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state()),
        "python": random.getstate(),
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "filters": list(warnings.filters),
    }


def loss(world, model, records):
    """Mean loss per target position, in nats."""
    batch = world.task.batch(records, range(len(records)))
    with torch.no_grad():
        return float(world.task.predict(model, batch).nll_B().sum()) / len(batch.targets_N)


def changed(case, result):
    return state_digest(result.model) != state_digest(case.start)


# --- results ---


def test_same_seed_same_bits(case):
    one = case.digest()
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert case.digest() == one
    assert one != state_digest(case.start)


def test_result_is_finite_and_of_the_same_layout(case):
    result = case.apply()
    assert layout(case.original(result)) == layout(case.world.model)
    assert all(bool(torch.isfinite(v).all()) for v in result.model.state_dict().values())
    assert result.model is not case.world.model


def test_a_composite_keeps_its_target_bit_by_bit(composite_case):
    case = composite_case
    result = case.apply()
    assert state_digest(result.model.target) == state_digest(case.world.model)
    assert result.model.evidence == "output-suppressed"
    assert result.model.parts()["target"] is result.model.target


def test_modes_hooks_and_gradient_flags_are_those_of_the_input(case):
    model = copy.deepcopy(case.world.model)
    for module in list(model.modules())[::2]:
        module.training = not module.training
    next(model.parameters()).requires_grad_(False)
    next(model.children()).register_forward_hook(lambda *_: None)
    before = traits(model)
    result = case.apply(model=model)
    assert traits(case.original(result)) == (
        traits(case.start) if case.info.guarantee == "exact" else before
    )
    assert traits(model) == before


def test_input_is_untouched(case):
    model = copy.deepcopy(case.world.model)
    digest, before = state_digest(model), traits(model)
    case.apply(model=model)
    assert (state_digest(model), traits(model)) == (digest, before)


@pytest.mark.parametrize("calls", [0, 2])
def test_input_and_random_state_are_untouched_on_error(case, calls):
    model = copy.deepcopy(case.world.model)
    digest, before, state = state_digest(model), traits(model), global_state()
    given = case.given(task=FailingTask(case.world.task, calls))
    with pytest.raises(MemoryError, match="no room"):
        case.apply(model=model, given=given)
    assert (state_digest(model), traits(model)) == (digest, before)
    assert global_state() == state


def test_no_network_and_no_global_state(case, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a method reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    before = global_state()
    records = case.forget.digest(), case.retain.digest()
    case.apply()
    assert global_state() == before
    assert (case.forget.digest(), case.retain.digest()) == records


# --- what it is given ---


def test_no_forget_records(case):
    with pytest.raises(DataError, match="forget set is empty; name at least one record"):
        case.apply(given=case.given(forget=case.forget.take([])))


def test_overlap(case):
    with pytest.raises(DataError, match=r"share 2 record ids .* drop them from one of the two"):
        case.apply(given=case.given(forget=case.retain.take([3, 5])))


@pytest.mark.parametrize("nothing", ["none", "empty"])
def test_forget_everything(case, nothing):
    retain = None if nothing == "none" else case.retain.take([])
    given = case.given(retain=retain)
    if "retain" in case.needs:
        with pytest.raises(ExpungeError, match="it needs retain records and there are none"):
            case.apply(given=given)
    else:
        assert changed(case, case.apply(given=given))


def test_reads_declared_needs_only(case):
    """Undeclared data stand behind columns that raise when they are read."""
    hidden = {"guard": None}
    for need in {"forget", "retain"} - case.needs:
        hidden[need] = untouchable(getattr(case, need))
    if "labels" not in case.needs and hasattr(case.world.task, "labels"):
        column = case.world.task.labels
        for need in {"forget", "retain"} & case.needs:
            records = getattr(case, need)
            hidden[need] = records.replace(**{column: Untouchable(len(records))})
    if "fresh" not in case.needs:
        hidden["fresh"] = None
    assert case.digest(given=case.given(**hidden)) == case.digest(given=case.given(guard=None))


# --- the loop ---


def test_batches_of_one_record(looped_case):
    case = looped_case
    result = case.apply(settings=case.settings(batch_size=1))
    assert changed(case, result)
    steps = len(result.history.steps)
    assert steps >= 2 * min(len(case.forget), len(case.retain))


def test_a_batch_larger_than_the_data_is_the_whole_data(looped_case):
    case = looped_case
    whole = len(case.forget) + len(case.retain)
    exact = case.digest(settings=case.settings(batch_size=whole))
    assert case.digest(settings=case.settings(batch_size=10 * whole)) == exact


def test_splitting_a_batch_changes_nothing_but_rounding(looped_case):
    case = looped_case
    model = copy.deepcopy(case.world.model).double()
    given = case.given(fresh=lambda: case.world.fresh().double())
    results = [
        case.apply(model=model, given=given, settings=case.settings(micro_batch=size)).model
        for size in (None, 1, 3)
    ]
    for other in results[1:]:
        pairs = zip(results[0].state_dict().values(), other.state_dict().values(), strict=True)
        assert max(float((a - b).abs().max()) for a, b in pairs) < 1e-9


def test_budget_is_obeyed_and_resumed_with_the_same_bits(looped_case, tmp_path):
    case = looped_case
    total = len(case.apply().history.steps)
    at = int(stream(0, "interrupt", case.info.name).integers(1, total))
    counter = Counter()
    run = Run(folder=tmp_path, budget=Budget(max_steps=at), trackers=(counter,))
    with pytest.raises(Interrupted, match=f"budget of {at} steps is spent"):
        case.apply(run)
    assert counter.place == at
    assert case.digest(Run(folder=tmp_path)) == case.digest()


def test_cancellation_stops_within_a_step(looped_case, tmp_path):
    case = looped_case
    run = Run(folder=tmp_path)
    counter = Counter(2, run.cancel)
    run.trackers = (counter,)
    with pytest.raises(Interrupted, match="cancelled"):
        case.apply(run)
    assert counter.steps == 2
    assert case.digest(Run(folder=tmp_path)) == case.digest()


def test_killed_and_resumed_with_the_same_bits(info, killed):
    runs = killed[info.name]["resumed"]
    assert len(runs) == min(3, killed[info.name]["moments"])
    for run in runs:
        assert run["ended"] == -9  # by SIGKILL, not of its own will
        assert run["digest"] == killed[info.name]["whole"], f"killed at moment {run['at']}"


def test_frozen_parameters_keep_their_bits(looped_case):
    case = looped_case
    names = [name for name, _ in case.world.model.named_parameters()]
    last = names[-1]
    settings = case.settings(weight_decay=0.1) | {"scope": {"patterns": [last]}}
    before, after = case.start.state_dict(), case.apply(settings=settings).model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {last}


# --- the claim ---


def test_forgets_more_than_it_loses(case):
    world = case.world
    before = {part: loss(world, world.model, getattr(world, part)) for part in ("forget", "retain")}
    given = case.given(forget=world.forget, retain=world.retain)
    tried = []
    for multiple in MULTIPLES:
        settings = case.settings(batch_size=8, epochs=10 if len(world.retain) > 100 else 20)
        if settings:
            settings["schedule"]["lr"] = case.info.config().schedule.lr * multiple
        settings |= CLAIMED_AT.get((case.info.name, world.task.kind), ({}, ""))[0]
        model = case.apply(Run(checkpoint_every=5), given=given, settings=settings).model
        forget = loss(world, model, world.forget) - before["forget"]
        retain = loss(world, model, world.retain) - before["retain"]
        tried.append((settings, forget, retain))
        if forget >= MIN_RISE and forget > retain and retain <= MAX_LOSS:
            return
    pytest.fail(f"forgets nothing, or loses too much: {tried}")


# --- settings and words ---


def test_settings_round_trip_through_json(info):
    config = info.config()
    plain = json.loads(json.dumps(to_json(config), allow_nan=False))
    assert parse(info.config, plain, "settings") == config
    assert schema(info.config)["additionalProperties"] is False


def test_unknown_settings_are_refused(info):
    with pytest.raises(ConfigError, match=r"unknown setting 'no_such_setting'"):
        parse(info.config, {"no_such_setting": 1}, "settings")


def test_numbers_must_be_finite(info):
    floats = [f.name for f in dataclasses.fields(info.config) if isinstance(f.default, float)]
    for name in floats:
        for bad in (float("nan"), float("inf")):
            with pytest.raises(ConfigError, match="finite"):
                parse(info.config, {name: bad}, "settings")
            with pytest.raises(ValueError, match="finite"):
                info.config(**{name: bad})


def test_every_setting_is_described(info):
    for field in fields(info.config):
        assert field.text.endswith("."), f"{field.name}: {field.text!r} is no sentence"


def test_docstring_says_what_a_user_must_know(info):
    assert info.title.endswith(".")
    assert info.source
    for line in LABELS:
        said = [row for row in info.doc.splitlines() if row.startswith(line)]
        assert len(said) == 1, f"{info.name}: {line!r} stands {len(said)} times"
        assert len(said[0]) > len(line) + 3


def test_function_is_pure_of_files(info):
    """Only the run writes: a method's own file opens nothing."""
    source = inspect.getsource(inspect.getmodule(info.function))
    for forbidden in ("open(", "torch.save", "torch.load", "pickle", "write_"):
        assert forbidden not in source, f"{info.name} uses {forbidden}"


# --- the suite itself ---


def test_exclusions_name_methods_and_checks_that_exist():
    for name, check in EXCLUDED:
        assert name in methods
        assert f"test_{check}" in globals()


def test_untouchable_columns_raise(case):
    with pytest.raises(AssertionError, match="does not declare"):
        case.world.task.batch(untouchable(case.forget), [0])


def test_a_newcomer_is_picked_up_without_an_edit(monkeypatch, request):
    conftest = next(
        plugin
        for plugin in request.config.pluginmanager.get_plugins()
        if getattr(plugin, "WORLDS", None)
    )
    newcomer = dataclasses.replace(methods.get("npo"), name="newcomer")
    monkeypatch.setitem(methods._parts, "newcomer", newcomer)
    assert {("newcomer", kind) for kind in newcomer.kinds} <= set(conftest.cases())
