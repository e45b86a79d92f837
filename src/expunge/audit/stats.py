"""Intervals and tests, as pure functions of numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import stats
from scipy.special import gammaln

from expunge.core.finding import Interval
from expunge.core.streams import stream

RESAMPLES = 1000
_DRAWN = 2**20  # numbers that are drawn at once


def clopper_pearson(successes: float, n: float, level: float = 0.95) -> Interval:
    """Return the exact interval of a proportion; it covers at least nominally at every n.

    Args:
        successes: How many of the n, 0..n.
        n: Trials; where they are not counted but estimated, both may be fractions.
        level: Nominal coverage.

    Source: Clopper and Pearson (1934).
    """
    tail = (1 - level) / 2
    low = stats.beta.ppf(tail, successes, n - successes + 1) if successes > 0 else 0.0
    high = stats.beta.isf(tail, successes + 1, n - successes) if successes < n else 1.0
    return Interval(low=float(low), high=float(high), level=level, method="clopper-pearson")


def bootstrap_means(
    values: np.ndarray, seed: int, purpose: str, resamples: int = RESAMPLES
) -> np.ndarray:
    """Return the means of resamples with replacement, shape (resamples,).

    Equally long values under one seed and purpose are resampled alike, so that ratios and
    differences of their means are paired.

    Args:
        values: One value per record, at least one.
        seed: The run's seed.
        purpose: Names the random stream.
        resamples: How many.
    """
    n = len(values)
    draws = stream(seed, "bootstrap", purpose)
    return np.concatenate(
        [values[draws.integers(n, size=(k, n))].mean(axis=1) for k in _at_once(resamples, n)]
    )


def _at_once(resamples: int, numbers: int) -> list[int]:
    """Return how many resamples, of so many numbers each, are drawn at once, until all are."""
    most = max(1, _DRAWN // numbers)
    return [min(most, resamples - start) for start in range(0, resamples, most)]


def percentile_interval(draws: np.ndarray, level: float = 0.95) -> Interval:
    """Return the interval between the two percentiles of bootstrap draws.

    Source: Efron and Tibshirani (1993), chapter 13.
    """
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(low=float(low), high=float(high), level=level, method="bootstrap")


def folded(interval: Interval) -> Interval:
    """Return the interval of a distance from that of a signed difference.

    Args:
        interval: Of the difference.
    """
    low, high = interval.low, interval.high
    return dataclasses.replace(interval, low=max(low, -high, 0.0), high=max(abs(low), abs(high)))


def mean_interval(
    values_R: np.ndarray, seed: int, purpose: str, low: float = 0.0, high: float = 1.0
) -> Interval:
    """Return the interval of the mean of bounded values, honest about what none of them shows.

    A percentile bootstrap misses rare large values: of 50 records, 36 % of samples hold no hit of
    chance 0.02, and their resamples never do. Gaffke's bounds add one record at the end of the
    range, weigh all records by a uniform draw from the simplex, and take the percentile of the
    weighted means. Of zeros and ones they are Clopper and Pearson's; of few values, or of a range
    that is wide beside their spread, they are wider than a bootstrap's, as they must be; of many
    values they approach it. Nominal coverage for every distribution is conjectured, not proven.

    Where all values are equal the bounds have a closed form: the share of others that Clopper and
    Pearson allow unseen, moved to the end of the range.

    Args:
        values_R: One value per record, at least one.
        seed: The run's seed.
        purpose: Names the random stream.
        low: Least possible value.
        high: Largest possible value.

    Source: Gaffke (2005); Learned-Miller and Thomas (2019), A new confidence interval for the mean
        of a bounded random variable.
    """
    n = len(values_R)
    if np.ptp(values_R) == 0:
        value, exact = float(values_R[0]), clopper_pearson(0, n)
        ends = value - (value - low) * exact.high, value + (high - value) * exact.high
        return dataclasses.replace(exact, low=ends[0], high=ends[1])
    draws = stream(seed, "bootstrap", purpose)
    lows, highs = [], []
    for k in _at_once(RESAMPLES, n + 1):
        weights_kR = draws.standard_exponential((k, n + 1))
        weights_kR /= weights_kR.sum(axis=1, keepdims=True)
        seen_k = (weights_kR[:, :n] * values_R).sum(axis=1)
        lows.append(seen_k + weights_kR[:, n] * low)
        highs.append(seen_k + weights_kR[:, n] * high)
    least = percentile_interval(np.concatenate(lows)).low
    most = percentile_interval(np.concatenate(highs)).high
    return Interval(low=least, high=most, method="gaffke")


def auc(members: np.ndarray, nonmembers: np.ndarray, level: float = 0.95) -> tuple[float, Interval]:
    """Return the area under the ROC curve and its interval.

    It is the probability that a member scores above a non-member, ties counted half. The interval
    is that of a proportion of as many independent trials as would have the variance of the area:
    Clopper and Pearson's at Korn and Graubard's effective sample size, with Student's t for a
    variance that is estimated. DeLong's variance is far too small where few pairs are out of order,
    so that Hanley and McNeil's is its floor. Where it is nothing (perfect separation), disjoint
    pairs are the trials.

    Args:
        members: Scores of members, at least one; higher means "member".
        nonmembers: Scores of non-members, at least one.
        level: Nominal coverage.

    Source: DeLong, DeLong and Clarke-Pearson (1988); midranks after Sun and Xu (2014); Hanley and
        McNeil (1982) as in Newcombe (2006), Confidence intervals for an effect size measure based
        on the Mann-Whitney statistic, part 2; Korn and Graubard (1998).
    """
    m, n = len(members), len(nonmembers)
    ranks = stats.rankdata(np.concatenate([members, nonmembers]))
    above_m = (ranks[:m] - stats.rankdata(members)) / n
    below_n = 1 - (ranks[m:] - stats.rankdata(nonmembers)) / m
    area = float(above_m.mean())
    pairs = min(m, n)
    spread = above_m.var(ddof=1) / m + below_n.var(ddof=1) / n if pairs > 1 else 0.0
    if spread == 0:
        return area, clopper_pearson(area * pairs, pairs, level)
    both = (1 - area) / (2 - area) + area / (1 + area)
    floor = area * (1 - area) * (1 + ((m + n) / 2 - 1) * both) / (m * n)
    tail = (1 - level) / 2
    shrunk = float((stats.norm.isf(tail) / stats.t.isf(tail, pairs - 1)) ** 2)
    trials = shrunk * area * (1 - area) / max(float(spread), floor)
    found = clopper_pearson(area * trials, trials, level)
    return area, dataclasses.replace(found, method="korn-graubard")


def bootstrap_aucs(
    members: np.ndarray,
    nonmembers: np.ndarray,
    seed: int,
    purpose: str,
    resamples: int = RESAMPLES,
) -> np.ndarray:
    """Return the area under the ROC curve in resamples of members and of non-members, (resamples,).

    Scores of the same records under one seed and purpose are resampled alike, so that differences
    of the areas of several models are paired.

    Args:
        members: Scores of members, at least one; higher means "member".
        nonmembers: Scores of non-members, at least one.
        seed: The run's seed.
        purpose: Names the random stream.
        resamples: How many.
    """
    m, n = len(members), len(nonmembers)
    order = np.argsort(nonmembers, kind="stable")
    low_m, high_m = (
        np.searchsorted(nonmembers[order], members, side) for side in ("left", "right")
    )
    draws = stream(seed, "bootstrap", purpose)
    areas = []
    for k in _at_once(resamples, m + n):
        times_km, times_kn = _drawn_times(draws, k, m), _drawn_times(draws, k, n)
        below_kn = np.zeros((k, n + 1), dtype=np.int64)
        np.cumsum(times_kn[:, order], axis=1, out=below_kn[:, 1:])
        twice_km = below_kn[:, low_m] + below_kn[:, high_m]  # ties count half
        areas.append((times_km * twice_km).sum(axis=1) / (2 * m * n))
    return np.concatenate(areas)


def _drawn_times(draws: np.random.Generator, k: int, n: int) -> np.ndarray:
    """Return how often each of n records is drawn in k resamples, (k, n)."""
    places = draws.integers(n, size=(k, n)) + n * np.arange(k)[:, None]
    return np.bincount(places.ravel(), minlength=k * n).reshape(k, n)


def tpr_at_fpr(members: np.ndarray, nonmembers: np.ndarray, fpr: float) -> tuple[int, int]:
    """Return how many members, of how many, score above a bar that few non-members pass.

    Args:
        members: Scores of members; higher means "member".
        nonmembers: Scores of non-members, at least one.
        fpr: Largest share of non-members above the bar.

    Source: Carlini et al. (2022), section III.
    """
    allowed = math.floor(fpr * len(nonmembers) + 1e-9)  # 0.29 * 100 is 28.999999999999996
    bar = np.sort(nonmembers)[::-1][allowed] if allowed < len(nonmembers) else -math.inf
    return int((members > bar).sum()), len(members)


@dataclasses.dataclass(frozen=True)
class KSTest:
    """Two-sample Kolmogorov-Smirnov test.

    Attributes:
        statistic: Largest distance D between the two distribution functions, 0..1.
        p: Two-sided p-value; 0 where it is too small for a float.
        log10_p: Its decimal logarithm, exact however small.
    """

    statistic: float
    p: float
    log10_p: float


def ks_test(a: np.ndarray, b: np.ndarray) -> KSTest:
    """Test whether two equally large samples come from one distribution, exactly.

    With h = n D, p = 2 sum_{k>=1} (-1)^(k-1) C(2n, n - k h) / C(2n, n), summed relative to its
    first term, whose logarithm is known.

    Args:
        a: First sample, at least one value.
        b: Second sample, as large.

    Raises:
        ValueError: The samples differ in size.

    Source: Gnedenko and Korolyuk (1951).
    """
    n = len(a)
    if len(b) != n or n == 0:
        raise ValueError(f"samples of {n} and {len(b)} values; give both the same records")
    everything = np.concatenate([a, b])
    below_a = np.searchsorted(np.sort(a), everything, side="right")
    below_b = np.searchsorted(np.sort(b), everything, side="right")
    h = int(np.abs(below_a - below_b).max())
    if h == 0:
        return KSTest(0.0, 1.0, 0.0)
    k = np.arange(1, n // h + 1)
    log_ways_k = -gammaln(n - k * h + 1) - gammaln(n + k * h + 1)
    signed = ((-1.0) ** (k - 1) * np.exp(log_ways_k - log_ways_k[0])).sum()
    log_p = math.log(2) + log_ways_k[0] + 2 * gammaln(n + 1) + math.log(signed)
    log_p = min(float(log_p), 0.0)
    return KSTest(h / n, math.exp(log_p), log_p / math.log(10))


def harmonic_mean(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the harmonic mean along the first axis; 0 where one value is 0 or less.

    Args:
        values: Numbers, shape (k, ...) with at least one along the first axis.
    """
    array = np.asarray(values, dtype=np.float64)
    inverse = 1 / np.where(array > 0, array, 1.0)
    return np.where((array > 0).all(axis=0), len(array) / inverse.sum(axis=0), 0.0)
