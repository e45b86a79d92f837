"""The ledger of a reusable holdout: a chain that only grows, and belongs to one holdout."""

import errno
import json
import os

import pytest
from holdouts import SURE, agree, disagree, mechanism, on_disk, sample
from hypothesis import given
from hypothesis import strategies as st

from expunge.audit.holdout import Answer, Thresholdout
from expunge.audit.holdout_ledger import Ledger
from expunge.core import files
from expunge.core.digest import digest_json
from expunge.core.errors import ConfigError, IntegrityError, StorageError
from expunge.core.records import Records

unit = st.floats(0, 1)


# The ledger


def interview(asked, questions):
    return [asked.ask_values(a, b, question=f"{a} {b}") for a, b in questions]


@given(st.lists(st.tuples(unit, unit), max_size=12), st.integers(0, 12))
def test_stopping_and_going_on_changes_no_answer(tmp_path_factory, questions, stop):
    folder = tmp_path_factory.mktemp("ledger")
    whole = interview(on_disk(folder / "whole", n=50, budget=99), questions)
    parts = interview(on_disk(folder / "parts", n=50, budget=99), questions[:stop])
    parts += interview(on_disk(folder / "parts", n=50), questions[stop:])
    assert parts == whole == interview(mechanism(n=50, budget=99), questions)
    assert (folder / "parts").read_bytes() == (folder / "whole").read_bytes()


@pytest.fixture
def written(tmp_path):
    """A ledger of an opening and four answers."""
    path = tmp_path / "ledger.jsonl"
    asked = on_disk(path, **SURE, budget=5)
    for question in (agree, disagree, agree, disagree):
        question(asked)
    return path


def test_each_entry_holds_the_digest_of_the_one_before(written):
    entries = files.read_json_lines(written)
    assert [e["previous"] for e in entries] == ["0" * 64, *(e["digest"] for e in entries[:-1])]
    assert [e.get("remaining") for e in entries] == [None, 5, 4, 4, 3]
    ledger = Ledger(written)
    assert ledger.head == entries[-1]["digest"]
    assert (ledger.asked, ledger.spent, ledger.remaining) == (4, 2, 3)


def test_any_changed_byte_is_refused(written):
    whole = written.read_bytes()
    for place in range(len(whole) - 1):  # without its last line break the last line is a torn one
        changed = bytearray(whole)
        changed[place] ^= 1
        written.write_bytes(changed)
        with pytest.raises(IntegrityError, match=r"ledger\.jsonl"):
            Ledger(written)


@pytest.mark.parametrize(
    "edit",
    [
        lambda lines: lines[:1] + lines[2:],
        lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
        lambda lines: [*lines, lines[-1]],
        lambda lines: lines[1:],
        lambda lines: [lines[0], lines[0], *lines[1:]],
        lambda lines: [*lines, "[]"],
        lambda lines: [*lines, '{"kind": "answer"}'],
        lambda lines: [*lines[:-1], lines[-1].replace('"low":"0.0"', '"low":NaN')],
    ],
)
def test_lines_left_out_moved_doubled_or_invented_are_refused(written, edit):
    written.write_text("\n".join(edit(written.read_text().splitlines())) + "\n")
    with pytest.raises(IntegrityError, match="line"):
        Ledger(written)


@pytest.mark.parametrize(
    ("line", "change"),
    [
        (2, {"remaining": 5}),
        (2, {"source": "guess"}),
        (2, {"kind": "open"}),
        (0, {"kind": "answer"}),
        (0, {"format": 1}),
    ],
)
def test_entries_that_make_no_sense_are_refused_even_with_a_right_digest(written, line, change):
    entries = files.read_json_lines(written)[: line + 1]
    last = {**entries[-1], **change}
    del last["digest"]
    entries[-1] = {**last, "digest": digest_json(last)}
    written.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    with pytest.raises(IntegrityError, match=f"line {line + 1}"):
        Ledger(written)


def test_an_answer_beyond_the_budget_is_refused(tmp_path):
    path = tmp_path / "ledger"
    disagree(on_disk(path, **SURE, budget=1))
    ledger = Ledger(path)
    entry = {k: v for k, v in files.read_json_lines(path)[1].items() if k not in ("previous",)}
    del entry["digest"]
    with pytest.raises(IntegrityError, match="line 3"):
        ledger.append({**entry, "remaining": -1})
    with pytest.raises(IntegrityError, match="line 3"):
        Ledger(path)


def test_a_ledger_that_was_cut_back_is_found_by_an_anchor(written):
    head = Ledger(written).head
    assert Ledger(written, anchor=head).asked == 4
    lines = written.read_text().splitlines(keepends=True)
    written.write_text("".join(lines[:-1]))
    assert Ledger(written).asked == 3  # the chain alone cannot tell
    with pytest.raises(IntegrityError, match="cut back or replaced"):
        Ledger(written, anchor=head)
    written.unlink()
    with pytest.raises(IntegrityError, match="cut back or replaced"):
        Ledger(written, anchor=head)


@pytest.mark.parametrize("kept", [None, 0, 2])
def test_a_ledger_that_shrinks_while_it_is_used_is_refused(written, kept):
    asked = on_disk(written, **SURE)
    lines = written.read_text().splitlines(keepends=True)
    if kept is None:
        written.unlink()
    else:
        written.write_text("".join(lines[:kept]))
    for _ in range(2):
        with pytest.raises(IntegrityError, match="cut back or replaced"):
            agree(asked)
    written.write_text("".join(lines))
    assert agree(asked).remaining == 3


def test_a_torn_last_line_was_never_answered_and_is_answered_alike(written):
    whole = written.read_bytes()
    lines = whole.splitlines(keepends=True)
    last = json.loads(lines[-1])
    written.write_bytes(b"".join(lines[:-1]) + lines[-1][:40])
    assert disagree(on_disk(written, **SURE)).value == float(last["value"])
    assert written.read_bytes() == whole


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_what_cannot_be_written_is_not_answered(written, monkeypatch, code):
    asked = on_disk(written, **SURE)
    before = written.read_bytes()

    def fail(operation, path):
        raise OSError(code, os.strerror(code), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(files, "fault_hook", fail)
        with pytest.raises(StorageError, match="cannot append"):
            disagree(asked)
    assert written.read_bytes() == before
    assert (asked.ledger.asked, asked.remaining) == (4, 3)
    assert disagree(asked).remaining == 2


def test_a_ledger_in_a_place_that_is_no_folder_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        on_disk(tmp_path / "file" / "ledger")
    with pytest.raises(StorageError, match="cannot read"):
        Ledger(tmp_path)


# What belongs together


def test_a_ledger_serves_one_holdout(written):
    with pytest.raises(IntegrityError, match="another holdout"):
        on_disk(written, n=999)
    renamed = Records(sample("h").ids[::-1], {})
    other = Thresholdout(sample("u"), renamed, Ledger(written), 0)
    assert other.remaining == 3  # the same records in another order, another training sample
    train, holdout = (sample(name, columns=["x"]) for name in "uh")
    with pytest.raises(IntegrityError, match="another holdout"):  # the same ids, other records
        Thresholdout(train, holdout, Ledger(written), 0)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"seed": 1}, "another seed"),
        ({"noise": 0.002}, "noise = 0.002, but it was opened with 0.001"),
        ({"budget": 6}, "budget = 6, but it was opened with 5"),
        ({"mode": "science_demo"}, "mode = 'science_demo'"),
    ],
)
def test_a_ledger_keeps_its_settings(written, given, told):
    before = written.read_bytes()
    with pytest.raises(ConfigError, match=told):
        on_disk(written, **given)
    assert written.read_bytes() == before


def test_the_ledger_does_not_hold_the_seed(tmp_path):
    on_disk(tmp_path / "ledger", seed=918273645546372819)
    assert "918273645546372819" not in (tmp_path / "ledger").read_text()


def test_an_answer_is_recalled_by_the_words_of_its_question(tmp_path):
    path = tmp_path / "ledger"
    asked = on_disk(path, **SURE, budget=1)
    assert asked.recall("how far") is None
    answer = asked.ask_values(0.0, 1.0, question="how far")
    before = path.read_bytes()
    for again in (asked, on_disk(path, **SURE)):
        assert again.recall("how far") == answer
        assert again.recall("how wide") is again.recall("") is None
        assert again.recall("how far", high=2.0) is None
    assert on_disk(path, threshold=0.1).recall("how far") is None
    assert path.read_bytes() == before
    assert answer == Answer(answer.value, "holdout", 0)


def test_an_answer_that_is_recalled_tells_what_was_left_at_its_time(tmp_path):
    path = tmp_path / "ledger"
    asked = on_disk(path, **SURE, budget=3)
    first = asked.ask_values(0.5, 0.5, question="how far")
    disagree(asked)
    assert asked.remaining == 2
    assert asked.recall("how far") == first == Answer(0.5, "train", 3)
