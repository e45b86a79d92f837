"""Runs that share a test set: what they show of it, what they keep apart, what they refuse."""

import json
import re
import shutil

import pytest
from small_recipes import DIGITS

from expunge.audit.holdout_ledger import Ledger
from expunge.core.errors import ConfigError, DataError, IntegrityError, StorageError
from expunge.pipeline.execute import execute, plan_lines
from expunge.pipeline.recipe import make_recipe, recipe_json

FEW = {"name": "salun", "schedule": {"epochs": 1, "lr": 0.02}}


def recipe(file, *, changes=(), **reuse):
    return make_recipe({**DIGITS, **dict(changes), "reuse": {"file": str(file), **reuse}})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("reuse")


@pytest.fixture(scope="module")
def first(folder):
    """The folder of a run that began a ledger, and the ledger's text at its end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXPUNGE_CACHE", str(folder / "cache"))
        # A known seed would be overwritten when the ledger begins.
        run = execute(recipe(folder / "test.jsonl", budget=9), folder / "first", quiet=True)
    return run, (folder / "test.jsonl").read_text()


@pytest.fixture
def ledger(first, folder, tmp_path):
    """A copy of that ledger and its seed."""
    (tmp_path / "test.jsonl").write_text(first[1])
    shutil.copy(folder / "test.jsonl.seed", tmp_path / "test.jsonl.seed")
    return tmp_path / "test.jsonl"


def findings(run):
    return json.loads((run / "findings.json").read_text())


def by_subject(run, metric):
    return {(f["subject"], f["seed"]): f for f in findings(run) if f["metric"] == metric}


def test_numbers_of_the_test_set_are_answers_of_the_ledger(first, folder, finished_digits):
    run, _ = first
    told, plain = by_subject(run, "ta"), by_subject(finished_digits, "ta")
    assert len(told) == 4
    for subject, one in told.items():
        assert one["note"].startswith("Reusable holdout, ")
        assert "of 9 disagreements left" in one["note"]
        assert one["value"] != plain[subject]["value"]
        assert one["interval"] is None
    entries = [json.loads(line) for line in first[1].splitlines()]
    assert len(entries) == 1 + 4
    assert {float(e["value"]) for e in entries[1:]} == {one["value"] for one in told.values()}
    assert entries[1]["question"].startswith("unlearning_gap.ta ")
    assert {entry["asker"] for entry in entries[1:]} == {"small digits"}
    after = told["after", None]
    references = [told["reference", seed]["value"] for seed in (1, 2)]
    assert after["reference"]["values"] == references


def test_what_rests_on_the_test_set_otherwise_is_withheld_and_the_rest_is_as_ever(
    first, finished_digits
):
    run, _ = first
    plain = findings(finished_digits)
    for one, other in zip(findings(run), plain, strict=True):
        if one["record_set"] == "test":
            continue
        if one["audit"] == "unlearning_gap" and one["metric"] in ("mia", "average_gap"):
            assert one["value"] is None
            assert one["note"].startswith("Withheld by the reusable holdout")
        else:
            assert one == other


def test_the_report_shows_the_budget_and_no_test_record(first, finished_digits):
    run, _ = first
    assert "of 9 disagreements left" in (run / "report.html").read_text()
    ids = json.loads((run / "sets.json").read_text())["test"]
    shown = (run / "records.html").read_text()
    assert not any(f">{i}<" in shown for i in ids)
    assert any(f">{i}<" in (finished_digits / "records.html").read_text() for i in ids)
    names = {path.name for path in (run / "held").iterdir()}
    assert names == {path.name for path in (run / "scores").iterdir()}


def test_the_digest_of_the_run_binds_the_state_of_the_ledger(first, folder):
    run, text = first
    outputs = json.loads((run / "digest.json").read_text())["outputs"]
    assert outputs["audit"]["ledger"] == json.loads(text.splitlines()[-1])["digest"]
    assert "held/after.parquet" in outputs["after"]["files"]
    assert Ledger(folder / "test.jsonl").head == outputs["audit"]["ledger"]


def test_a_second_run_asks_only_what_is_new(first, ledger, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("EXPUNGE_CACHE", str(folder / "cache"))
    again = execute(recipe(ledger), tmp_path / "again", quiet=True)
    assert ledger.read_text() == first[1]
    assert findings(again) == findings(first[0])
    other = execute(recipe(ledger, changes={"forget": FEW}), tmp_path / "other", quiet=True)
    assert len(ledger.read_text().splitlines()) == len(first[1].splitlines()) + 1
    known, new = by_subject(first[0], "ta"), by_subject(other, "ta")
    for subject in known:
        same = new[subject]["value"] == known[subject]["value"]
        assert same == (subject != ("after", None))


def test_a_spent_budget_leaves_the_run_whole_and_the_number_out(
    first, folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("EXPUNGE_CACHE", str(folder / "cache"))
    # A threshold and noise of next to nothing: the first question spends the budget.
    settings = {"budget": 1, "threshold": 1e-9, "noise": 1e-12}
    run = execute(recipe(tmp_path / "l", **settings), tmp_path / "run", quiet=True)
    told = by_subject(run, "ta")
    assert told["after", None]["value"] is not None  # it is asked first
    assert told["before", None]["value"] is None
    assert "exhausted: 0 of 1 disagreements left" in told["before", None]["note"]
    assert (run / "report.html").exists()


# What is refused, before anything is done


def refusal(recipe, tmp_path, error):
    with pytest.raises(error) as caught:
        plan_lines(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    return str(caught.value)


def test_a_plan_begins_no_ledger(tmp_path):
    assert plan_lines(recipe(tmp_path / "test.jsonl"), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    told = refusal(recipe(tmp_path / "none" / "test.jsonl"), tmp_path, ConfigError)
    assert f"there is no folder {tmp_path / 'none'}" in told
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"budget": 0}, "reuse.budget"),
        ({"threshold": 0.0}, "reuse.threshold"),
        ({"noise": -1.0}, "reuse.noise"),
        ({"bugdet": 3}, "budget"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path, settings, told):
    with pytest.raises(ConfigError, match=told):
        recipe(tmp_path / "test.jsonl", **settings)
    with pytest.raises(ConfigError, match="file"):
        make_recipe({**DIGITS, "reuse": {"budget": 3}})


def test_a_ledger_of_other_data_is_refused(ledger, tmp_path):
    changes = {"seed": 1}  # other digits are tested on
    told = refusal(recipe(ledger, changes=changes), tmp_path, IntegrityError)
    assert "belongs to another holdout" in told


def test_a_ledger_with_other_settings_is_refused(ledger, tmp_path):
    told = refusal(recipe(ledger, budget=7), tmp_path, ConfigError)
    assert "budget = 7, but it was opened with 9" in told


@pytest.mark.parametrize("seed", [None, "[]", "true", "-1"])
def test_a_ledger_without_its_seed_is_refused(ledger, tmp_path, seed):
    file = tmp_path / "test.jsonl.seed"
    file.unlink()
    if seed is not None:
        file.write_text(seed)
    assert "must hold the seed" in refusal(recipe(ledger), tmp_path, IntegrityError)
    file.write_text("1")
    assert "opened with another seed" in refusal(recipe(ledger), tmp_path, ConfigError)


def test_a_changed_ledger_is_refused(ledger, tmp_path):
    text = ledger.read_text()
    ledger.write_text(re.sub(r'"remaining":\d', '"remaining":1', text, count=1))
    assert ledger.read_text() != text
    assert "is not what was written" in refusal(recipe(ledger), tmp_path, IntegrityError)
    ledger.unlink()
    ledger.mkdir()
    assert "cannot read" in refusal(recipe(ledger), tmp_path, StorageError)


def test_audits_that_never_read_the_test_set_need_no_ledger(tmp_path):
    told = refusal(recipe(tmp_path / "l", changes={"audits": ["mia"]}), tmp_path, ConfigError)
    assert "none of the audits (mia) reads the test set" in told


def test_too_few_test_records_are_refused(tmp_path):
    data = {"name": "digits", "num_test": 20}
    told = refusal(recipe(tmp_path / "l", changes={"data": data}), tmp_path, DataError)
    assert "holdout has 20 records; give at least 30" in told


def test_the_setting_is_part_of_the_recipe_as_written(tmp_path):
    made = recipe(tmp_path / "l", budget=4)
    assert make_recipe(recipe_json(made)) == made
    assert make_recipe(DIGITS).reuse is None
