"""Every interval covers as it says: within three standard errors, or exactly computed."""

import math

import numpy as np
import pytest

from expunge.audit.stats import auc, bootstrap_means, clopper_pearson, percentile_interval
from expunge.audit.stats_paired import Pairs, newcombe


def assert_nominal(covered, trials, level=0.95):
    assert covered / trials == pytest.approx(level, abs=3 * math.sqrt(level * (1 - level) / trials))


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


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_delong_covers(shift):
    rng = np.random.default_rng(2)
    trials = 1500
    truth = 0.5 * math.erfc(-shift / 2)  # P(N(shift, 1) > N(0, 1))
    pairs = ((rng.normal(shift, 1, 120), rng.normal(0, 1, 120)) for _ in range(trials))
    assert_nominal(sum(holds(auc(*pair)[1], truth) for pair in pairs), trials)


def test_bootstrap_of_a_mean_covers():
    rng = np.random.default_rng(3)
    trials = 500
    covered = 0
    for trial in range(trials):
        draws = bootstrap_means(rng.normal(2, 1, 150), trial, "coverage", resamples=400)
        covered += holds(percentile_interval(draws), 2.0)
    assert_nominal(covered, trials)
