"""Concepts of a classifier: margins, vectors, weights, and the class that stands in."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from expunge.core.errors import ConfigError, DataError
from expunge.forget.concept_bank import (
    PENALTIES,
    Bank,
    BankSettings,
    bottleneck,
    concept_vector,
    furthest,
    learn_bank,
    margins,
    require_donor,
    sample,
    shown_by,
)

NUMBERS = st.floats(-5, 5).map(lambda x: round(x, 3))


def clouds(seed=0, each=40):
    """Three classes around three corners of a plane, and a third axis without meaning."""
    draw = np.random.default_rng(seed)
    labels = np.repeat([0, 1, 2], each)
    corners = np.array([[4.0, 0, 0], [0, 4.0, 0], [-4.0, -4.0, 0]])
    return corners[labels] + draw.normal(size=(3 * each, 3)), labels


def bank(weights, vectors=None):
    weights = np.array(weights, dtype=float)
    vectors = np.eye(weights.shape[1]) if vectors is None else np.array(vectors, dtype=float)
    names = tuple(f"concept {k}" for k in range(weights.shape[1]))
    return Bank(names, vectors, np.zeros(len(names)), weights, 1.0)


# --- margins ---


def test_golden_margins():
    """Reference value 1 of the card."""
    found = margins(
        np.array([[1.0, 1.0], [2.0, 0.0]]),
        np.array([[3.0, 4.0], [0.0, 2.0]]),
        np.array([1.0, -2.0]),
    )
    np.testing.assert_allclose(found, [[1.6, 0.0], [1.4, -1.0]], atol=1e-15)


@given(
    arrays.arrays(float, (4, 3), elements=NUMBERS),
    arrays.arrays(float, 3, elements=NUMBERS).filter(lambda v: np.linalg.norm(v) > 0.1),
    NUMBERS,
    st.floats(0.01, 100),
)
def test_a_margin_is_a_distance_and_does_not_change_with_the_vectors_length(x, v, b, scale):
    found = margins(x, v[None], np.array([b]))
    np.testing.assert_allclose(margins(x, scale * v[None], np.array([scale * b])), found, atol=1e-9)
    foot = x - found * v / np.linalg.norm(v)  # the nearest point of the plane
    np.testing.assert_allclose(foot @ v + b, 0, atol=1e-8)


def test_a_concept_of_length_0_has_no_margin():
    with pytest.raises(DataError, match="concepts 1 have a vector of length 0"):
        margins(np.ones((2, 2)), np.array([[1.0, 0.0], [0.0, 0.0]]), np.zeros(2))


# --- vectors ---


def test_a_vector_points_to_the_records_that_show_the_concept():
    x, y = clouds()
    vector, intercept = concept_vector(x[y == 0], x[y != 0], 0.1, "right")
    side = x @ vector + intercept > 0
    assert (side == (y == 0)).mean() > 0.95
    assert abs(vector[2]) < np.abs(vector[:2]).max() / 2  # the axis without meaning


def test_two_points_have_the_plane_half_way_between_them():
    """The widest margin between 0 and 2 lies at 1, with slope 1."""
    vector, intercept = concept_vector(np.array([[2.0]]), np.array([[0.0]]), 10.0, "two")
    np.testing.assert_allclose([vector[0], intercept], [1.0, -1.0], atol=1e-6)


def test_the_penalty_is_chosen_on_held_out_examples():
    """Every fifth example is held out: a small penalty ignores outliers among the others."""
    draw = np.random.default_rng(3)
    positives, negatives = draw.normal(1, 0.3, (50, 2)), draw.normal(-1, 0.3, (50, 2))
    chosen = concept_vector(positives, negatives, None, "side")
    fixed = [concept_vector(positives, negatives, c, "side") for c in PENALTIES]
    assert any(np.array_equal(chosen[0], vector) for vector, _ in fixed)
    # Among equally good ones the strongest penalty is taken.
    np.testing.assert_array_equal(chosen[0], fixed[0][0])


def test_with_few_examples_the_penalty_is_the_usual_one():
    x, y = clouds(each=4)
    chosen, usual = (concept_vector(x[y == 0], x[y == 1], c, "few")[0] for c in (None, 0.1))
    np.testing.assert_array_equal(chosen, usual)


@pytest.mark.parametrize(("shows", "not_"), [(0, 3), (3, 0)])
def test_a_concept_needs_both_sides(shows, not_):
    with pytest.raises(DataError, match=f"'hat' has {shows} records that show it and {not_} that"):
        concept_vector(np.ones((shows, 2)), np.ones((not_, 2)), 0.1, "hat")


def test_a_concept_that_the_model_does_not_see_is_refused():
    with pytest.raises(DataError, match="'hat' has a vector of length 0"):
        concept_vector(np.ones((3, 2)), np.ones((3, 2)), 0.1, "hat")


# --- which classes show what ---


def test_each_class_is_its_own_concept_when_none_are_named():
    assert shown_by(BankSettings(), np.array([2, 0, 2]), 4) == {"class 0": (0,), "class 2": (2,)}


def test_concepts_that_cannot_be_learned_are_all_named():
    settings = BankSettings(concepts={"none": (3,), "all": (0, 1), "good": (1,)})
    with pytest.raises(DataError) as caught:
        shown_by(settings, np.array([0, 1]), 4)
    assert "2 problems" in str(caught.value)
    assert "'none' is shown by no record" in str(caught.value)
    assert "'all' is absent in no record" in str(caught.value)


def test_a_concept_of_an_unknown_class_is_refused():
    with pytest.raises(ConfigError, match=r"'hat' names classes \[7\]; the model has 0\.\.2"):
        shown_by(BankSettings(concepts={"hat": (0, 7)}), np.array([0, 1]), 3)


# --- weights ---


def test_weights_rank_a_classs_own_concept_first():
    x, y = clouds()
    found = learn_bank(x, y, 4, BankSettings(), 0)
    assert found.names == ("class 0", "class 1", "class 2")
    assert [found.ranked(c)[0] for c in range(3)] == [0, 1, 2]
    assert found.accuracy > 0.95
    np.testing.assert_array_equal(found.weights_CK[3], 0)  # no record of it


def test_a_bank_is_the_same_under_the_same_seed():
    x, y = clouds()
    settings = BankSettings(examples=10)
    one, same, other = (learn_bank(x, y, 3, settings, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.vectors_KD, same.vectors_KD)
    np.testing.assert_array_equal(one.weights_CK, same.weights_CK)
    assert not np.array_equal(one.vectors_KD, other.vectors_KD)


def test_two_classes_have_opposite_weights():
    weights, accuracy = bottleneck(
        np.array([[1.0], [2.0], [-1.0], [-2.0]]), np.array([1, 1, 0, 0]), 2, 0
    )
    assert weights[1, 0] == -weights[0, 0] > 0
    assert accuracy == 1.0


def test_ties_are_ranked_by_order():
    assert bank([[0.0, 1.0, 1.0, -2.0]]).ranked(0) == [1, 2, 0, 3]


def test_the_direction_is_the_weighted_sum_of_unit_vectors():
    found = bank([[2.0, 1.0, -3.0]], [[3, 4, 0], [0, 0, 5], [1, 0, 0]]).direction(0, 2)
    np.testing.assert_allclose(found, [1.2, 1.6, 1.0], atol=1e-15)


def test_concepts_that_speak_against_a_class_do_not_enter():
    np.testing.assert_array_equal(bank([[2.0, -1.0]]).direction(0, 2), [2, 0])
    np.testing.assert_array_equal(bank([[-2.0, -1.0]]).direction(0, 2), [0, 1])


# --- draws ---


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 5))
def test_a_sample_has_so_many_of_each_class(labels, per_class):
    y = np.array(labels)
    rows = sample(y, per_class, 0)
    assert (np.diff(rows) > 0).all()
    for c in set(labels):
        assert (y[rows] == c).sum() == min(per_class, labels.count(c))


# --- donors ---


def test_the_donor_has_the_smallest_cosine():
    weights = np.array([[1.0, 0.0], [-1.0, 0.1], [0.0, 5.0], [-9.0, 9.0]])
    assert furthest(weights, 0, [1, 2, 3]) == 1
    assert furthest(weights, 0, [2, 3]) == 3
    assert furthest(np.zeros((3, 2)), 0, [2, 1]) == 1


def test_donors_that_cannot_stand_in_are_refused():
    with pytest.raises(ConfigError, match=r"forget\.donor = 2 is the class to forget itself"):
        require_donor(2, 2, [0, 1, 2])
    with pytest.raises(DataError, match=r"forget\.donor = 5: no retained record .* records: 0, 1"):
        require_donor(2, 5, [0, 1])
    with pytest.raises(DataError, match="all retained records are of class 2"):
        require_donor(2, None, [2])
