import dataclasses
import json

import pytest
import torch

from expunge.core.errors import ExpungeError, IntegrityError
from expunge.core.run import Run
from expunge.engine.tasks.classifier import Classifier
from expunge.engine.weights import state_digest
from expunge.pipeline import references
from expunge.pipeline.recipe import Training
from expunge.pipeline.references import CARD, WEIGHTS, reference_key, retrained

TRAINING = Training(epochs=1, batch_size=32, lr=1e-2)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def make(digits_world):
    def call(run=None, training=TRAINING):
        model = digits_world.fresh()
        return retrained(model, digits_world.task, digits_world.retain, training, run or Run(1))

    return call


def shelves(cache):
    return sorted((cache / "references").iterdir())


def test_the_second_time_nothing_is_trained(make, cache, monkeypatch):
    model, card = make()
    monkeypatch.setattr(references, "learn", None)  # calling it would fail
    again, same = make()
    assert state_digest(again) == state_digest(model) == card["digest"]
    assert same == card
    assert len(card["history"]["steps"]) == 5
    assert len(shelves(cache)) == 1


def test_what_a_crash_left_without_a_card_is_made_again(make, cache):
    model, _ = make()
    (shelf,) = shelves(cache)
    (shelf / CARD).unlink()
    (shelf / WEIGHTS).write_bytes(b"torn")
    assert state_digest(make()[0]) == state_digest(model)


@pytest.mark.parametrize("file", [WEIGHTS, CARD])
@pytest.mark.parametrize("damage", ["truncate", "change", "remove weights"])
def test_a_damaged_store_is_refused(file, damage, make, cache):
    make()
    (shelf,) = shelves(cache)
    whole = (shelf / file).read_bytes()
    if damage == "truncate":
        (shelf / file).write_bytes(whole[: len(whole) // 2])
    elif damage == "remove weights":
        (shelf / WEIGHTS).unlink()
    elif file == WEIGHTS:
        (shelf / file).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    else:
        (shelf / file).write_text(json.dumps({**json.loads(whole), "digest": "0" * 64}))
    with pytest.raises(ExpungeError, match=str(shelf)):
        make()


def test_a_reference_under_another_key_is_refused(make, cache):
    make()
    make(Run(2))
    one, other = shelves(cache)
    for name in (WEIGHTS, CARD):
        (one / name).write_bytes((other / name).read_bytes())
        (other / name).unlink()
    with pytest.raises(IntegrityError, match="is not what was written; delete that folder"):
        [make(Run(seed)) for seed in (1, 2)]


def test_the_key_follows_everything_that_decides_the_bits(digits_world):
    world = digits_world
    same = (world.fresh(), world.task, world.retain, TRAINING, 1)
    key = reference_key(*same)
    assert reference_key(*same) == key

    moved = world.fresh()
    with torch.no_grad():
        moved[0].bias[0] += 1
    others = [
        (moved, *same[1:]),
        (same[0], Classifier(11), *same[2:]),
        (*same[:2], world.retain.take(range(100)), *same[3:]),
        (*same[:3], dataclasses.replace(TRAINING, lr=2e-2), same[4]),
        (*same[:4], 2),
        (*same, "cuda:0"),
    ]
    keys = [reference_key(*arguments) for arguments in others]
    assert len({key, *keys}) == 1 + len(others)


def test_the_key_follows_the_number_of_threads(digits_world, monkeypatch):
    world = digits_world
    arguments = (world.fresh(), world.task, world.retain, TRAINING, 1)
    key = reference_key(*arguments)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 97)
    assert reference_key(*arguments) != key
