import json

import pytest

from expunge.core.digest import digest_file
from expunge.core.errors import IntegrityError
from expunge.core.files import write_text
from expunge.pipeline.journal import Journal


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.jsonl"


def writing(path, calls):
    """Return a step that writes ``a/model`` and counts how often it is called."""

    def work():
        calls.append(1)
        write_text(path.parent / "a/model", "weights")
        return {"files": {"a/model": digest_file(path.parent / "a/model")}, "model": "m"}

    return work


def test_a_finished_step_is_not_done_again(path):
    calls = []
    first = Journal(path).step("train", {"seed": 0}, writing(path, calls))
    again = Journal(path).step("train", {"seed": 0}, writing(path, calls))
    assert again == first
    assert len(calls) == 1


def test_other_inputs_do_it_again(path):
    calls = []
    for seed in (0, 1, 1, 0):
        Journal(path).step("train", {"seed": seed}, writing(path, calls))
    assert len(calls) == 3


def test_a_step_that_fails_is_not_finished(path):
    def fail():
        raise IntegrityError("no")

    with pytest.raises(IntegrityError):
        Journal(path).step("train", {}, fail)
    assert [json.loads(line)["status"] for line in path.read_text().splitlines()] == ["started"]
    assert Journal(path).step("train", {}, lambda: {"model": "m"}) == {"model": "m"}


def test_seconds_are_those_of_finished_steps(path):
    journal = Journal(path)
    journal.step("train", {}, dict)
    assert journal.seconds().keys() == Journal(path).seconds().keys() == {"train"}
    assert all(value >= 0 for value in journal.seconds().values())


@pytest.mark.parametrize("damage", ["remove", "change", "folder"])
def test_files_of_a_finished_step_must_be_what_it_wrote(damage, path):
    Journal(path).step("train", {}, writing(path, []))
    file = path.parent / "a/model"
    if damage == "change":
        file.write_text("weightz")
    else:
        file.unlink()
    if damage == "folder":
        file.mkdir()
    with pytest.raises(IntegrityError, match=r"a/model, written by the finished step 'train'"):
        Journal(path).step("train", {}, writing(path, []))


@pytest.mark.parametrize(
    "line", ["1", "null", "{}", '{"status": "finished", "step": "train", "inputs": "x"}']
)
def test_a_line_that_is_no_entry_is_named(line, path):
    path.write_text('{"status": "started", "step": "train", "inputs": "x"}\n' + line + "\n")
    with pytest.raises(IntegrityError, match="line 2 is no entry of a journal"):
        Journal(path).step("train", {}, dict)


def test_any_torn_tail_only_costs_the_last_step(path):
    for name in ("one", "two"):
        Journal(path).step(name, {}, lambda name=name: {"model": name})
    whole = path.read_bytes()
    for size in range(0, len(whole), 11):
        path.write_bytes(whole[:size])
        finished = whole[:size].count(b"\n") // 2
        assert len(Journal(path).seconds()) == finished
        for name in ("one", "two"):
            assert Journal(path).step(name, {}, lambda name=name: {"model": name})["model"] == name
