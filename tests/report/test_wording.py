import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.core.config import to_json
from expunge.core.finding import Interval
from expunge.pipeline.request import Request
from expunge.report.wording import (
    asked,
    clean,
    duration,
    interval,
    number,
    set_words,
    shortened,
    subject_words,
)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "", "n/a"),
        (0.0, "%", "0 %"),
        (0.5, "", "0.500"),
        (-0.5, "", "\u22120.500"),
        (12.345, "", "12.35"),
        (1234.5, "", "1234.5"),
        (97.25, "%", "97.2 %"),
        (-0.04, "points", "0 points"),
        (1.2e-7, "", "1.2e-07"),
        (-1.2e-7, "", "\u22121.2e-07"),
    ],
)
def test_numbers_have_the_digits_a_reader_can_use(value, unit, text):
    assert number(value, unit) == text


def test_a_gap_shows_its_sign():
    assert number(0.25, signed=True) == "+0.250"
    assert number(-0.25, signed=True) == "\u22120.250"


def test_an_interval_is_as_exact_as_its_number():
    assert interval(Interval(low=3.26, high=4.0), "%") == "3.3 to 4.0"
    assert interval(None) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (165, "2 min 45 s"), (7260, "2 h 1 min")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_names_in_a_readers_words():
    assert subject_words("reference-0") == "retrained 1"
    assert subject_words("reference-x") == "reference-x"
    assert subject_words("before") == "before"
    assert set_words("real_authors") == "real authors"
    assert set_words("") == "whole model"


def test_a_long_list_is_counted_and_nested_settings_are_flat():
    assert shortened([1, 2]) == "1, 2"
    assert shortened(list(range(20))).endswith("11 (+8 more)")
    assert (
        shortened({"kind": "nll", "of": {"a": [1, 2], "b": None, "c": []}})
        == "kind: nll, of: a: 1, 2"
    )


def test_characters_that_reorder_or_control_are_shown():
    assert clean("a\u202eb\x1b[31m\u2066") == "a[U+202E]b[U+001B][31m[U+2066]"
    assert clean("line\n\ttab") == "line\n\ttab"


@given(st.text())
def test_cleaning_twice_changes_nothing(text):
    once = clean(text)
    assert clean(once) == once
    assert "\x1b" not in once
    assert "\u202e" not in once


def test_a_request_is_told_without_its_defaults():
    assert asked(to_json(Request())) == {}
    told = to_json(Request(split="forget10", identified=0.5))
    assert asked(told) == {"split": "forget10", "identified": "0.5"}
    assert asked({"where": {"author": ["Bo"]}, "count": 1}) == {
        "where": "author: Bo",
        "count": "1",
    }
