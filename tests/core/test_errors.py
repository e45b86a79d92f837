import pytest

from expunge.core import errors
from expunge.core.errors import ConfigError, DataError, Problems, listing, near_matches


def test_no_problem_raises_nothing():
    Problems("recipe").raise_if_any()


def test_one_problem_is_one_sentence():
    problems = Problems("recipe")
    problems.add("beta = -1: give a positive number")
    with pytest.raises(ConfigError) as caught:
        problems.raise_if_any()
    assert str(caught.value) == "recipe: beta = -1: give a positive number"


def test_many_problems_are_listed_together_under_the_chosen_class():
    problems = Problems("sets", DataError)
    problems.add("first")
    problems.add("second")
    with pytest.raises(DataError) as caught:
        problems.raise_if_any()
    assert str(caught.value) == "sets: 2 problems\n  - first\n  - second"


@pytest.mark.parametrize(
    ("word", "known", "hint"),
    [
        ("nppo", ["npo", "salun"], "did you mean 'npo'?"),
        ("zzz", ["npo", "salun"], "known: npo, salun"),
        ("zzz", [], "nothing is registered here"),
    ],
)
def test_near_matches(word, known, hint):
    assert near_matches(word, known) == hint


@pytest.mark.parametrize(
    ("count", "text"), [(0, ""), (2, "0, 1"), (5, "0, 1, 2, 3, 4"), (7, "0, 1, 2, 3, 4 (+2 more)")]
)
def test_listing_shows_five_and_counts_the_rest(count, text):
    assert listing(range(count)) == text


@pytest.mark.parametrize(
    ("error", "standard"),
    [
        (errors.ConfigError, ValueError),
        (errors.DataError, ValueError),
        (errors.UnsupportedModelError, TypeError),
        (errors.StorageError, OSError),
        (errors.NumericalError, ArithmeticError),
    ],
)
def test_errors_are_caught_by_their_standard_class_too(error, standard):
    assert issubclass(error, errors.ExpungeError)
    assert issubclass(error, standard)
