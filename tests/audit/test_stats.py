"""Intervals and tests against published figures, brute force and simulation."""

import math
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from expunge.audit.stats import (
    auc,
    bootstrap_aucs,
    bootstrap_means,
    clopper_pearson,
    folded,
    harmonic_mean,
    ks_test,
    mean_interval,
    percentile_interval,
    tpr_at_fpr,
)
from expunge.core.finding import Interval
from expunge.core.streams import stream

numbers = st.lists(st.integers(-5, 5), min_size=1, max_size=12)


def test_clopper_pearson_closed_forms():
    # At 0 and n successes the ends are 1 - (alpha/2)^(1/n) and (alpha/2)^(1/n).
    edge = 0.025 ** (1 / 10)
    assert clopper_pearson(0, 10).low == 0
    assert clopper_pearson(0, 10).high == pytest.approx(1 - edge, abs=1e-12)
    assert clopper_pearson(10, 10).low == pytest.approx(edge, abs=1e-12)
    # scipy.stats.binomtest(60, 100).proportion_ci(method="exact")
    middle = clopper_pearson(60, 100)
    assert (middle.low, middle.high) == pytest.approx((0.4972092, 0.6967052), abs=1e-6)


@pytest.mark.parametrize("chance", [0.02, 0.3, 0.5])
def test_clopper_pearson_covers_exactly_computed(chance):
    n = 30
    covered = sum(
        math.comb(n, s) * chance**s * (1 - chance) ** (n - s)
        for s in range(n + 1)
        if clopper_pearson(s, n).low <= chance <= clopper_pearson(s, n).high
    )
    assert covered >= 0.95


def test_bootstrap_is_a_function_of_its_name_and_is_paired():
    values = np.random.default_rng(0).normal(size=30)
    first = bootstrap_means(values, 0, "forget")
    np.testing.assert_array_equal(first, bootstrap_means(values, 0, "forget"))
    assert not np.array_equal(first, bootstrap_means(values, 1, "forget"))
    assert not np.array_equal(first, bootstrap_means(values, 0, "retain"))
    np.testing.assert_allclose(bootstrap_means(3 * values + 1, 0, "forget"), 3 * first + 1)


def test_bootstrap_interval_covers():
    rng = np.random.default_rng(0)
    trials = 200
    inside = 0
    for trial in range(trials):
        draws = bootstrap_means(rng.exponential(size=60), trial, "coverage", resamples=300)
        interval = percentile_interval(draws)
        inside += interval.low <= 1 <= interval.high
    # 0.95 minus three standard errors and the bootstrap's known shortfall at n = 60
    assert inside / trials >= 0.87
    assert inside / trials < 1


@given(numbers, numbers)
def test_auc_equals_counting_pairs(members, others):
    area, interval = auc(np.array(members, float), np.array(others, float))
    pairs = [(m > o) + 0.5 * (m == o) for m in members for o in others]
    assert area == pytest.approx(np.mean(pairs), abs=1e-12)
    assert 0 <= interval.low <= area + 1e-12
    assert area - 1e-12 <= interval.high <= 1
    mirrored, _ = auc(-np.array(members, float), -np.array(others, float))
    assert area + mirrored == pytest.approx(1)


@pytest.mark.parametrize(
    ("seed", "shift", "spread", "floored"), [(1, 0.5, 4, False), (1, 2.5, 1, True)]
)
def test_an_area_is_as_sure_as_trials_of_its_variance(seed, shift, spread, floored):
    rng = np.random.default_rng(seed)
    m, n = 40, 25
    x, y = rng.normal(shift, spread, m), rng.normal(0, 1, n)
    above = (x[:, None] > y[None, :]).astype(float)
    delong = above.mean(1).var(ddof=1) / m + above.mean(0).var(ddof=1) / n
    # Hanley and McNeil (1982): Q1 = A / (2 - A), Q2 = 2 A^2 / (1 + A); both group sizes are equal
    # in Newcombe's form.
    mean = above.mean()
    q1, q2 = mean / (2 - mean), 2 * mean**2 / (1 + mean)
    others = (m + n) / 2 - 1
    hanley = (mean * (1 - mean) + others * (q1 + q2 - 2 * mean**2)) / (m * n)
    assert (hanley > delong) == floored
    # Korn and Graubard (1998); t of 24 degrees of freedom at 0.975 is 2.0639.
    trials = mean * (1 - mean) / max(hanley, delong) * (1.959963985 / 2.063898562) ** 2
    hits = trials * mean
    low = scipy.stats.beta.ppf(0.025, hits, trials - hits + 1)
    high = scipy.stats.beta.ppf(0.975, hits + 1, trials - hits)
    area, interval = auc(x, y)
    assert area == pytest.approx(mean)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-8)
    assert interval.method == "korn-graubard"


def test_perfect_separation_is_not_certain():
    area, interval = auc(np.arange(10.0) + 100, np.arange(20.0))
    assert area == 1
    assert interval.high == 1
    assert interval.low == pytest.approx(0.025 ** (1 / 10))


def test_tpr_at_fpr():
    others = np.arange(100.0)  # at 1 % one of them may pass: the bar is 98
    assert tpr_at_fpr(np.array([97.5, 98.0, 98.5, 200.0]), others, 0.01) == (2, 4)
    assert tpr_at_fpr(np.array([97.5, 98.5, 99.5]), others[:50], 0.01) == (3, 3)
    assert tpr_at_fpr(np.array([49.0, 50.0]), others[:50], 0.01) == (1, 2)
    assert tpr_at_fpr(np.array([-1.0]), others, 1.0) == (1, 1)


def test_ks_published_values():
    # scipy 1.17.1, ks_2samp, default mode, two-sided
    test = ks_test(np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.15, 0.25, 0.35, 0.9]))
    assert (test.statistic, test.p) == (0.25, pytest.approx(1.0))
    grid = np.arange(40) / 40
    test = ks_test(grid, grid + 0.3)
    assert (test.statistic, test.p) == (pytest.approx(0.325), pytest.approx(0.02860307, abs=1e-8))
    test = ks_test(np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.5, 0.6, 0.35, 0.8]))
    assert test.p == pytest.approx(0.2285714286, abs=1e-10)


@pytest.mark.parametrize(
    ("n", "p"),
    [(20, 1.45e-11), (40, 1.86e-23), (200, 1.94e-119), (300, 1.48e-179), (400, 1.06e-239)],
)
def test_ks_of_complete_separation(n, p):
    # Values seen in published TOFU tables; closed form 2 / C(2n, n).
    test = ks_test(np.arange(n), np.arange(n) + n)
    assert test.statistic == 1
    assert test.p == pytest.approx(p, rel=5e-3)
    exact = math.log10(2) - math.log10(math.comb(2 * n, n))
    assert test.log10_p == pytest.approx(exact, abs=1e-9)


def test_ks_has_a_logarithm_where_the_value_underflows():
    test = ks_test(np.arange(1000), np.arange(1000) + 1000)
    assert test.p == 0
    assert test.log10_p == pytest.approx(math.log10(2) - math.log10(math.comb(2000, 1000)))


def test_ks_of_identical_samples_is_one():
    same = np.array([1.0, 2.0, 2.0])
    assert ks_test(same, same[::-1]).p == 1


def chance_of_leaving(n, h):
    """Share of the C(2n, n) orders of two samples in which the counts ever differ by h."""
    ways = {0: 1}
    for step in range(2 * n):
        following = {}
        for gap, count in ways.items():
            for moved in (gap - 1, gap + 1):
                if abs(moved) < h and abs(moved) <= 2 * n - step - 1:
                    following[moved] = following.get(moved, 0) + count
        ways = following
    return 1 - Fraction(ways.get(0, 0), math.comb(2 * n, n))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=25))
def test_ks_equals_counting_orders_and_ignores_monotone_maps(pairs):
    a, b = np.array(pairs, float).T
    test = ks_test(a, b)
    distance = max(abs(np.mean(a <= bar) - np.mean(b <= bar)) for bar in range(10))
    assert test.statistic == pytest.approx(distance)
    h = round(test.statistic * len(a))
    assert test.p == pytest.approx(float(chance_of_leaving(len(a), h)) if h else 1, rel=1e-9)
    assert test.log10_p == pytest.approx(math.log10(test.p))
    assert ks_test(np.exp(-a), np.exp(-b)).p == pytest.approx(test.p)


def test_ks_wants_the_same_records():
    with pytest.raises(ValueError, match="3 and 2"):
        ks_test(np.arange(3), np.arange(2))


def test_harmonic_mean():
    nine = [0.9, 0.5, 0.4, 0.9, 0.4, 0.5, 0.99, 0.99, 0.45]
    assert harmonic_mean(nine) == pytest.approx(0.58197257, abs=1e-8)
    assert harmonic_mean([0.5] * 8 + [0.0001]) == pytest.approx(0.00089856, abs=1e-8)
    assert harmonic_mean([0.5, 0.0]) == 0
    assert harmonic_mean([0.5, -0.1]) == 0


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=9))
def test_harmonic_mean_lies_between(values):
    mean = harmonic_mean(values)
    assert min(values) - 1e-12 <= mean <= np.mean(values) + 1e-12


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30))
def test_the_interval_of_a_mean_holds_it_and_has_width(values):
    values_R = np.array(values)
    found = mean_interval(values_R, 0, "x")
    assert found.low - 1e-9 <= values_R.mean() <= found.high + 1e-9
    assert found.low >= -1e-9
    assert found.high <= 1 + 1e-9
    if np.ptp(values_R) == 0:
        assert found.high - found.low > 0


def test_equal_values_are_as_uncertain_as_the_records_that_may_differ_unseen():
    for value, hits in ((0.0, 0), (1.0, 40)):
        exact = clopper_pearson(hits, 40)
        found = mean_interval(np.full(40, value), 0, "x")
        assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=1e-12)
    percent = mean_interval(np.full(40, 100.0), 0, "x", high=100.0)
    assert (percent.low, percent.high) == pytest.approx((100 * exact.low, 100.0))


def mean_ends(values_R, count=400, **bounds):
    """Return the ends of an interval of a mean, averaged over seeds."""
    found = [mean_interval(np.array(values_R), seed, "x", **bounds) for seed in range(count)]
    return np.mean([[one.low, one.high] for one in found], axis=0)


def test_the_bounds_of_two_values_follow_the_spline_law():
    """Weights uniform on a triangle: the mean of 0, v and an end follows a B-spline's integral.

    With 0 added it is below t with chance 1 - (1 - t / v)^2; with 1, 1 - (1 - t)^2 / (1 - v) for
    t above v.
    """
    v = 0.4
    expected = v * (1 - math.sqrt(0.975)), 1 - math.sqrt(0.025 * (1 - v))
    assert mean_ends([0.0, v]) == pytest.approx(expected, abs=2e-3)
    shifted = mean_ends([-1.0, -1 + 2 * v], low=-1.0)
    assert (shifted + 1) / 2 == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize(("hits", "n"), [(1, 20), (7, 12), (39, 40)])
def test_the_bounds_of_zeros_and_ones_are_exact(hits, n):
    exact = clopper_pearson(hits, n)
    found = mean_ends([1.0] * hits + [0.0] * (n - hits))
    assert found == pytest.approx((exact.low, exact.high), abs=2e-3)


def test_the_bounds_of_many_values_are_nearly_the_bootstraps():
    values_R = np.random.default_rng(0).beta(2, 5, 5000)
    found = mean_interval(values_R, 0, "x")
    half = 1.959963985 * values_R.std(ddof=1) / math.sqrt(5000)
    ends = values_R.mean() - half, values_R.mean() + half
    assert (found.low, found.high) == pytest.approx(ends, abs=0.15 * half)
    assert found == mean_interval(values_R, 0, "x")
    assert found != mean_interval(values_R, 1, "x")
    assert found != mean_interval(values_R, 0, "y")
    assert found.method == "gaffke"


@given(st.floats(-5, 5), st.floats(0, 5))
def test_the_interval_of_a_distance_holds_every_distance_of_the_difference(low, width):
    signed = Interval(low=low, high=low + width)
    distance = folded(signed)
    inside = np.abs(np.linspace(signed.low, signed.high, 101))
    assert distance.low - 1e-9 <= inside.min()
    assert inside.max() <= distance.high + 1e-9
    if signed.low <= 0 <= signed.high:
        assert distance.low == 0


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 12))
def test_resampled_areas_are_those_of_pairs_counted_one_by_one(seed, m, n):
    rng = np.random.default_rng(seed)
    members, nonmembers = rng.integers(0, 4, m).astype(float), rng.integers(0, 4, n).astype(float)
    found = bootstrap_aucs(members, nonmembers, seed, "a", resamples=5)
    # The same draws, by index.
    draws = stream(seed, "bootstrap", "a")
    rows, others = draws.integers(m, size=(5, m)), draws.integers(n, size=(5, n))
    for area, row, other in zip(found, rows, others, strict=True):
        a, b = members[row][:, None], nonmembers[other][None]
        assert area == pytest.approx(((a > b) + 0.5 * (a == b)).mean(), abs=1e-12)


def test_scores_of_the_same_records_are_resampled_alike():
    rng = np.random.default_rng(0)
    members, nonmembers = rng.normal(size=50), rng.normal(size=70)
    one, again = (bootstrap_aucs(members, nonmembers, 0, "a") for _ in range(2))
    assert np.array_equal(one, again)
    assert len(one) == 1000
    mirrored = bootstrap_aucs(-members, -nonmembers, 0, "a")
    assert one + mirrored == pytest.approx(np.ones(1000))
    assert not np.array_equal(one, bootstrap_aucs(members, nonmembers, 1, "a"))
    assert not np.array_equal(one, bootstrap_aucs(members, nonmembers, 0, "b"))
