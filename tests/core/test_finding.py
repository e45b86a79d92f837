import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.core.finding import Finding, Interval, Reference, judge

NUMBERS = st.floats(-100, 100)


def finding(**changes):
    base = Finding(
        audit="privacy",
        metric="auc",
        title="How well members are told apart",
        subject="after",
        value=0.52,
        n=200,
        direction="reference",
        interval=Interval(low=0.46, high=0.58, method="bootstrap"),
        reference=Reference(values=(0.5, 0.51), gap=0.015, noise_floor=0.01),
        threshold=0.6,
    )
    return dataclasses.replace(base, **changes)


@pytest.mark.parametrize(
    ("value", "interval", "direction", "verdict"),
    [
        (0.7, None, "higher", "pass"),
        (0.5, None, "higher", "pass"),
        (0.4, None, "higher", "fail"),
        (0.4, None, "lower", "pass"),
        (0.5, None, "lower", "pass"),
        (0.7, None, "lower", "fail"),
        (0.7, (0.5, 0.9), "higher", "pass"),
        (0.7, (0.4, 0.9), "higher", "inconclusive"),
        (0.4, (0.1, 0.5), "higher", "inconclusive"),
        (0.4, (0.1, 0.49), "higher", "fail"),
        (0.4, (0.1, 0.5), "lower", "pass"),
        (0.4, (0.1, 0.6), "lower", "inconclusive"),
        (0.7, (0.51, 0.9), "lower", "fail"),
        (None, None, "higher", "inconclusive"),
        (None, (0.6, 0.9), "lower", "inconclusive"),
        (math.nan, None, "higher", "inconclusive"),
    ],
)
def test_judge_against_one_half(value, interval, direction, verdict):
    ends = Interval(low=interval[0], high=interval[1]) if interval else None
    assert judge(value, ends, 0.5, direction) == verdict


@given(NUMBERS, NUMBERS, NUMBERS)
def test_judge_is_symmetric(low, high, threshold):
    low, high = sorted((low, high))
    up = judge(low, Interval(low=low, high=high), threshold, "higher")
    down = judge(-low, Interval(low=-high, high=-low), -threshold, "lower")
    assert up == down


@given(NUMBERS, NUMBERS, NUMBERS, st.floats(0, 10))
def test_a_wider_interval_never_decides_more(low, high, threshold, wider):
    low, high = sorted((low, high))
    narrow = judge(low, Interval(low=low, high=high), threshold, "higher")
    wide = judge(low, Interval(low=low - wider, high=high + wider), threshold, "higher")
    assert wide in (narrow, "inconclusive")


@pytest.mark.parametrize("direction", ["reference", "none"])
def test_a_bound_needs_a_side(direction):
    with pytest.raises(ValueError, match=f"not '{direction}'"):
        judge(0.5, None, 0.5, direction)


@pytest.mark.parametrize(
    "one", [finding(), finding(interval=None, reference=None), finding(value=None, note="empty")]
)
def test_round_trip_through_json_text(one):
    again = Finding.from_json(json.loads(json.dumps(one.to_json())))
    assert again == one
    assert again.digest() == one.digest()


def test_digest_changes_with_any_field():
    digests = {
        finding(**change).digest()
        for change in ({}, {"value": 0.53}, {"version": 2}, {"sets": "ab"}, {"interval": None})
    }
    assert len(digests) == 5


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "place",
    [
        lambda x: {"value": x},
        lambda x: {"threshold": x},
        lambda x: {"interval": Interval(low=0.0, high=x)},
        lambda x: {"reference": Reference(values=(0.5, x), gap=0.0, noise_floor=None)},
        lambda x: {"reference": Reference(values=(0.5,), gap=x, noise_floor=None)},
    ],
)
def test_non_finite_numbers_are_refused(number, place):
    with pytest.raises(ValueError, match=r"finding privacy\.auc"):
        finding(**place(number))
