"""Verdicts of one run hold together, or are inconclusive."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from expunge.audit.tofu import error_of_fail
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


@pytest.mark.parametrize(("value", "verdict"), [(-1.0, "pass"), (1.0, "fail")])
def test_an_interval_without_width_decides_alone_and_not_among_others(value, verdict):
    exact = finding(value, 0.0, error=0.0)
    assert (exact.verdict, p_value(exact)) == (verdict, 1.0)
    bare = Finding(
        audit="a", metric="m", title="t", subject="after", value=1.0, n=1, direction="none"
    )
    assert judged_together([bare, exact]) == [bare, exact]
    assert judged_together([exact, finding(-5.0, 0.0)])[0].verdict == "inconclusive"


@pytest.mark.parametrize(("value", "bound"), [(0.0, -1.0), (2.0, 3.0), (-0.1, -1.0), (2.1, 3.0)])
def test_a_value_at_the_end_of_its_interval_is_as_sure_as_half_the_width_says(value, bound):
    one = dataclasses.replace(
        finding(value, bound), interval=Interval(low=0.0, high=2.0), verdict="fail"
    )
    errors = stats.norm.isf(0.025) * abs(value - bound)
    assert p_value(one) == pytest.approx(2 * stats.norm.sf(errors))


def test_nothing_judged_is_nothing_changed():
    assert judged_together([]) == []


# Forget quality, which is a p-value itself.


def quality(value, bound=0.05, references=1, verdict=None):
    said = verdict or judge(value, None, bound, "higher")
    return Finding(
        audit="tofu",
        metric="forget_quality",
        title="Forget quality",
        subject="after",
        value=value,
        n=100,
        direction="higher",
        threshold=bound,
        verdict=said,
        error=error_of_fail(value, references, bound)
        if verdict is None and said == "fail"
        else None,
    )


@pytest.mark.parametrize(
    ("value", "bound", "references", "p"),
    [
        (0.04, 0.05, 1, 0.04),
        (0.004, 0.01, 1, 0.02),  # a fail at 1 % is asked for, so it is corrected at 1 %
        (0.04, 0.5, 1, 0.04),  # and at 5 % where more is allowed
        (0.04, 0.05, 2, 0.08),  # the smaller of two
        (0.04, 0.05, 3, 0.06),  # the second of three
        (0.04, 0.05, 4, 0.08),  # the second of four
        (0.6, 0.9, 2, 1.0),
    ],
)
def test_the_p_value_of_a_failed_forget_quality_is_its_own(value, bound, references, p):
    assert p_value(quality(value, bound, references)) == pytest.approx(p)


def test_a_failed_forget_quality_is_corrected_for_the_other_bounds():
    sure, unsure = quality(1e-6), quality(0.03)
    other = finding(-5.0, 0.0)
    assert [one.verdict for one in (sure, unsure, other)] == ["fail", "fail", "pass"]
    assert judged_together([unsure]) == [unsure]
    assert judged_together([quality(0.3, 0.5)])[0].verdict == "fail"
    found = judged_together([sure, other])
    assert [one.verdict for one in found] == ["fail", "pass"]
    found = judged_together([unsure, finding(-0.1, 0.0)])
    assert found[0].verdict == "inconclusive"
    assert found[0].note.endswith(
        "without the other 1 bounds this would be a fail; corrected for them (Holm) p is 0.06"
    )


def test_a_passed_forget_quality_shows_no_error_but_counts():
    passed = quality(0.7)
    assert p_value(passed) is None
    found = judged_together([passed, finding(-2.0, 0.0)])
    assert found[0] == passed
    assert found[1].verdict == "inconclusive"  # 2 * 0.0455


@pytest.mark.parametrize("value", [0.01, 0.9])
def test_a_collapse_is_a_rule_that_no_correction_undoes(value):
    fallen = quality(value, verdict="fail")
    assert p_value(fallen) is None
    assert judged_together([fallen, *[finding(-0.1, 0.0)] * 9])[0] == fallen


@pytest.mark.parametrize(("bound", "references"), [(0.05, 1), (0.01, 1), (0.5, 1), (0.05, 2)])
def test_the_chance_of_any_false_fail_of_forget_quality_is_bounded(bound, references):
    """Ten models like retrained ones, each tested against as many references as there are."""
    p_RMK = np.sort(np.random.default_rng(0).uniform(size=(400, 10, references)))
    alone = together = 0
    for row in p_RMK[:, :, (references - 1) // 2]:
        found = [quality(float(p), bound, references) for p in row]
        alone += any(one.verdict == "fail" for one in found)
        together += any(one.verdict == "fail" for one in judged_together(found))
    level = min(bound, 0.05)
    assert together <= 400 * level + 3 * np.sqrt(400 * level * (1 - level))
    assert alone > 2 * together
