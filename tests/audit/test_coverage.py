"""Every interval covers as it says: within simulation error, or exactly computed.

Where only conservative intervals are honest, they cover at least nominally, and are no wider than
another honest one.
"""

import math

import numpy as np
import pytest
from scipy.stats import binom, norm

from expunge.audit.stats import (
    auc,
    bootstrap_means,
    clopper_pearson,
    mean_interval,
    percentile_interval,
)
from expunge.audit.stats_paired import Pairs, newcombe


def assert_nominal(covered, trials, level=0.95):
    assert covered / trials == pytest.approx(level, abs=3 * math.sqrt(level * (1 - level) / trials))


def assert_at_least_nominal(covered, trials, level=0.95):
    # Of 2000 intervals that cover as they say, one is here called too short.
    assert covered >= binom.ppf(0.0005, trials, level)


def width(interval):
    return interval.high - interval.low


def holds(interval, truth):
    return interval.low <= truth <= interval.high


@pytest.mark.parametrize("n", [5, 40, 150])
def test_clopper_pearson_never_covers_less(n):
    intervals = [clopper_pearson(s, n) for s in range(n + 1)]
    for chance in np.linspace(0.01, 0.99, 25):
        covered = sum(
            math.comb(n, s) * chance**s * (1 - chance) ** (n - s)
            for s, interval in enumerate(intervals)
            if holds(interval, chance)
        )
        assert covered >= 0.95


@pytest.mark.parametrize(
    "chances", [(0.5, 0.2, 0.1, 0.2), (0.3, 0.1, 0.1, 0.5), (0.6, 0.25, 0.05, 0.1)]
)
def test_newcombe_covers(chances):
    rng = np.random.default_rng(1)
    trials = 1500
    covered = 0
    for n11, b, c, n00 in rng.multinomial(120, chances, trials):
        interval = newcombe(Pairs(n11=int(n11), b=int(b), c=int(c), n00=int(n00)))
        covered += holds(interval, chances[1] - chances[2])
    assert_nominal(covered, trials)


@pytest.mark.parametrize("area", [0.5, 0.76])
def test_an_area_covers_and_is_hardly_wider_than_its_error(area):
    rng = np.random.default_rng(2)
    trials, shift = 1500, norm.ppf(area) * math.sqrt(2)  # P(N(shift, 1) > N(0, 1)) is the area
    found = [auc(rng.normal(shift, 1, 120), rng.normal(0, 1, 120)) for _ in range(trials)]
    assert_at_least_nominal(sum(holds(interval, area) for _, interval in found), trials)
    error = np.std([value for value, _ in found])
    assert np.mean([width(interval) for _, interval in found]) < 1.1 * 2 * norm.isf(0.025) * error


@pytest.mark.parametrize("n", [25, 50, 100])
@pytest.mark.parametrize("area", [0.96, 0.99])
@pytest.mark.parametrize("spread", [1.0, 3.0])
def test_an_area_near_one_covers(area, n, spread):
    rng = np.random.default_rng(4)
    trials, shift = 600, norm.ppf(area) * math.hypot(spread, 1)
    found = [auc(rng.normal(shift, spread, n), rng.normal(0, 1, n)) for _ in range(trials)]
    assert_at_least_nominal(sum(holds(interval, area) for _, interval in found), trials)
    # Counting disjoint pairs alone covers as well, and wastes all others.
    pairs = np.mean([width(clopper_pearson(value * n, n)) for value, _ in found])
    assert np.mean([width(interval) for _, interval in found]) < pairs


def test_an_area_of_few_members_and_many_others_covers():
    rng = np.random.default_rng(5)
    trials, shift = 700, norm.ppf(0.96) * math.sqrt(2)
    found = [auc(rng.normal(shift, 1, 20), rng.normal(0, 1, 200))[1] for _ in range(trials)]
    assert_at_least_nominal(sum(holds(interval, 0.96) for interval in found), trials)


def test_an_area_of_scores_with_ties_covers():
    rng = np.random.default_rng(6)
    trials, chances, others = (
        700,
        np.array([0.02, 0.04, 0.2, 0.74]),
        np.array([0.6, 0.3, 0.08, 0.02]),
    )
    below = np.cumsum(others) - others / 2  # P(other < score), and half of P(other = score)
    truth = chances @ below
    assert truth > 0.9
    found = [
        auc(rng.choice(4, 50, p=chances), rng.choice(4, 50, p=others))[1] for _ in range(trials)
    ]
    assert_at_least_nominal(sum(holds(interval, truth) for interval in found), trials)


@pytest.mark.parametrize("noise", [0.0, 0.001], ids=["on zeros", "on noise"])
@pytest.mark.parametrize(
    ("chance", "n"), [(0.05, 20), (0.05, 30), (0.05, 50), (0.02, 20), (0.02, 50)]
)
def test_the_mean_of_rare_hits_covers(chance, n, noise):
    rng = np.random.default_rng(7)
    trials, covered, widths = 400, 0, []
    for trial in range(trials):
        hits_R = rng.random(n) < chance
        values_R = np.where(hits_R, 1.0, noise * rng.random(n))
        interval = mean_interval(values_R, trial, "coverage")
        covered += holds(interval, chance + (1 - chance) * noise / 2)
        widths.append([width(interval), width(clopper_pearson(hits_R.sum(), n))])
    assert_at_least_nominal(covered, trials)
    own, exact = np.mean(widths, axis=0)  # of the hits alone, which is all that there is to know
    assert own == pytest.approx(exact, rel=0.02)


def mostly_at_the_ends(rng, n):
    """Return scores like ROUGE of answers that are mostly lost, else whole, seldom in between."""
    kind_R = rng.random(n)
    return np.select([kind_R < 0.7, kind_R < 0.85], [0.0, 1.0], rng.random(n))


@pytest.mark.parametrize("n", [20, 50, 100])
@pytest.mark.parametrize(
    ("drawn", "truth", "low"),
    [
        (mostly_at_the_ends, 0.15 + 0.15 / 2, 0.0),
        (lambda rng, n: 1 - mostly_at_the_ends(rng, n), 1 - (0.15 + 0.15 / 2), 0.0),
        (lambda rng, n: rng.beta(0.1, 2, n), 0.1 / 2.1, 0.0),
        (lambda rng, n: rng.choice([-1.0, 0.0, 1.0], n, p=[0.01, 0.96, 0.03]), 0.02, -1.0),
    ],
    ids=["low", "high", "skewed", "differences"],
)
def test_the_mean_of_bounded_scores_covers(drawn, truth, low, n):
    rng = np.random.default_rng(8)
    trials = 400
    intervals = [
        mean_interval(drawn(rng, n), trial, "coverage", low=low) for trial in range(trials)
    ]
    assert_at_least_nominal(sum(holds(interval, truth) for interval in intervals), trials)


def test_bootstrap_of_a_mean_covers():
    rng = np.random.default_rng(3)
    trials = 500
    covered = 0
    for trial in range(trials):
        draws = bootstrap_means(rng.normal(2, 1, 150), trial, "coverage", resamples=400)
        covered += holds(percentile_interval(draws), 2.0)
    assert_nominal(covered, trials)
