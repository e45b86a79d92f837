"""A run and its folder: what is in it, what is verified, what a second start does."""

import json
import shutil
from pathlib import Path

import pytest
from small_recipes import DIGITS, PEOPLE

from expunge.core.errors import IntegrityError
from expunge.core.manifest import Manifest
from expunge.engine.weights import state_digest
from expunge.models.store import load_saved
from expunge.pipeline import steps
from expunge.pipeline.execute import execute, plan_lines
from expunge.pipeline.recipe import make_recipe, read_recipe
from expunge.pipeline.work import plan, prepare


@pytest.fixture
def copied(finished_digits, tmp_path):
    return shutil.copytree(finished_digits, tmp_path / "run")


def _never(*arguments):
    raise AssertionError("this was not to be done")


def read(folder, name):
    return json.loads((folder / name).read_text())


def outputs(folder):
    return read(folder, "digest.json")["outputs"]


def test_the_folder_holds_what_it_should(finished_digits):
    names = {path.name for path in finished_digits.iterdir()}
    assert names == {
        ".lock",
        "MODEL_CARD.md",
        "digest.json",
        "environment.json",
        "events.jsonl",
        "findings.json",
        "history",
        "journal.jsonl",
        "models",
        "models.json",
        "plan.json",
        "recipe.yaml",
        "records.html",
        "report.html",
        "scores",
        "sets.json",
        "timing.json",
    }


def test_models_are_what_digests_and_manifests_say(finished_digits):
    for subject in ("before", "after"):
        folder = finished_digits / "models" / subject
        assert state_digest(load_saved(folder).model) == outputs(finished_digits)[subject]["model"]
        manifest = read(finished_digits, f"models/{subject}.manifest.json")
        Manifest(manifest["files"]).verify(folder)
    table = read(finished_digits, "models.json")
    assert table["after"]["lineage"]["before"] == table["before"]["digest"]
    assert table.keys() == {"before", "after", "reference-0", "reference-1"}


def test_every_model_is_judged_on_every_finding(finished_digits):
    findings = read(finished_digits, "findings.json")
    seen = {}
    for one in findings:
        seen.setdefault((one["audit"], one["metric"], one["record_set"]), []).append(one["subject"])
    assert {audit for audit, *_ in seen} == {"unlearning_gap", "mia"}
    wanted = ["after", "before", "reference", "reference"]
    assert all(sorted(subjects) == wanted for subjects in seen.values())


def test_a_finished_run_started_again_does_nothing_new(copied, monkeypatch):
    before = outputs(copied)
    for name in ("train", "reference", "forget", "audit"):
        monkeypatch.setattr(steps, name, _never)
    execute(make_recipe(DIGITS), copied, quiet=True)
    assert outputs(copied) == before


def test_the_recipe_of_a_run_does_the_same_again(finished_digits, tmp_path, monkeypatch):
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    recipe = read_recipe(finished_digits / "recipe.yaml")
    execute(recipe, tmp_path / "again", quiet=True)
    assert read(tmp_path / "again", "digest.json") == read(finished_digits, "digest.json")


@pytest.mark.parametrize(
    ("folder", "command"),
    [
        ("runs/forget", "expunge run runs/forget/recipe.yaml --out runs/forget-again"),
        ("my runs/a", "expunge run 'my runs/a/recipe.yaml' --out 'my runs/a-again'"),
    ],
)
def test_the_command_to_repeat_a_run_works_where_the_run_was_started(
    folder, command, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    work = prepare(make_recipe(DIGITS), Path(folder), quiet=True, watch=None)
    assert plan(work)["command"] == command


FILES = [
    "models/before/model.safetensors",
    "models/after/architecture.json",
    "history/train.json",
    "scores/before.parquet",
    "scores/reference-1.parquet",
    "findings.json",
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["tear", "remove"])
def test_damaged_files_of_finished_steps_are_refused(name, damage, copied):
    whole = (copied / name).read_bytes()
    (copied / name).unlink()
    if damage == "tear":
        (copied / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(IntegrityError, match=f"{name}, written by the finished step"):
        execute(make_recipe(DIGITS), copied, quiet=True)


def test_a_lost_model_folder_is_refused(copied):
    shutil.rmtree(copied / "models/after")
    with pytest.raises(IntegrityError, match=r"models/after/.*, written by .* step 'forget'"):
        execute(make_recipe(DIGITS), copied, quiet=True)


def test_every_file_that_decides_the_result_is_verified(finished_digits):
    verified = {name for found in outputs(finished_digits).values() for name in found["files"]}
    kept = {
        path.relative_to(finished_digits).as_posix()
        for folder in ("models", "scores", "history")
        for path in (finished_digits / folder).rglob("*")
        if path.is_file() and not path.name.endswith(".manifest.json")
    }
    assert kept | {"findings.json"} == verified


def test_a_purged_run_can_be_started_again(finished_people, tmp_path):
    from expunge.report.examples import purge

    folder = shutil.copytree(finished_people, tmp_path / "run")
    assert purge(folder) == [folder / "examples.html"]
    execute(make_recipe({**PEOPLE, "examples": 1}), folder, quiet=True)
    assert not (folder / "examples.html").exists()


def test_a_plan_changes_nothing(tmp_path):
    told = "\n".join(plan_lines(make_recipe(DIGITS), tmp_path / "run"))
    assert "108 forget, 969 retain" in told
    assert "2 retrained without the forget set" in told
    assert "salun (SalUn (Fan et al., 2024))" in told
    assert not (tmp_path / "run").exists()


def test_names_in_a_request_do_not_reach_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    value = {**DIGITS, "request": {"where": {"y": [3]}}, "references": 0, "audits": []}
    execute(make_recipe(value), tmp_path / "run", quiet=True)
    request = read_recipe(tmp_path / "run/recipe.yaml").request
    assert request.where is None
    assert list(request.ids) == read(tmp_path / "run", "sets.json")["forget"]
    execute(make_recipe(value), tmp_path / "run", quiet=True)  # and it is the same run


def test_given_references_are_the_ones_shown_in_examples(tmp_path, monkeypatch):
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(steps, "retrained", _never)
    given = [PEOPLE["model"]]
    value = {**PEOPLE, "references": 0, "given_references": given, "examples": 1, "audits": ["mia"]}
    execute(make_recipe(value), tmp_path / "run", quiet=True)
    assert (tmp_path / "run/examples.html").exists()
