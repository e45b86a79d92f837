"""Steps to one half and their ratio to retraining, on curves drawn by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.audit.learning_curve import Curve, first_crossing, mean_score, steps_ratio

STEPS = np.array([0, 5, 20, 50])


def curve(*scores, n=60, spread=0.0):
    """A curve, and resamples that lie this far to both sides of it."""
    middle = np.array(scores, dtype=float)
    draws = np.stack([middle + shift for shift in np.linspace(-spread, spread, 101)])
    return Curve(STEPS, middle, draws, n)


@pytest.mark.parametrize(
    ("scores", "steps"),
    [
        ((0.0, 0.25, 0.75, 1.0), 12.5),  # half way from 5 to 20
        ((0.0, 0.5, 0.0, 0.0), 5.0),  # the first time counts
        ((0.6, 0.0, 0.0, 1.0), 0.0),
        ((0.0, 0.1, 0.2, 0.3), None),
    ],
)
def test_the_first_crossing_lies_on_a_straight_line(scores, steps):
    assert first_crossing(STEPS, np.array(scores)) == steps


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_the_curve_has_the_level_where_it_first_crosses_it(scores):
    found = first_crossing(STEPS, np.array(scores))
    if found is None:
        assert max(scores) < 0.5
    elif scores[0] < 0.5:
        assert np.interp(found, STEPS, scores) == pytest.approx(0.5, abs=1e-9)


def test_the_mean_score_is_the_area_over_the_steps():
    assert mean_score(STEPS, np.array([0.0, 0.2, 0.4, 1.0])) == pytest.approx(
        (5 * 0.1 + 15 * 0.3 + 30 * 0.7) / 50
    )


def test_the_ratio_compares_with_the_mean_of_references():
    own = curve(0.0, 0.5, 1.0, 1.0)  # 5 steps
    others = [curve(0.0, 0.0, 0.5, 1.0), curve(0.0, 0.0, 0.0, 0.75)]  # 20 and 40 steps
    found = steps_ratio(own, others, None)
    assert found.value == pytest.approx(5 / 30)
    assert (found.note, found.verdict) == ("", None)


def test_a_bound_judges_the_ratio():
    fast, slow = curve(0.0, 0.5, 1.0, 1.0, spread=0.05), curve(0.0, 0.0, 0.5, 1.0, spread=0.05)
    assert steps_ratio(fast, [slow], 0.8).verdict == "fail"
    assert steps_ratio(slow, [fast], 0.8).verdict == "pass"
    certain = curve(0.0, 0.0, 0.5, 1.0)
    assert steps_ratio(slow, [certain], 1.0).verdict == "inconclusive"
    few = curve(0.0, 0.5, 1.0, 1.0, n=49, spread=0.05)
    assert steps_ratio(few, [slow], 0.8).verdict == "inconclusive"
    assert steps_ratio(curve(0, 1, 1, 1, n=19), [slow], 0.8).value is None


def test_equal_curves_are_not_certain():
    """0 of 60 differ: the upper 97.5 % limit of that is 1 - .025^(1/60) = .0596."""
    same = curve(0.0, 0.0, 0.5, 1.0)
    found = steps_ratio(same, [same], 0.95)
    assert (found.interval.low, found.interval.high) == pytest.approx((0.9404, 1.0596), abs=1e-4)
    assert found.verdict == "inconclusive"
    assert steps_ratio(same, [same], 0.9).verdict == "pass"
    at_once = steps_ratio(curve(0.5, 0.5, 0.5, 1.0), [same], None)
    assert (at_once.value, at_once.interval.low) == (0.0, 0.0)


def test_a_curve_that_never_gets_there_is_bounded():
    never, there = curve(0.0, 0.0, 0.0, 0.0), curve(0.0, 0.0, 0.5, 1.0)
    slow = steps_ratio(never, [there], 0.8)
    assert slow.value == 50 / 20
    assert slow.note.startswith("at least")
    assert slow.verdict == "pass"
    assert steps_ratio(never, [there], 4.0).verdict == "inconclusive"
    fast = steps_ratio(there, [never], 0.8)
    assert fast.value == 20 / 50
    assert fast.note.startswith("at most")
    assert fast.verdict == "fail"
    assert steps_ratio(there, [never], 0.1).verdict == "inconclusive"
    assert steps_ratio(never, [never], 0.8).value is None


def test_without_anything_to_compare_with_there_is_no_ratio():
    own = curve(0.0, 0.5, 1.0, 1.0)
    assert steps_ratio(own, [], 0.8).note == "no other retrained model to compare with"
    known = curve(0.6, 0.6, 0.6, 0.6)
    assert "without an attack" in steps_ratio(own, [known], 0.8).note
