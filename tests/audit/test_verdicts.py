"""Verdicts of one run hold together, or are inconclusive."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from expunge.audit.verdicts import judged_together, p_value
from expunge.core.finding import Finding, Interval, judge


def finding(value, bound, error=1.0, direction="lower", note=""):
    half = stats.norm.isf(0.025) * error
    interval = Interval(low=value - half, high=value + half)
    return Finding(
        audit="a",
        metric="m",
        title="A number",
        subject="after",
        value=value,
        n=100,
        direction=direction,
        interval=interval,
        threshold=bound,
        verdict=judge(value, interval, bound, direction),
        note=note,
    )


def test_the_p_value_is_that_of_the_normal_distribution():
    for value, direction in ((-2.5, "lower"), (2.5, "higher"), (3.0, "lower")):
        expected = 2 * stats.norm.sf(abs(value))
        assert p_value(finding(value, 0.0, direction=direction)) == pytest.approx(expected)


def test_one_bound_is_judged_as_it_was():
    alone = [finding(-2.0, 0.0)]
    assert judged_together(alone) == alone
    assert alone[0].verdict == "pass"


def test_what_passes_alone_may_not_pass_among_ten():
    among = judged_together([finding(-2.0, 0.0, note="few records")] * 10)
    assert {one.verdict for one in among} == {"inconclusive"}
    assert among[0].note == (
        "few records; without the other 9 bounds this would be a pass; corrected for them (Holm) "
        "p is 0.46"
    )
    sure = judged_together([finding(-5.0, 0.0)] * 10)
    assert {one.verdict for one in sure} == {"pass"}


def test_failures_are_corrected_as_passes_are():
    both = judged_together([finding(-2.0, 0.0), finding(2.0, 0.0)])
    assert [one.verdict for one in both] == ["inconclusive"] * 2


def test_what_was_not_judged_counts_for_nothing_and_what_is_undecided_counts():
    bare = Finding(
        audit="a", metric="m", title="t", subject="after", value=1.0, n=1, direction="none"
    )
    undecided = finding(-0.1, 0.0)
    assert undecided.verdict == "inconclusive"
    decided = finding(-2.0, 0.0)
    assert judged_together([bare, bare, decided]) == [bare, bare, decided]
    *rest, last = judged_together([bare, undecided, decided])
    assert rest == [bare, undecided]
    assert last.verdict == "inconclusive"


@given(st.lists(st.floats(-6, 6), min_size=1, max_size=12))
def test_a_verdict_is_never_turned_round_nor_made_of_nothing(values):
    before = [finding(value, 0.0) for value in values]
    for one, other in zip(before, judged_together(before), strict=True):
        assert other.verdict in (one.verdict, "inconclusive")
        assert other.value == one.value


def test_the_chance_of_any_false_pass_is_bounded():
    """Twenty bounds, each exactly met: alone, some pass in 40 % of runs; together in 5 %."""
    draws = np.random.default_rng(0).normal(size=(400, 20))
    alone = together = 0
    for row in draws:
        found = [finding(value, 0.0) for value in row]
        alone += any(one.verdict != "inconclusive" for one in found)
        together += any(one.verdict != "inconclusive" for one in judged_together(found))
    assert alone > 200
    assert together <= 400 * 0.05 + 3 * np.sqrt(400 * 0.05 * 0.95)


def test_an_interval_without_width_decides_nothing_among_others():
    exact = finding(-1.0, 0.0, error=0.0)
    assert (exact.verdict, p_value(exact)) == ("pass", 1.0)
    assert judged_together([exact, finding(-5.0, 0.0)])[0].verdict == "inconclusive"
