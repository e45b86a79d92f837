"""NPO's synthetic study: gradient ascent runs away, NPO slows down."""

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def found(study):
    """Distances and drift of every method in one world."""
    (world,) = study("npo_synthetic")
    return world


def test_npo_forgets_at_a_third_of_the_damage_of_ascent(found):
    assert found["npo"]["forget"] <= 0.02 < found["original"]["forget"]
    assert found["npo"]["retain"] <= found["grad_ascent"]["retain"] / 3


def test_with_a_retain_term_npo_does_a_fifth_of_the_damage(found):
    assert found["npo + retain"]["forget"] <= 0.02
    assert found["npo + retain"]["retain"] <= found["grad_diff"]["retain"] / 5


def test_ascent_drifts_linearly_and_npo_logarithmically(found):
    ascent, npo = found["grad_ascent"], found["npo"]
    assert ascent["drift"] > 2 * ascent["drift_half_way"]
    assert npo["drift"] < 1.2 * npo["drift_half_way"]


def test_npo_becomes_ascent_as_beta_vanishes(found):
    near, ascent = found["npo, beta 0.01"], found["grad_ascent"]
    assert near["drift"] == pytest.approx(ascent["drift"], rel=0.15)
    assert near["retain"] == pytest.approx(ascent["retain"], rel=0.15)
