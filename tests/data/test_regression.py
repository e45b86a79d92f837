"""Records of regressors; edge cases of card `deep-regression-unlearning`."""

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.core.errors import ConfigError, DataError
from expunge.data.arrays import from_arrays
from expunge.data.dataset import number_ids
from expunge.data.regression import regression_facts, regression_records

X = np.arange(12, dtype=np.float64).reshape(4, 3)


def test_numbers_become_records_with_facts():
    unseen, splits = (X[:2], [0.5, 1]), {"low": ["train-00000"]}
    data = from_arrays(X, [1, 2, 3, 6.0], kind="regressor", holdout=unseen, splits=splits)
    assert data.kind == "regressor"
    assert data.train["y"].dtype == np.float32
    assert data.holdout["y"].tolist() == [0.5, 1.0]
    assert data.splits == {"low": ("train-00000",)}
    assert data.facts["num_outputs"] == 1
    assert data.facts["input_shape"] == [3]
    assert data.facts["target_mean"] == [3.0]
    assert data.facts["target_std"] == [pytest.approx(np.sqrt(14 / 3))]  # 4 + 1 + 0 + 9, over 3


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=9).filter(lambda v: len(set(v)) > 1))
def test_the_deviation_takes_one_degree_of_freedom(values):
    ids = number_ids("t", len(values))
    records = regression_records(np.ones((len(values), 1)), values, ids=ids, where="t")
    facts = regression_facts(records)
    assert facts["target_mean"][0] == pytest.approx(statistics.mean(values))
    assert facts["target_std"][0] == pytest.approx(statistics.stdev(values))


def test_vectors_have_a_mean_and_a_deviation_for_each_output():
    data = from_arrays(X, [[0, 1], [2, 1], [0, 1], [2, 5]], kind="regressor")
    assert data.facts["num_outputs"] == 2
    assert data.facts["target_mean"] == [1.0, 2.0]
    assert data.facts["target_std"] == pytest.approx([np.sqrt(4 / 3), 2.0])
    assert np.shape(data.train["y"][0]) == (2,)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([0.1] * 4, r"column 'y' has the same value in all 4 records .*drop"),
        ([[1, 2], [3, 2], [0, 2], [1, 2]], "output 1 of column 'y' has the same value"),
        ([1, float("nan"), 2, float("inf")], r"NaN or infinity in 2 records \(rows 1, 3\)"),
        (["a", 1, 2, 3], "does not hold numbers"),
        ([[1], [2, 3], [1], [1]], "does not hold numbers, or vectors of one length"),
        ([[[1]]] * 4, r"has shape \(4, 1, 1\)"),
        ([1, 2], "one value per id"),
    ],
)  # fmt: skip
def test_bad_targets_give_one_clear_error(y, message):
    with pytest.raises(DataError, match=message):
        from_arrays(X, y, kind="regressor")


def test_one_record_alone_does_not_vary():
    with pytest.raises(DataError, match="same value in all 1 records"):
        from_arrays(X[:1], [1.0], kind="regressor")


def test_inputs_are_checked_as_those_of_classifiers():
    with pytest.raises(DataError, match=r"1 inputs hold NaN or infinity \(rows 1\)"):
        from_arrays([[1.0], [float("nan")]], [1.0, 2.0], kind="regressor")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "regresser"}, "kind = 'regresser'; choose"),
        ({"kind": "regressor", "num_classes": 3}, "a regressor has no classes"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        from_arrays(X, [1.0, 2.0, 3.0, 4.0], **settings)
