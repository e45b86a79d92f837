"""Ctrl-C, SIGTERM and a spent budget: exit code 3, and the run can be resumed."""

import json
import os
import signal

import pytest
from command_line import Command
from refusals import refused
from small_recipes import DIGITS, write_recipe


@pytest.fixture
def recipe(tmp_path):
    return write_recipe(tmp_path / "recipe.yaml", DIGITS)


def digest(out):
    return json.loads((out / "digest.json").read_text())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_that_can_be_resumed(number, recipe, finished_digits, tmp_path):
    out, cache = tmp_path / "run", tmp_path / "cache"
    command = Command(["run", recipe, "--out", out], cache, tmp_path)
    while command.running and not (out / "events.jsonl").exists():
        pass
    command.signal(number)
    ended = command.wait()
    assert ended.code == 3, ended.err
    last = ended.err.splitlines()[-1]
    assert last == "error: the run was cancelled; start it again with the same folder to resume"
    assert "Traceback" not in ended.err
    assert not (out / "digest.json").exists()
    assert Command(["run", recipe, "--out", out], cache, tmp_path).wait().code == 0
    assert digest(out) == digest(finished_digits)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_work_begins(number, tmp_path):
    os.mkfifo(tmp_path / "recipe.yaml")
    command = Command(["run", tmp_path / "recipe.yaml"], tmp_path / "cache", tmp_path)
    with (tmp_path / "recipe.yaml").open("w"):  # opens once the command waits for its recipe
        command.signal(number)
        ended = command.wait()
    assert ended.code == 3, ended.err
    assert ended.err == "error: cancelled before the work began; start again\n"


def test_a_spent_budget_can_be_raised_in_the_same_folder(recipe, finished_digits, tmp_path):
    out, cache = tmp_path / "run", tmp_path / "cache"

    def run(*more):
        return Command(["run", recipe, "--out", out, *more], cache, tmp_path).wait()

    ended = run("--set", "machine.max_seconds=0.001")
    assert ended.code == 3, ended.err
    assert "the budget of 0.001 seconds is spent" in ended.err
    assert "machine.max_seconds" in ended.err
    assert run("--set", "machine.max_seconds=1000").code == 0
    assert digest(out) == digest(finished_digits)


def test_settings_that_decide_the_result_cannot_change(recipe, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    arguments = ["run", recipe, "--out", out, "--set", "machine.max_seconds=0.001"]
    assert Command(arguments, tmp_path / "cache", tmp_path).wait().code == 3
    message = refused(
        monkeypatch, capsys, "run", recipe, "--out", out, "--set", "machine.checkpoint_every=3"
    )
    assert "it differs in machine" in message
