import pytest

from expunge.core.errors import DataError, IntegrityError, StorageError
from expunge.report.card import write_model_card
from expunge.report.examples import purge, write_examples
from expunge.report.report import write_report


def test_answers_stand_side_by_side_under_a_warning(language_run, example_rows):
    text = write_examples(language_run, example_rows).read_text(encoding="utf-8")
    assert "This page contains text of forgotten records." in text
    assert "expunge purge RUN" in text
    assert text.index("Forgotten records") < text.index("Retained records")
    assert "Where was Ilvara Tesk0 born?" in text
    assert "She was born in the old town of Lisse." in text
    assert "Retrained" in text


def test_without_a_retrained_model_there_is_no_such_column(language_run, example_rows):
    for row in example_rows:
        del row["reference"]
    assert "Retrained" not in write_examples(language_run, example_rows).read_text()


def test_a_row_without_a_field_is_refused(language_run, example_rows):
    del example_rows[1]["truth"]
    with pytest.raises(DataError, match="row 1 lacks truth"):
        write_examples(language_run, example_rows)
    assert not (language_run / "examples.html").exists()


def test_purge_leaves_no_text_of_records_anywhere(language_run, example_rows):
    page = write_examples(language_run, example_rows)
    torn = page.with_name("examples.html.partial")
    torn.write_text("Ilvara Tesk0")
    report = write_report(language_run)
    write_model_card(language_run)
    assert purge(language_run) == [page, torn]
    assert "examples.html" not in report.read_text(encoding="utf-8")
    for path in language_run.rglob("*"):
        assert path.is_dir() or b"Ilvara" not in path.read_bytes(), path
    assert purge(language_run) == []


def test_purge_works_before_there_is_a_report(language_run, example_rows):
    write_examples(language_run, example_rows)
    (language_run / "digest.json").unlink()
    assert len(purge(language_run)) == 1


def test_a_damaged_run_still_loses_its_text(language_run, example_rows):
    page = write_examples(language_run, example_rows)
    write_report(language_run)
    (language_run / "plan.json").write_text("{")
    with pytest.raises(IntegrityError, match=r"plan\.json"):
        purge(language_run)
    assert not page.exists()


def test_purge_of_no_folder_is_refused(tmp_path):
    with pytest.raises(StorageError, match="no folder"):
        purge(tmp_path / "nowhere")
