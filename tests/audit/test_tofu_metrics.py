"""TOFU's metrics against values of the official and the successor code."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.audit import tofu_metrics as metrics

PARAPHRASE = np.array([1.0, 0.5])
WRONG = np.array([[1.5, 2.0, 1.2], [0.4, 0.9, 0.7]])
losses = st.floats(0, 50)


def test_truth_ratio_geometric():
    # Official aggregator: S, and its means over forgotten and over other records
    log_s = metrics.log_truth_ratio(PARAPHRASE, WRONG)
    np.testing.assert_allclose(np.exp(log_s), [1.76238264, 1.18136041], atol=1e-8)
    assert metrics.cannot_tell(log_s).mean() == pytest.approx(0.70694770, abs=1e-8)
    assert metrics.prefers_truth(log_s).mean() == pytest.approx(0.29305230, abs=1e-8)


def test_truth_ratio_arithmetic():
    # The paper's R = 1 / S
    log_s = metrics.log_truth_ratio_arithmetic(PARAPHRASE, WRONG)
    np.testing.assert_allclose(np.exp(-log_s), [0.59771362, 0.86474057], atol=1e-8)
    assert metrics.cannot_tell(log_s).mean() == pytest.approx(0.73122710, abs=1e-8)
    assert metrics.prefers_truth(log_s).mean() == pytest.approx(0.26877290, abs=1e-8)


def test_truth_ratio_of_the_successor():
    # open-unlearning: 1/S, and its aggregates "closer to 1" and "true better"
    log_s = metrics.log_truth_ratio(np.array([1.0, 0.5]), np.array([[2.0, 1.0], [0.2, 0.4]]))
    np.testing.assert_allclose(np.exp(-log_s), [0.606530659758, 1.221402757959], atol=1e-12)
    assert metrics.cannot_tell(log_s).mean() == pytest.approx(0.7126307063, abs=1e-9)
    assert metrics.prefers_truth(log_s).mean() == pytest.approx(0.1967346702, abs=1e-9)


def test_choice_probability():
    # Official code
    share = metrics.choice_probability(
        np.array([1.0, 0.2]), np.array([[2.0, 1.5, 3.0], [0.1, 0.4, 1.0]])
    )
    np.testing.assert_allclose(share, [0.47399085, 0.29645171], atol=1e-8)
    share = metrics.choice_probability(np.array([0.1, 0.2]), np.array([[0.1, 0.1], [0.1, 0.2]]))
    # open-unlearning adds 1e-10 to the denominator; the second row by hand
    second = np.exp(-0.2) / (np.exp(-0.1) + 2 * np.exp(-0.2))
    np.testing.assert_allclose(share, [1 / 3, second], atol=1e-9)


def test_a_row_of_the_published_log():
    # Llama-2-7b on everything, "real authors" row 0, losses as the shipped log stores them
    true, wrong = np.array([4.10915184]), np.array([[6.05654907, 3.38015556, 6.85803938]])
    assert np.exp(-metrics.log_truth_ratio(true, wrong))[0] == pytest.approx(0.26648709, abs=1e-8)
    assert metrics.choice_probability(true, wrong)[0] == pytest.approx(0.30491126, abs=1e-7)


@given(losses, st.lists(losses, min_size=1, max_size=5))
def test_absent_wrong_answers_change_nothing(true, wrong):
    one, plain = np.array([true]), np.array([wrong])
    padded = np.array([[*wrong, np.nan, np.nan]])
    for metric in (
        metrics.log_truth_ratio,
        metrics.log_truth_ratio_arithmetic,
        metrics.choice_probability,
    ):
        np.testing.assert_allclose(metric(one, padded), metric(one, plain))


@given(losses, st.lists(losses, min_size=1, max_size=5))
def test_arithmetic_never_exceeds_geometric(true, wrong):
    # The arithmetic mean of probabilities is at least their geometric mean.
    one, many = np.array([true]), np.array([wrong])
    geometric = metrics.log_truth_ratio(one, many)
    assert metrics.log_truth_ratio_arithmetic(one, many) <= geometric + 1e-9


def test_losses_of_a_destroyed_model_do_not_overflow():
    log_s = metrics.log_truth_ratio(np.array([3000.0, 1.0]), np.array([[1.0], [3000.0]]))
    np.testing.assert_array_equal(metrics.cannot_tell(log_s), [0, 0])
    np.testing.assert_array_equal(metrics.prefers_truth(log_s), [0, 1])
    arithmetic = metrics.log_truth_ratio_arithmetic(np.array([1.0]), np.array([[3000.0, 4000.0]]))
    assert arithmetic[0] == pytest.approx(2999 + np.log(2))
