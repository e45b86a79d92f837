"""Values by record id, shares of a fall, and bounds on few records."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.audit.evidence import Measurement, Subject
from expunge.audit.outcomes import (
    NO_REFERENCE,
    Share,
    beneath,
    bounded,
    excess_of,
    mean_of,
    paired,
    scored_as,
    share_of,
    values_of,
)
from expunge.audit.readings import Reading
from expunge.core.finding import Interval

PLAIN = Reading("forget", "prefix:1")


def subject(make_scores, role="after", **views):
    scores = {
        dataclasses.replace(PLAIN, view=view): made if hasattr(made, "ids") else make_scores(made)
        for view, made in views.items()
    }
    return Subject(role, role, scores)


def test_the_view_of_the_answers_comes_last():
    assert beneath("answer", "perturbed:0") == "perturbed:0"
    assert beneath("context:demo:5", "perturbed:0") == "context:demo:5:perturbed:0"


def test_wrong_answers_are_read_for_knowledge_only(people):
    asked = dataclasses.replace(PLAIN, measures=("rephrasing",))
    assert list(scored_as(asked, "exact", people)) == [PLAIN]
    told = list(scored_as(asked, "knowledge", people))
    assert [r.view for r in told] == ["prefix:1", "prefix:1:perturbed:0", "prefix:1:perturbed:1"]
    assert [r.measures for r in told] == [("rephrasing",), (), ()]


def test_values_go_by_record_id(make_scores):
    """Record 1 lacks a wrong answer: it has no knowledge, and its neighbours keep theirs."""
    wrong = make_scores([-0.5, -9.0, -0.1])
    wrong = dataclasses.replace(wrong, ids=("r-0", "r-2", "r-3"))
    second = dataclasses.replace(make_scores([-0.05]), ids=("r-2",))
    views = {"prefix:1": [-0.1, -0.2, -0.3, -0.4], "prefix:1:perturbed:0": wrong}
    known = subject(make_scores, **views)
    assert values_of(known, PLAIN, "knowledge") == {"r-0": 1.0, "r-2": 1.0, "r-3": 0.0}
    known = subject(make_scores, **views, **{"prefix:1:perturbed:1": second})
    assert values_of(known, PLAIN, "knowledge") == {"r-0": 1.0, "r-2": 0.0, "r-3": 0.0}
    probability = values_of(known, PLAIN, "probability")
    assert list(probability.values()) == pytest.approx(np.exp([-0.1, -0.2, -0.3, -0.4]), abs=1e-6)


def test_exact_asks_for_every_token(make_scores):
    assert values_of(subject(make_scores, **{"prefix:1": make_scores([-1.0] * 3, wrong=(1,))}),
                     PLAIN, "exact") == {"r-0": 1.0, "r-1": 0.0, "r-2": 1.0}  # fmt: skip


def test_what_was_not_scored_has_no_values(make_scores):
    nothing = subject(make_scores)
    assert values_of(nothing, PLAIN, "knowledge") == values_of(nothing, PLAIN, "exact") == {}


@given(st.permutations(range(6)), st.sets(st.integers(0, 5)))
def test_a_missing_item_never_shifts_anothers_value(order, gone):
    first = {f"r-{i}": float(i) for i in range(6)}
    second = {f"r-{i}": 10.0 * i for i in order if i not in gone}
    one_R, other_R = paired(first, second)
    assert one_R.tolist() == [i for i in range(6) if i not in gone]
    assert other_R.tolist() == [10.0 * i for i in range(6) if i not in gone]


def test_a_share_is_not_clipped_and_undefined_on_a_small_fall():
    """Section 11 of the card: O = .8, U = .3; S = .8, .25 and .9; and O = .35, U = .30."""
    n = 40
    for score, rho in ((0.8, 1.0), (0.25, -0.1), (0.9, 1.2)):
        share = share_of(np.full(n, score - 0.3), np.full(n, 0.8 - 0.3), 0, "test")
        assert share.value == pytest.approx(rho)
        assert share.measured().n == n
    small = share_of(np.full(n, 0.2), np.full(n, 0.35 - 0.30), 0, "test")
    assert small.value is None
    assert "nothing was forgotten, or nothing was known" in small.note
    assert small.measured().interval is None
    few = share_of(np.full(19, 0.2), np.full(19, 0.5), 0, "test")
    assert (few.value, few.note) == (None, "19 records; at least 20 are needed")


def test_part_and_whole_are_resampled_alike():
    """Where each record gets half of its own fall back, every resample says one half."""
    fall_R = np.linspace(0.1, 0.9, 50)
    share = share_of(fall_R / 2, fall_R, 3, "test")
    assert share.value == pytest.approx(0.5)
    assert np.allclose(share.draws, 0.5)
    moved = share_of(np.full(50, 0.25), fall_R, 3, "test")
    assert np.ptp(moved.draws) > 0.05


def test_a_fall_that_resamples_undo_leaves_no_interval():
    """The fall of 0.15 on average is 0 or less in more than 2.5 % of the resamples."""
    fall_R = np.array([1.0, -0.7] * 10)
    share = share_of(np.full(20, 0.1), fall_R, 0, "test")
    assert share.value == pytest.approx(0.1 / 0.15)
    assert share.measured().interval is None


def test_the_excess_is_over_the_mean_of_those_that_have_a_share():
    draws = np.linspace(0.2, 0.4, 101)
    own = Share(0.9, draws + 0.6, 60)
    others = [Share(0.3, draws, 60), Share(0.5, draws + 0.2, 60), Share(None, np.empty(0), 60, "x")]
    found = excess_of(own, others)
    assert found.value == pytest.approx(0.5)
    assert (found.interval.low, found.interval.high) == pytest.approx((0.5, 0.5))
    assert found.note == "on 2 of 3 references"
    thin = excess_of(own, [others[0], others[2], others[2]])
    assert (thin.interval, thin.note) == (None, "on 1 of 3 references; too few for an interval")
    assert excess_of(own, others[:2]).note == ""
    assert excess_of(own, []).note == NO_REFERENCE
    assert excess_of(own, others[2:]).note == "x"
    assert excess_of(others[2], others[:1]).value is None


def test_shares_without_a_difference_are_not_certain():
    """Nothing of a fall of .5 came back in 60 records: up to .0596 / .5 may have, unseen."""
    share = share_of(np.zeros(60), np.full(60, 0.5), 0, "test")
    for found in (share.measured(), excess_of(share, [share])):
        assert found.value == 0
        assert (found.interval.low, found.interval.high) == pytest.approx(
            (-0.1192, 0.1192), abs=1e-4
        )


def test_equal_values_do_not_pass_for_certain():
    """0 of 50 differ: the upper 97.5 % limit of that is 1 - .025^(1/50) = .0711."""
    found = mean_of(np.zeros(50), 0, "test")
    assert found.value == 0
    assert (found.interval.low, found.interval.high) == pytest.approx((-0.0711, 0.0711), abs=1e-4)
    found = mean_of(np.ones(50), 0, "test")
    assert (found.interval.low, found.interval.high) == pytest.approx((0.8578, 1.0), abs=1e-4)
    assert mean_of(np.zeros(19), 0, "test").value is None
    spread = mean_of(np.tile([0.2, 0.4], 30), 0, "test")
    assert spread.value == pytest.approx(0.3)
    assert spread.interval.low < 0.3 < spread.interval.high


def test_a_bound_is_judged_on_fifty_records_only():
    interval = Interval(low=0.0, high=0.1)
    after = Subject("after", "a", {})
    enough, few = Measurement(0.05, 50, interval), Measurement(0.05, 49, interval, "first")
    assert bounded(after, enough, 0.2) is enough
    assert bounded(after, few, None) is few
    assert bounded(Subject("reference", "r", {}), few, 0.2) is few
    told = bounded(after, few, 0.2)
    assert told.verdict == "inconclusive"
    assert told.note == "first; 49 records; a bound is judged on 50 or more"
    loose = bounded(after, Measurement(0.05, 60), 0.2)
    assert (loose.verdict, loose.note) == (
        "inconclusive",
        "no interval, so the bound is not judged",
    )
