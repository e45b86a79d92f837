"""Journals of JSON lines, whole and torn."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.core.errors import IntegrityError, StorageError
from expunge.core.files import append_line, read_json_lines

LINES = [{"step": 1}, {"step": 2, "note": "é\u2028"}, {"step": 3}]


def journal(path, values):
    for value in values:
        append_line(path, json.dumps(value, ensure_ascii=False))


def test_absent_journal_is_empty(tmp_path):
    assert read_json_lines(tmp_path / "journal") == []


def test_unreadable_journal_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="cannot read"):
        read_json_lines(tmp_path)


@pytest.mark.parametrize("durable", [True, False])
def test_appended_lines_are_read_in_order(tmp_path, durable):
    path = tmp_path / "new" / "journal"
    for value in LINES:
        append_line(path, json.dumps(value, ensure_ascii=False), durable=durable)
    assert read_json_lines(path) == LINES


def test_any_torn_tail_is_dropped_and_then_cut_off(tmp_path):
    path = tmp_path / "journal"
    journal(path, LINES)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        kept = whole[:size].count(b"\n")
        assert read_json_lines(path) == LINES[:kept]
        append_line(path, '"next"')
        assert read_json_lines(path) == [*LINES[:kept], "next"]


def test_a_damaged_whole_line_is_named(tmp_path):
    path = tmp_path / "journal"
    journal(path, LINES)
    path.write_bytes(path.read_bytes().replace(b'{"step": 2', b'{"step  2'))
    with pytest.raises(IntegrityError, match="line 2 is not JSON"):
        read_json_lines(path)


@given(st.lists(st.text()))
def test_any_text_survives(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("journal") / "lines"
    journal(path, texts)
    assert read_json_lines(path) == texts
