"""McNemar tests and paired effect sizes against published p-values, enumeration and symmetry."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.audit.stats_paired import (
    Pairs,
    count_pairs,
    mcnemar,
    minimal_detectable,
    newcombe,
)
from expunge.core.errors import DataError

counts = st.integers(0, 40)
some_pairs = st.builds(Pairs, n11=st.integers(1, 60), b=counts, c=counts, n00=st.integers(0, 60))


@pytest.mark.parametrize(
    ("b", "c", "chi2", "p_chi2", "p_chi2_cc", "p_exact"),
    [  # computed with scipy's binom and chi2
        (15, 5, 5, 0.02534731868, 0.04417134491, 0.04138946533),
        (6, 1, 3.571428571, 0.05878172136, 0.1305700181, 0.125),
        (120, 80, 8, 0.004677734981, 0.005820666408, 0.005685155997),
        (10, 25, 6.428571429, 0.01122988665, 0.01796047753, 0.01667384780),
        (20, 20, 0, 1, 0.8743670612, 1),
        (0, 0, 0, 1, 1, 1),
    ],
)
def test_mcnemar_reference_values(b, c, chi2, p_chi2, p_chi2_cc, p_exact):
    plain = mcnemar(b, c, "chi2")
    assert (plain.chi2, plain.p) == pytest.approx((chi2, p_chi2), rel=1e-9)
    assert mcnemar(b, c, "chi2_cc").p == pytest.approx(p_chi2_cc, rel=1e-9)
    assert mcnemar(b, c, "exact").p == pytest.approx(p_exact, rel=1e-9)
    assert mcnemar(b, c, "exact").chi2 is None


@pytest.mark.parametrize(
    ("b", "c", "correct", "p", "percent"),
    [  # printed in the notebook of C-BOD (2025); b and c recovered from p and b - c
        (869, 505, 10526, 6.801581e-23, 3.458104),
        (713, 374, 11778, 4.810455e-25, 2.878248),
        (779, 453, 12164, 1.234035e-20, 2.680039),
        (1083, 781, 9785, 2.813125e-12, 3.086357),
        (605, 295, 12716, 2.358781e-25, 2.437874),
    ],
)
def test_mcnemar_reproduces_a_published_notebook(b, c, correct, p, percent):
    found = mcnemar(b, c, "exact")
    assert found.p == pytest.approx(p, rel=1e-6)
    assert found.favours_first()
    pairs = Pairs(n11=correct - b, b=b, c=c, n00=14042 - correct - c)
    assert pairs.percent_of_correct == pytest.approx(percent, abs=1e-6)
    assert pairs.points == pytest.approx(100 * (b - c) / 14042)


def binomial_tail(b, c, half):
    """Two-sided p-value by enumeration; the observed outcome counts ``half``."""
    m, least = b + c, min(b, c)
    ways = Fraction(sum(math.comb(m, k) for k in range(least)))
    ways += half * math.comb(m, least)
    return min(2 * ways / 2**m, Fraction(1))


@given(counts, counts)
def test_binomial_variants_equal_enumeration(b, c):
    exact, midp = mcnemar(b, c, "exact"), mcnemar(b, c, "midp")
    assert exact.p == pytest.approx(float(binomial_tail(b, c, Fraction(1))), rel=1e-9)
    assert midp.p == pytest.approx(float(binomial_tail(b, c, Fraction(1, 2))), rel=1e-9) or b == c
    assert midp.p <= exact.p + 1e-12


@given(counts, st.sampled_from([None, "chi2", "chi2_cc", "exact", "midp"]))
def test_mcnemar_ignores_which_run_is_first_but_the_flag_does_not(b, test):
    one, other = mcnemar(b, 7, test), mcnemar(7, b, test)
    assert one.p == other.p
    assert 0 <= one.p <= 1
    assert not (one.favours_first() and other.favours_first())
    assert one.favours_first() == (one.p < 0.05 and b > 7)


def test_few_pairs_are_tested_exactly_and_many_by_midp_and_the_result_says_so():
    assert mcnemar(20, 4).test == "exact"
    assert mcnemar(20, 5).test == "midp"
    assert mcnemar(20, 4, "chi2").test == "chi2"
    assert mcnemar(20, 5).p == mcnemar(20, 5, "midp").p < mcnemar(20, 5, "exact").p


def test_being_better_the_second_time_is_never_flagged():
    found = mcnemar(10, 25)
    assert found.p < 0.05
    assert not found.favours_first()


def test_exact_and_plain_chi2_can_disagree():
    assert mcnemar(15, 5, "chi2").p < 0.03 < mcnemar(15, 5, "exact").p
    assert mcnemar(6, 1, "chi2").favours_first(0.1)
    assert not mcnemar(6, 1, "exact").favours_first(0.1)


def test_effect_sizes_of_a_table():
    pairs = Pairs(n11=60, b=15, c=5, n00=20)
    assert (pairs.n, pairs.delta, pairs.points) == (100, 10, 10.0)
    assert pairs.percent_of_correct == pytest.approx(100 * 10 / 75)
    assert pairs.odds_ratio == 3
    assert Pairs(n11=0, b=0, c=2, n00=1).percent_of_correct is None
    assert Pairs(n11=5, b=2, c=0, n00=1).odds_ratio is None


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_counting_equals_counting_one_by_one(outcomes):
    first, second = np.array(outcomes).T
    pairs = count_pairs(first, second)
    expected = [outcomes.count(o) for o in [(True, True), (True, False), (False, True)]]
    assert [pairs.n11, pairs.b, pairs.c] == expected
    assert pairs.n == len(outcomes)
    assert pairs.points == pytest.approx(100 * (first.mean() - second.mean()))


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        ((36, 12, 2, 0), 0.0569, 0.3404),  # Newcombe (1998), worked examples of method 10
        ((54, 0, 0, 0), -0.0664, 0.0664),  # the same
        ((1, 1, 7, 12), -0.507, -0.026),  # airway data of Bentur et al. (2009)
    ],
)
def test_newcombe_published_values(table, low, high):
    names = ("n11", "b", "c", "n00")
    interval = newcombe(Pairs(**dict(zip(names, table, strict=True))))
    assert interval.low == pytest.approx(low, abs=5e-4)
    assert interval.high == pytest.approx(high, abs=5e-4)
    assert interval.method == "newcombe"


@given(some_pairs, st.floats(0.5, 0.99))
def test_newcombe_contains_the_estimate_mirrors_and_widens(pairs, level):
    interval = newcombe(pairs, level)
    assert -1 <= interval.low <= pairs.delta / pairs.n + 1e-12
    assert pairs.delta / pairs.n - 1e-12 <= interval.high <= 1
    mirrored = newcombe(Pairs(n11=pairs.n11, b=pairs.c, c=pairs.b, n00=pairs.n00), level)
    assert (mirrored.low, mirrored.high) == pytest.approx((-interval.high, -interval.low))
    wider = newcombe(pairs, level + 0.005)
    assert wider.low <= interval.low
    assert interval.high <= wider.high


@pytest.mark.parametrize("test", [None, "chi2", "chi2_cc", "exact", "midp"])
@pytest.mark.parametrize("discordant", [0, 5, 6, 10, 24, 25, 60])
def test_the_detectable_difference_is_the_smallest_significant_one(test, discordant):
    splits = range(discordant % 2, discordant + 1, 2)  # b - c has the parity of b + c
    found = [
        delta
        for delta in splits
        if mcnemar((discordant + delta) // 2, (discordant - delta) // 2, test).favours_first()
    ]
    assert minimal_detectable(discordant, test=test) == (min(found) if found else None)


def test_five_discordant_pairs_can_never_be_significant():
    assert minimal_detectable(5) is None
    assert minimal_detectable(6) == 6  # 2 / 2**6 = 0.03125


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        ([True], [True, False], "same items"),
        ([[True]], [[True]], "same items"),
        ([1, 0], [0, 1], "booleans"),
        ([True, math.nan], [True, False], "booleans"),
        (np.zeros(0, bool), np.zeros(0, bool), "no item"),
    ],
)
def test_outcomes_that_are_not_paired_booleans_are_refused(first, second, told):
    with pytest.raises(DataError, match=told):
        count_pairs(first, second)


@pytest.mark.parametrize("count", [-1, 1.0, True, None, "3"])
def test_what_is_no_count_is_refused(count):
    with pytest.raises(DataError, match="no count"):
        mcnemar(count, 1)
    with pytest.raises(DataError, match="no count"):
        Pairs(n11=1, b=1, c=count, n00=1)
    with pytest.raises(DataError, match="no count"):
        minimal_detectable(count)


@pytest.mark.parametrize("level", [0, 1, -0.1, 1.5, math.nan])
def test_levels_out_of_range_are_refused(level):
    with pytest.raises(DataError, match="between 0 and 1"):
        mcnemar(9, 1).favours_first(level)
    with pytest.raises(DataError, match="between 0 and 1"):
        newcombe(Pairs(n11=1, b=1, c=1, n00=1), level)
    with pytest.raises(DataError, match="between 0 and 1"):
        minimal_detectable(9, level)


def test_an_unknown_variant_is_refused():
    with pytest.raises(DataError, match="'fisher' is unknown"):
        mcnemar(3, 1, "fisher")
