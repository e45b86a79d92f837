"""What methods leave of country facts: the order that small language models show."""

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def found(study):
    """Numbers of one seed: the original model and its retrained twin are trained once."""
    return study("country_facts")


def test_the_original_knows_all_and_retraining_knows_all_but_the_forgotten(found):
    assert found["full"]["forget"] == [1.0]
    assert found["full"]["held"] == [1.0]
    assert found["retrained"]["forget"][0] < 0.1
    assert found["retrained"]["held"][0] > 0.98
    assert found["retrained"]["forget_nll"][0] > 3.0


def test_npo_keeps_what_gradient_difference_destroys(found):
    # Both forget: at most 0.15 of the forgotten answers still match. What differs is the rest.
    gentle, harsh = found["npo, beta 1"], found["grad_diff"]
    assert gentle["forget"][0] <= 0.15
    assert harsh["forget"][0] <= 0.15
    assert gentle["held"][0] > 0.9
    assert gentle["held"][0] - harsh["held"][0] >= 0.5


def test_beta_sets_how_far_npo_goes(found):
    # Answers of some ten tokens: at beta = 0.1 the loss runs on, at 1 it stops earlier.
    far, near = found["npo, beta 0.1"], found["npo, beta 1"]
    assert far["forget_nll"][0] > 2 * near["forget_nll"][0]
    assert far["held"][0] < near["held"][0]


def test_forget_quality_rises(found):
    quality = found["forget_quality_log10"]
    assert quality["before"] < -20
    assert quality["after"] > quality["before"] + 5
