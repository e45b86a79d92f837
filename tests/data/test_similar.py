import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from expunge.core.errors import ConfigError, DataError, NumericalError
from expunge.data.similar import cosine_distances, nearest_rows

numbers = st.floats(-10, 10, allow_subnormal=False).map(lambda v: 0.0 if abs(v) < 1e-3 else v)


def test_distances_worked_out_by_hand():
    features = np.array([[2.0, 0], [0, 3], [-1, 0], [1, 1], [0, 0]])
    found = cosine_distances(features, np.array([[5.0, 0]]))
    np.testing.assert_allclose(found, [0, 1, 2, 1 - np.sqrt(0.5), 1], atol=1e-12)


@given(arrays(float, (7, 3), elements=numbers), arrays(float, (2, 3), elements=numbers))
def test_the_nearest_of_several_examples_counts(features, examples):
    both = cosine_distances(features, examples)
    each = [cosine_distances(features, example[None]) for example in examples]
    np.testing.assert_allclose(both, np.minimum(*each))
    scaled = cosine_distances(features * 3, examples)
    np.testing.assert_allclose(both, scaled, atol=1e-9)
    assert (both >= 0).all()
    assert (both <= 2).all()


def test_many_records_are_compared_in_parts():
    features = np.random.default_rng(0).normal(size=(9001, 4))
    found = cosine_distances(features, features[[8500]])
    assert np.argmin(found) == 8500
    lengths = np.linalg.norm(features, axis=1)
    expected = 1 - features @ features[8500] / (lengths * lengths[8500])
    np.testing.assert_allclose(found, expected, atol=1e-11)


@pytest.mark.parametrize(
    ("features", "examples", "error", "message"),
    [
        (np.ones((3, 2)), np.ones((0, 2)), DataError, "no example"),
        (np.ones((3, 2)), np.ones((1, 3)), DataError, "3 features but records 2"),
        (np.full((3, 2), np.nan), np.ones((1, 2)), NumericalError, "not finite"),
    ],
)
def test_features_that_cannot_be_compared(features, examples, error, message):
    with pytest.raises(error, match=message):
        cosine_distances(features, examples)


def test_the_nearest_come_first_and_the_examples_are_left_out():
    distances = np.array([0.5, 0.0, 0.2, 0.2, 0.9])
    assert nearest_rows(distances, {1}, count=3) == [2, 3, 0]
    assert nearest_rows(distances, {1}, radius=0.5) == [2, 3, 0]
    assert nearest_rows(distances, (), radius=0.0) == [1]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"count": 0}, ConfigError, "count = 0: ask for at least 1"),
        ({"count": 2}, DataError, "count = 2 but there are 1 training records"),
        ({"radius": -0.1}, ConfigError, "radius = -0.1"),
        ({"radius": 2.5}, ConfigError, "radius = 2.5"),
        ({"radius": 0.1}, DataError, r"within radius = 0.1 .* nearest distance is 0.5"),
        ({}, ConfigError, "either a count or a radius"),
        ({"count": 1, "radius": 1.0}, ConfigError, "either a count or a radius"),
    ],
)
def test_bad_counts_and_radii(settings, error, message):
    with pytest.raises(error, match=message):
        nearest_rows(np.array([0.0, 0.5]), {0}, **settings)


def test_an_example_alone_has_no_neighbour():
    with pytest.raises(DataError, match="no other record"):
        nearest_rows(np.array([0.0]), {0}, radius=1.0)
