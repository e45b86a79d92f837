"""A checkpoint comes back bit for bit, or is refused."""

import copy

import pytest
import torch
from torch import nn

from expunge.core.errors import ConfigError, IntegrityError
from expunge.core.files import read_json
from expunge.engine.checkpoint import HEAD, Checkpoints, State
from expunge.engine.schedule import Schedule, make_optimizer


def worked(seed=0, optimizer="adamw", steps=3):
    """A small model and its optimiser after some steps."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        made = make_optimizer(Schedule(optimizer=optimizer, lr=0.1), model.parameters())
        for _ in range(steps):
            made.zero_grad()
            model(torch.randn(5, 3)).square().sum().backward()
            made.step()
    return dict(model.state_dict()), made


def slots(optimizer):
    return {
        (i, name): value
        for i, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


@pytest.fixture
def saved(tmp_path):
    weights, optimizer = worked()
    state = State(step=3, baseline=0.25, steps=[{"step": 1, "lr": 0.1, "forget": 1 / 3}])
    Checkpoints(tmp_path, "key").save(state, weights, optimizer)
    return tmp_path, state


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_everything_comes_back_bit_for_bit(tmp_path, optimizer):
    weights, made = worked(optimizer=optimizer)
    state = State(step=3, baseline=0.1, steps=[{"step": 1, "lr": 1e-5, "forget": 1 / 3}])
    Checkpoints(tmp_path, "key").save(state, weights, made)
    kept = copy.deepcopy(weights)
    others, fresh = worked(seed=1, optimizer=optimizer, steps=1)
    assert Checkpoints(tmp_path, "key").load(others, fresh) == state
    assert all(torch.equal(kept[name], others[name]) for name in kept)
    assert slots(fresh).keys() == slots(made).keys()
    assert all(torch.equal(slots(fresh)[place], slots(made)[place]) for place in slots(made))


def test_an_empty_folder_has_none(tmp_path):
    assert Checkpoints(tmp_path, "key").load(*worked()) is None


def test_another_key_is_refused_and_the_remedy_named(saved):
    with pytest.raises(ConfigError, match=r"other settings, data or model; choose another folder"):
        Checkpoints(saved[0], "other").load(*worked())


def spoil_truncated(data):
    return data[:-1]


def spoil_flipped(data):
    return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]


def spoil_pickled(data):
    return b"PK\x03\x04" + data


@pytest.mark.parametrize("spoil", [spoil_truncated, spoil_flipped, spoil_pickled])
def test_spoilt_weights_are_refused_and_nothing_is_loaded(saved, spoil):
    folder, _ = saved
    file = folder / read_json(folder / HEAD)["newest"]["file"]
    file.write_bytes(spoil(file.read_bytes()))
    weights, optimizer = worked(seed=1)
    before = copy.deepcopy(weights)
    with pytest.raises(IntegrityError, match="not what was written; delete"):
        Checkpoints(folder, "key").load(weights, optimizer)
    assert all(torch.equal(before[name], weights[name]) for name in before)


def test_weights_that_are_gone_are_refused(saved):
    folder, _ = saved
    (folder / read_json(folder / HEAD)["newest"]["file"]).unlink()
    with pytest.raises(IntegrityError, match="not what was written"):
        Checkpoints(folder, "key").load(*worked())


def test_any_flipped_bit_of_the_head_is_refused(saved):
    folder, _ = saved
    data = (folder / HEAD).read_bytes()
    for place in range(0, len(data), 7):
        (folder / HEAD).write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(IntegrityError):
            Checkpoints(folder, "key").load(*worked())


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"key": "key"}'])
def test_a_head_that_is_no_head_is_refused(saved, content):
    (saved[0] / HEAD).write_text(content)
    with pytest.raises(IntegrityError):
        Checkpoints(saved[0], "key").load(*worked())


def test_only_the_newest_and_the_newest_good_one_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path, "key")
    weights, optimizer = worked()
    for step, good in ((1, True), (2, True), (3, False), (4, False)):
        weights["0.bias"].fill_(step)
        checkpoints.save(State(step=step), weights, optimizer, good=good)
    kept = sorted(path.name for path in tmp_path.glob("state-*"))
    assert kept == ["state-0000002.safetensors", "state-0000004.safetensors"]
    newest = checkpoints.load(weights, optimizer)
    assert (newest.step, weights["0.bias"].tolist()) == (4, [4.0, 4.0])
    good = checkpoints.load(weights, optimizer, which="good")
    assert (good.step, weights["0.bias"].tolist()) == (2, [2.0, 2.0])


def test_clear_leaves_nothing(saved):
    folder, _ = saved
    Checkpoints(folder, "key").clear()
    assert list(folder.iterdir()) == []
