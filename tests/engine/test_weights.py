import os
import pickle

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from expunge.core import files
from expunge.core.errors import DataError, IntegrityError, NumericalError, StorageError
from expunge.engine.weights import (
    load_into,
    load_tensors,
    require_finite,
    save_tensors,
    state_digest,
    tensors_digest,
)

TENSORS = {
    "weight": torch.arange(6.0).reshape(2, 3),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "count": torch.tensor(7),
    "mask": torch.tensor([True, False]),
    "empty": torch.zeros(0, 3),
}


def test_round_trip_keeps_every_bit(tmp_path):
    path = tmp_path / "new" / "a.safetensors"
    save_tensors(TENSORS, path)
    again = load_tensors(path)
    assert tensors_digest(again) == tensors_digest(TENSORS)
    assert {n: t.dtype for n, t in again.items()} == {n: t.dtype for n, t in TENSORS.items()}
    assert os.listdir(path.parent) == ["a.safetensors"]


def test_shared_and_strided_storage_is_saved_by_value(tmp_path):
    base = torch.arange(6.0).reshape(2, 3)
    tied = {"a": base, "b": base, "turned": base.T, "part": base[:, 1]}
    save_tensors(tied, tmp_path / "a")
    again = load_tensors(tmp_path / "a")
    assert tensors_digest(again) == tensors_digest(tied)
    again["a"][0, 0] = 9.0
    assert again["b"][0, 0] == 0.0


@given(st.permutations(sorted(TENSORS)))
def test_digest_does_not_depend_on_order(names):
    assert tensors_digest({name: TENSORS[name] for name in names}) == tensors_digest(TENSORS)


@pytest.mark.parametrize(
    "other",
    [
        {"b": torch.zeros(2, 3)},
        {"a": torch.zeros(3, 2)},
        {"a": torch.zeros(2, 3, dtype=torch.int32)},
        {"a": torch.full((2, 3), -0.0)},
        {"a": torch.zeros(2, 3), "b": torch.zeros(0)},
    ],
)
def test_digest_reads_name_shape_type_and_bits(other):
    assert tensors_digest(other) != tensors_digest({"a": torch.zeros(2, 3)})


def test_state_digest_covers_buffers_and_not_gradients():
    model = nn.BatchNorm1d(3)
    before = state_digest(model)
    model(torch.ones(4, 3)).sum().backward()
    after = state_digest(model)
    assert after != before  # running statistics moved
    model.zero_grad()
    assert state_digest(model) == after


def test_saving_the_same_tensors_gives_the_same_bytes(tmp_path):
    save_tensors(TENSORS, tmp_path / "a")
    save_tensors(dict(reversed(TENSORS.items())), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_failed_save_keeps_the_old_weights(tmp_path, monkeypatch):
    path = tmp_path / "a"
    save_tensors(TENSORS, path)

    def full(operation, path):
        if operation == "rename":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "fault_hook", full)
    with pytest.raises(StorageError, match="No space left"):
        save_tensors({"weight": torch.zeros(2)}, path)
    assert tensors_digest(load_tensors(path)) == tensors_digest(TENSORS)
    assert os.listdir(tmp_path) == ["a"]


def test_absent_file_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="there is no file"):
        load_tensors(tmp_path / "absent")


def test_every_truncation_is_found(tmp_path):
    path = tmp_path / "a"
    save_tensors(TENSORS, path)
    whole = path.read_bytes()
    for size in [*range(0, 16), len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(IntegrityError, match="not a whole safetensors file"):
            load_tensors(path)


class Bomb:
    """Runs code when unpickled."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was loaded",)


@pytest.mark.parametrize("protocol", [2, 5])
def test_pickles_are_refused_unread(tmp_path, protocol):
    (tmp_path / "a.bin").write_bytes(pickle.dumps(Bomb(), protocol))
    with pytest.raises(IntegrityError, match="is a pickle"):
        load_tensors(tmp_path / "a.bin")


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_are_refused(tmp_path, zipped):
    torch.save(TENSORS, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(IntegrityError, match=r"is a pickle .*safetensors\.torch\.save_file"):
        load_tensors(tmp_path / "a.pt")


def test_safetensors_that_begin_like_a_pickle_are_loaded(tmp_path):
    # The first byte counts the header; a header of 128 bytes begins like a pickle does.
    lengths = {}
    for size in range(1, 120):
        data = safetensors.torch.save({"x" * size: torch.ones(1)})
        lengths[data[:1]] = data
    (tmp_path / "a").write_bytes(lengths[b"\x80"])
    assert [tensor.tolist() for tensor in load_tensors(tmp_path / "a").values()] == [[1.0]]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_non_finite_weights_are_refused(tmp_path, number, dtype):
    save_tensors(
        {"fine": torch.ones(2), "bad": torch.tensor([1, number]).to(dtype)}, tmp_path / "a"
    )
    with pytest.raises(NumericalError, match=r"1 tensors hold NaN or infinity \(bad\)"):
        load_tensors(tmp_path / "a")


def test_integers_are_always_finite():
    require_finite({"count": torch.tensor([2**62])}, "model")


def test_load_into_names_every_misfit_and_changes_nothing():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    before = state_digest(model)
    tensors = {name: torch.zeros_like(t) for name, t in model.state_dict().items()}
    del tensors["0.bias"]
    tensors["extra"] = torch.zeros(1)
    tensors["1.weight"] = torch.zeros(3, 2)
    with pytest.raises(DataError) as caught:
        load_into(model, tensors, "a.safetensors")
    message = str(caught.value)
    assert message.startswith("a.safetensors does not fit the model: 3 problems")
    assert "1 tensors are missing (0.bias)" in message
    assert "1 tensors are unknown to the model (extra)" in message
    assert "1.weight has shape (3, 2), the model (2, 3)" in message
    assert state_digest(model) == before


def test_load_into_copies():
    one, other = nn.Linear(2, 3), nn.Linear(2, 3)
    tensors = one.state_dict()
    load_into(other, tensors, "model")
    assert state_digest(other) == state_digest(one)
    with torch.no_grad():
        one.weight.zero_()
    assert state_digest(other) != state_digest(one)
