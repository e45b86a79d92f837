"""Intervals of bootstrap draws, and of draws that never differ."""

import numpy as np
import pytest

from expunge.audit.resampled import resampled
from expunge.audit.stats import percentile_interval


def test_draws_that_differ_give_their_percentiles():
    draws = np.linspace(0, 1, 41)
    assert resampled(0.5, draws, 20) == percentile_interval(draws)
    assert resampled(0.5, draws, 20).low == pytest.approx(0.025)


@pytest.mark.parametrize(("n", "unseen"), [(20, 0.168433), (50, 0.071122), (200, 0.018275)])
def test_equal_draws_may_hide_what_none_of_n_records_shows(n, unseen):
    # 1 - 0.025 ** (1 / n)
    found = resampled(0.0, np.zeros(1000), n)
    assert (found.low, found.high) == pytest.approx((-unseen, unseen), abs=1e-6)
    assert found.method == "clopper-pearson"
    bounded = resampled(1.0, np.ones(1000), n, low=0.0)
    assert (bounded.low, bounded.high) == pytest.approx((1 - unseen, 1), abs=1e-6)
