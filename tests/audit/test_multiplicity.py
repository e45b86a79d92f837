"""Adjusted p-values against closed testing, the step-up rule itself, and scipy."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from expunge.audit.multiplicity import benjamini_hochberg, holm
from expunge.core.errors import DataError

p_values = st.lists(st.floats(0, 1) | st.sampled_from([0.0, 0.01, 0.5, 1.0]), max_size=7)


def by_closed_testing(p, place):
    """Largest Bonferroni p-value of all sets of tests that hold this one."""
    others = [i for i in range(len(p)) if i != place]
    return max(
        min(1.0, (size + 1) * min(p[i] for i in (place, *chosen)))
        for size in range(len(p))
        for chosen in itertools.combinations(others, size)
    )


def rejected(p, level):
    """Places that the step-up rule rejects at a level, as the paper states it."""
    m = len(p)
    ordered = sorted(p)
    passing = [k for k in range(1, m + 1) if ordered[k - 1] <= level * k / m * (1 + 1e-12)]
    bar = ordered[max(passing) - 1] if passing else -1.0
    return {i for i in range(m) if p[i] <= bar}


def test_worked_example():
    p = [0.01, 0.04, 0.03, 0.005]
    assert holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert benjamini_hochberg(p) == pytest.approx([0.02, 0.04, 0.04, 0.02])


@given(p_values)
def test_holm_is_closed_testing_with_bonferroni(p):
    assert holm(p) == pytest.approx([by_closed_testing(p, i) for i in range(len(p))])


@given(p_values)
def test_benjamini_hochberg_is_the_smallest_level_that_rejects(p):
    m = len(p)
    levels = sorted({min(1.0, q * m / k) for q in p for k in range(1, m + 1)} | {1.0})
    expected = [next(level for level in levels if i in rejected(p, level)) for i in range(m)]
    assert benjamini_hochberg(p) == pytest.approx(expected)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_benjamini_hochberg_equals_scipy(p):
    assert benjamini_hochberg(p) == pytest.approx(list(false_discovery_control(p)))


@given(p_values, st.randoms(use_true_random=False))
def test_adjusting_keeps_order_and_never_lowers(p, random):
    order = list(range(len(p)))
    random.shuffle(order)
    for adjust in (holm, benjamini_hochberg):
        found = adjust(p)
        assert all(1 >= after >= before for before, after in zip(p, found, strict=True))
        assert adjust([p[i] for i in order]) == [found[i] for i in order]
        assert all(
            found[i] <= found[j]
            for i, j in itertools.product(range(len(p)), repeat=2)
            if p[i] <= p[j]
        )
    assert all(h >= b - 1e-15 for h, b in zip(holm(p), benjamini_hochberg(p), strict=True))


@pytest.mark.parametrize("adjust", [holm, benjamini_hochberg])
def test_a_missing_test_stays_missing_and_still_counts(adjust):
    assert adjust([0.01, None, 0.02]) == [
        None if place == 1 else value for place, value in enumerate(adjust([0.01, 1.0, 0.02]))
    ]
    assert adjust([None, None]) == [None, None]


@pytest.mark.parametrize("adjust", [holm, benjamini_hochberg])
def test_no_tests_and_one_test(adjust):
    assert adjust([]) == []
    assert adjust([0.03]) == [0.03]
    assert adjust(np.array([0.03])) == [0.03]


@pytest.mark.parametrize("adjust", [holm, benjamini_hochberg])
@pytest.mark.parametrize("wrong", [math.nan, -0.1, 1.1, math.inf])
def test_what_is_no_p_value_is_refused_by_its_place(adjust, wrong):
    with pytest.raises(DataError, match="p-value 1 is"):
        adjust([0.5, wrong, 0.2])


def test_holm_keeps_the_rate_of_any_false_alarm_where_plain_testing_does_not():
    rng = np.random.default_rng(0)
    trials, tests = 2000, 10
    p = rng.random((trials, tests))  # every null hypothesis is true
    plain = (p < 0.05).any(axis=1).mean()
    adjusted = np.mean([min(holm(list(row))) < 0.05 for row in p])
    assert plain > 0.35
    assert adjusted <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)
