"""Paired right and wrong outcomes of two runs over the same items: tests and effect sizes."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np
from scipy import stats

from expunge.core.errors import DataError
from expunge.core.finding import Interval

Test = Literal["chi2", "chi2_cc", "exact", "midp"]
FEW = 25
"""Discordant pairs below which the exact test is the default; from here on, mid-p."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs:
    """How often two runs were right on the same items.

    Attributes:
        n11: Both right.
        b: Only the first right.
        c: Only the second right.
        n00: Both wrong.

    Raises:
        DataError: A count is negative or no whole number, or there is no item.
    """

    n11: int
    b: int
    c: int
    n00: int

    def __post_init__(self) -> None:
        _require_counts(n11=self.n11, b=self.b, c=self.c, n00=self.n00)
        if self.n == 0:
            raise DataError("pairs: there is no item; give at least one")

    @property
    def n(self) -> int:
        """All items."""
        return self.n11 + self.b + self.c + self.n00

    @property
    def delta(self) -> int:
        """Net items that the second run loses, b - c."""
        return self.b - self.c

    @property
    def points(self) -> float:
        """The loss in percentage points, 100 (b - c) / N."""
        return 100 * self.delta / self.n

    @property
    def percent_of_correct(self) -> float | None:
        """The loss in percent of what the first run had right; ``None`` where that is nothing."""
        correct = self.n11 + self.b
        return 100 * self.delta / correct if correct else None

    @property
    def odds_ratio(self) -> float | None:
        """Matched-pairs odds ratio b / c; ``None`` where c is 0."""
        return self.b / self.c if self.c else None


def count_pairs(first: np.ndarray, second: np.ndarray) -> Pairs:
    """Count paired outcomes.

    Args:
        first: Whether the first run was right, one boolean per item.
        second: The same of the second run, for the same items in the same order.

    Raises:
        DataError: The arrays are not boolean, not of one axis, differ in length, or are empty.
    """
    a, b = np.asarray(first), np.asarray(second)
    if a.dtype != bool or b.dtype != bool:
        raise DataError(f"outcomes are of type {a.dtype} and {b.dtype}; give booleans")
    if a.ndim != 1 or a.shape != b.shape:
        raise DataError(
            f"outcomes of shapes {a.shape} and {b.shape}; give both runs the same items"
        )
    return Pairs(
        n11=int((a & b).sum()),
        b=int((a & ~b).sum()),
        c=int((~a & b).sum()),
        n00=int((~a & ~b).sum()),
    )


@dataclasses.dataclass(frozen=True)
class McNemar:
    """Result of a McNemar test.

    Attributes:
        b: Items that only the first run had right.
        c: Items that only the second run had right.
        test: Which variant gave the p-value.
        chi2: The statistic of ``chi2`` and ``chi2_cc``; ``None`` for the binomial variants.
        p: Two-sided p-value; 1 without discordant pairs.
    """

    b: int
    c: int
    test: Test
    chi2: float | None
    p: float

    def favours_first(self, alpha: float = 0.05) -> bool:
        """Tell whether the first run is better beyond chance at level ``alpha``.

        A significant result the other way round is no.

        Raises:
            DataError: The level is not between 0 and 1.
        """
        _require_level(alpha)
        return self.p < alpha and self.b > self.c


def mcnemar(b: int, c: int, test: Test | None = None) -> McNemar:
    """Test whether two runs are right equally often, from the pairs on which they differ.

    ``chi2`` takes (b - c)² / (b + c), ``chi2_cc`` (|b - c| - 1)² / (b + c) on one degree of
    freedom; without discordant pairs both are 0. ``exact`` doubles the binomial tail of min(b, c)
    among b + c at 1/2, ``midp`` counts the observed outcome in it half.

    Args:
        b: Items that only the first run had right.
        c: Items that only the second run had right.
        test: The variant; when absent, exact below 25 discordant pairs and mid-p from there on.
            Choose before seeing p.

    Raises:
        DataError: A count is negative or no whole number, or the variant is unknown.

    Source: McNemar (1947); Edwards (1948) for the correction; Fagerland, Lydersen and Laake (2013)
        for mid-p.
    """
    _require_counts(b=b, c=c)
    m = b + c
    if test is None:
        test = "exact" if m < FEW else "midp"
    if test in ("chi2", "chi2_cc"):
        distance = abs(b - c) - (test == "chi2_cc")
        chi2 = distance**2 / m if m else 0.0
        return McNemar(b, c, test, chi2, float(stats.chi2.sf(chi2, 1)))
    if test not in ("exact", "midp"):
        raise DataError(f"test {test!r} is unknown; take chi2, chi2_cc, exact or midp")
    least = min(b, c)
    tail = 2 * float(stats.binom.cdf(least, m, 0.5))
    if test == "midp" and m:
        tail -= float(stats.binom.pmf(least, m, 0.5))
    return McNemar(b, c, test, None, min(tail, 1.0))


def minimal_detectable(
    discordant: int, alpha: float = 0.05, test: Test | None = None
) -> int | None:
    """Return the smallest b - c that is significant with so many discordant pairs.

    Args:
        discordant: b + c.
        alpha: Level of the test.
        test: The variant; see ``mcnemar``.

    Returns:
        The difference, or ``None`` where not even c = 0 is significant.

    Raises:
        DataError: The count or the level is out of range.
    """
    _require_counts(discordant=discordant)
    _require_level(alpha)
    for c in range(discordant // 2, -1, -1):
        if mcnemar(discordant - c, c, test).favours_first(alpha):
            return discordant - 2 * c
    return None


def newcombe(pairs: Pairs, level: float = 0.95) -> Interval:
    """Return the interval of the paired difference of proportions, (b - c) / N.

    It joins Wilson's intervals of both proportions with their correlation, and stays within -1..1.

    Args:
        pairs: The counts.
        level: Nominal coverage.

    Raises:
        DataError: The level is not between 0 and 1.

    Source: Newcombe (1998), Statistics in Medicine 17, 2635-2650, method 10.
    """
    _require_level(level)
    n, first, second = pairs.n, pairs.n11 + pairs.b, pairs.n11 + pairs.c
    cross = float(pairs.n11 * pairs.n00 - pairs.b * pairs.c)
    if cross > 0:
        cross = max(cross - n / 2, 0.0)  # the continuity correction
    margins = first * (n - first) * second * (n - second)
    phi = cross / math.sqrt(margins) if margins else 0.0
    down_first, up_first = _wilson_arms(first, n, level)
    down_second, up_second = _wilson_arms(second, n, level)
    difference = pairs.delta / n
    low = difference - _joined(down_first, up_second, phi)
    high = difference + _joined(up_first, down_second, phi)
    return Interval(low=max(low, -1.0), high=min(high, 1.0), level=level, method="newcombe")


def _wilson_arms(successes: int, n: int, level: float) -> tuple[float, float]:
    """Return how far Wilson's interval reaches below and above the proportion."""
    z = float(stats.norm.isf((1 - level) / 2))
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return p - centre + half, centre + half - p


def _joined(one: float, other: float, phi: float) -> float:
    return math.sqrt(max(one * one - 2 * phi * one * other + other * other, 0.0))


def _require_counts(**counts: int) -> None:
    for name, count in counts.items():
        whole = isinstance(count, int | np.integer) and not isinstance(count, bool)
        if not whole or count < 0:
            raise DataError(f"{name} = {count!r} is no count; give a whole number of 0 or more")


def _require_level(level: float) -> None:
    if not 0 < level < 1:
        raise DataError(f"level {level!r} is not between 0 and 1")
