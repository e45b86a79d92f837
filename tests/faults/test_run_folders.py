"""Folders in which a run cannot work: one message, exit code 2, and nothing in them changes."""

import os
import shutil
import signal

import pytest
from command_line import Command
from refusals import refused
from small_recipes import DIGITS, PEOPLE, write_recipe


@pytest.fixture
def recipe(tmp_path):
    return write_recipe(tmp_path / "recipe.yaml", DIGITS)


def snapshot(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_a_file_in_the_place_of_the_folder(recipe, tmp_path, monkeypatch, capsys):
    (tmp_path / "run").write_text("mine")
    message = refused(monkeypatch, capsys, "run", recipe, "--out", tmp_path / "run")
    assert "is a file; choose a folder" in message
    assert (tmp_path / "run").read_text() == "mine"


def test_a_folder_below_a_file(recipe, monkeypatch, capsys):
    message = refused(monkeypatch, capsys, "run", recipe, "--out", recipe / "run")
    assert "cannot write" in message
    assert "Not a directory" in message


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs Linux")
def test_an_unwritable_place(recipe, monkeypatch, capsys):
    # The superuser may write where permissions forbid it, but nobody can in /proc.
    assert "cannot write" in refused(monkeypatch, capsys, "run", recipe, "--out", "/proc/run")


def test_a_name_that_is_too_long(recipe, tmp_path, monkeypatch, capsys):
    message = refused(monkeypatch, capsys, "run", recipe, "--out", tmp_path / ("x" * 300))
    assert "File name too long" in message


def test_a_folder_that_holds_something_else(recipe, tmp_path, monkeypatch, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.tex").write_text("mine")
    message = refused(monkeypatch, capsys, "run", recipe, "--out", tmp_path / "run")
    assert "is not empty and holds no run" in message
    assert os.listdir(tmp_path / "run") == ["thesis.tex"]


@pytest.mark.parametrize(
    ("base", "changes", "names"),
    [
        (DIGITS, {"seed": 1}, "it differs in seed"),
        (DIGITS, {"references": 1, "name": "other"}, "it differs in name, references"),
        (PEOPLE, {}, "it differs in"),
    ],
)
def test_a_folder_of_another_run(
    base, changes, names, finished_digits, tmp_path, monkeypatch, capsys
):
    shutil.copytree(finished_digits, tmp_path / "run")
    before = snapshot(tmp_path / "run")
    recipe = write_recipe(tmp_path / "other.yaml", base, **changes)
    message = refused(monkeypatch, capsys, "run", recipe, "--out", tmp_path / "run")
    assert "holds a run of another recipe" in message
    assert names in message
    assert snapshot(tmp_path / "run") == before


@pytest.mark.parametrize("content", ["name: [", "nonsense: 1", "", "- 1"])
def test_a_folder_whose_recipe_was_spoilt(
    content, recipe, finished_digits, tmp_path, monkeypatch, capsys
):
    shutil.copytree(finished_digits, tmp_path / "run")
    (tmp_path / "run/recipe.yaml").write_text(content)
    message = refused(monkeypatch, capsys, "run", recipe, "--out", tmp_path / "run")
    assert "recipe.yaml is not what a run wrote" in message


def test_what_a_run_killed_at_its_beginning_left_is_no_obstacle(tmp_path):
    from expunge.pipeline.execute import plan_lines
    from expunge.pipeline.recipe import make_recipe

    for name in (".lock", ".write-probe", ".write-probe.partial", "recipe.yaml.partial"):
        (tmp_path / name).touch()
    assert plan_lines(make_recipe(DIGITS), tmp_path)


def test_two_processes_in_one_folder(recipe, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    first = Command(["run", recipe, "--out", out], tmp_path / "cache", tmp_path)
    while first.running and not (out / "journal.jsonl").exists():
        pass
    first.signal(signal.SIGSTOP)  # it holds the folder and does not end
    message = refused(monkeypatch, capsys, "run", recipe, "--out", out)
    assert "another process is working in" in message
    first.signal(signal.SIGCONT)
    assert first.wait().code == 0


@pytest.mark.parametrize("command", ["report", "purge"])
def test_commands_on_a_folder_that_holds_no_run(command, tmp_path, monkeypatch, capsys):
    for folder in (tmp_path, tmp_path / "absent"):
        if command == "purge" and folder.exists():
            continue  # nothing to remove is no mistake
        assert str(folder) in refused(monkeypatch, capsys, command, folder)
        assert list(tmp_path.iterdir()) == []
