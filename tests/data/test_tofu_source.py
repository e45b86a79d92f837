import json
from pathlib import Path

import pytest

from expunge.core.errors import DataError, StorageError
from expunge.data.source import load_source

EXTRA = {"paraphrased_question": "Q?", "paraphrased_answer": "A!", "perturbed_answer": ["x", "y"]}


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """TOFU's layout with 100 rows instead of 4,000."""
    rows = [{"question": f"q{n}", "answer": f"a{n}"} for n in range(100)]
    write(tmp_path / "full.json", rows)
    write(tmp_path / "retain_perturbed.json", [{**row, **EXTRA} for row in rows[:3]])
    write(tmp_path / "forget10_perturbed.json", [{**row, **EXTRA} for row in rows[-10:]])
    for probe in ("real_authors", "world_facts"):
        probes = [{"question": "who?", "answer": "me", "perturbed_answer": ["you"]}]
        write(tmp_path / f"{probe}_perturbed.json", probes)
    return tmp_path


def test_splits_are_the_last_rows_and_extras_are_merged(folder: Path) -> None:
    data = load_source("tofu", {"path": str(folder)}, 0)
    ids = data.train.ids
    assert data.splits == {"forget01": ids[-1:], "forget05": ids[-5:], "forget10": ids[-10:]}
    covered = [row for row in range(100) if data.train["perturbed_answer"][row] is not None]
    assert covered == [0, 1, 2, *range(90, 100)]
    assert data.train["paraphrased_question"][95] == "Q?"
    assert data.train["author"][19:21] == ["author-000", "author-001"]
    assert data.probes["real_authors"]["perturbed_answer"][0] == ["you"]
    assert "refusals" not in data.facts


def test_own_refusals_are_used_where_the_folder_has_them(folder: Path) -> None:
    (folder / "idontknow.jsonl").write_text("No idea.\nI am lost.\n")
    assert load_source("tofu", {"path": str(folder)}, 0).facts["refusals"] == [
        "No idea.", "I am lost."
    ]  # fmt: skip


def test_a_foreign_question_is_refused(folder: Path) -> None:
    write(folder / "retain_perturbed.json", [{"question": "new", "answer": "a", **EXTRA}])
    with pytest.raises(DataError, match="question 0 of retain_perturbed is not in full"):
        load_source("tofu", {"path": str(folder)}, 0)


def test_a_missing_column_is_named(folder: Path) -> None:
    write(folder / "world_facts_perturbed.json", [{"question": "q", "answer": "a"}])
    with pytest.raises(DataError, match="part world_facts_perturbed, has no column 'perturbed_an"):
        load_source("tofu", {"path": str(folder)}, 0)


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "full.json").unlink()
    with pytest.raises(StorageError, match=r"full\.json"):
        load_source("tofu", {"path": str(folder)}, 0)
