"""Projection to weights between 0 and 1 with a given sum: golden values, and what defines it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.audit.capped_simplex import project
from expunge.core.errors import DataError

numbers = st.lists(st.floats(-1e5, 1e5), min_size=2, max_size=12)


def test_golden_values():
    # Reference values of the worst-case card: the first exactly (mu = -1/3), the second to 1e-5.
    found = project(np.array([0.9, 0.2, 0.1, -0.3]), 2)
    np.testing.assert_allclose(found, [1, 0.2 + 1 / 3, 0.1 + 1 / 3, -0.3 + 1 / 3], atol=1e-9)
    found = project(np.array([3, 1, 0.5, 0.4, -2]), 2)
    np.testing.assert_allclose(found, [1, 0.7, 0.2, 0.1, 0], atol=1e-9)


@given(numbers, st.data())
def test_it_is_feasible_and_no_feasible_point_is_nearer(values, data):
    values = np.array(values)
    total = data.draw(st.integers(1, len(values) - 1))
    found = project(values, total)
    assert found.min() >= 0
    assert found.max() <= 1
    assert found.sum() == pytest.approx(total, abs=1e-5)
    # Optimality: moving weight from one entry to another cannot reduce the distance.
    slack = 1e-6 * max(1.0, np.abs(values).max())
    pull = values - found
    assert pull[found < 1 - 1e-9].max(initial=-np.inf) <= pull[found > 1e-9].min() + slack


@given(numbers, st.floats(-100, 100), st.data())
def test_a_common_shift_changes_nothing_and_a_feasible_point_stays(values, shift, data):
    values = np.array(values)
    total = data.draw(st.integers(1, len(values) - 1))
    found = project(values, total)
    np.testing.assert_allclose(project(values + shift, total), found, atol=1e-5)
    np.testing.assert_allclose(project(found, total), found, atol=1e-5)


def test_almost_all_may_be_chosen():
    found = project(np.array([1.0, 1.0, 1.0, 0.0]), 3)
    np.testing.assert_allclose(found, [1, 1, 1, 0], atol=1e-9)


@pytest.mark.parametrize("total", [0, 4, -1])
def test_a_sum_that_cannot_be_had_is_refused(total):
    with pytest.raises(DataError, match="choose 1 to 3"):
        project(np.zeros(4), total)


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(DataError, match="NaN or infinite"):
        project(np.array([0.0, np.nan, 1.0]), 1)
