import json

import pytest

from expunge.core.errors import ExpungeError, IntegrityError, StorageError
from expunge.report.facts import read_facts
from expunge.report.report import write_report

NEEDED = (
    "recipe.yaml",
    "environment.json",
    "sets.json",
    "plan.json",
    "findings.json",
    "timing.json",
    "models.json",
    "digest.json",
    "scores/after.parquet",
)


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_file_is_named_and_no_report_is_left(language_run, name):
    (language_run / name).unlink()
    with pytest.raises(StorageError, match=name.rpartition("/")[2]):
        write_report(language_run)
    assert not (language_run / "report.html").exists()


@pytest.mark.parametrize("name", [n for n in NEEDED if n != "recipe.yaml"])
def test_a_truncated_file_is_named(language_run, name):
    path = language_run / name
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(IntegrityError, match=name.rpartition("/")[2]):
        write_report(language_run)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("plan.json", {"method": {}}, "method.name"),
        ("findings.json", [{"audit": "tofu"}], "0.metric"),
        ("timing.json", {"train": "long"}, "train"),
        ("digest.json", {}, "run"),
        ("sets.json", {"forget": []}, "forget set is empty"),
        ("history/forget.json", {"steps": [{"step": "one"}]}, "steps.0.step"),
    ],
)
def test_a_file_with_the_wrong_content_says_what_is_wrong(language_run, name, value, message):
    (language_run / name).write_text(json.dumps(value))
    with pytest.raises(ExpungeError, match=message):
        read_facts(language_run)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(StorageError, match="holds no run"):
        read_facts(tmp_path)


def test_models_come_in_the_order_of_the_story(language_run):
    assert list(read_facts(language_run).models) == [
        "before",
        "after",
        "reference-0",
        "reference-1",
    ]
