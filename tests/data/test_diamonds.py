"""The diamonds, as card `deep-regression-unlearning` (small honest reproduction) describes them."""

import csv
import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from expunge.core.errors import DataError, StorageError
from expunge.data.source import load_source

SIZES = {"num_train": 400, "num_holdout": 100, "num_test": 200}
NEEDED = pytest.mark.skipif(
    importlib.util.find_spec("plotnine") is None, reason="the package plotnine is not installed"
)


@pytest.fixture(scope="module")
def rows():
    """The file itself, by record id."""
    package = importlib.util.find_spec("plotnine")
    path = Path(package.submodule_search_locations[0]) / "data" / "diamonds.csv"
    with path.open(newline="") as file:
        return {f"diamonds-{row:05d}": values for row, values in enumerate(csv.DictReader(file))}


@NEEDED
def test_target_is_ten_times_the_logarithm_of_the_price(rows):
    data = load_source("diamonds", SIZES, 0)
    assert data.kind == "regressor"
    assert data.facts["input_shape"] == [6]
    for part in (data.train, data.holdout, data.test):
        expected = [10 * math.log(float(rows[i]["price"])) for i in part.ids]
        np.testing.assert_allclose(part["y"], expected, rtol=1e-6)
        assert [rows[i]["cut"] for i in part.ids] == list(part["cut"])
        assert [float(rows[i]["price"]) for i in part.ids] == list(part["price"])


@NEEDED
def test_features_are_standardised_by_the_training_records(rows):
    data = load_source("diamonds", SIZES, 0)
    train = np.asarray(data.train["x"], dtype=np.float64)
    np.testing.assert_allclose(train.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(train.std(axis=0), 1, atol=1e-5)
    carats = np.log([float(rows[i]["carat"]) for i in data.train.ids])
    tested = np.log([float(rows[i]["carat"]) for i in data.test.ids])
    expected = (tested - carats.mean()) / carats.std()
    np.testing.assert_allclose(np.asarray(data.test["x"])[:, 0], expected, rtol=1e-4, atol=1e-5)


@NEEDED
@pytest.mark.parametrize(
    ("column", "place", "worst", "best"),
    [("cut", 1, "Fair", "Ideal"), ("color", 2, "J", "D"), ("clarity", 3, "I1", "IF")],
)
def test_grades_rise_from_the_worst_to_the_best(column, place, worst, best):
    data = load_source("diamonds", {**SIZES, "num_train": 5000}, 0)
    graded = np.asarray(data.train["x"])[:, place]
    held = np.array(data.train[column])
    assert set(graded[held == worst]) == {graded.min()}
    assert set(graded[held == best]) == {graded.max()}


@NEEDED
def test_stones_without_a_width_are_left_out_and_no_others(rows):
    whole = load_source("diamonds", {"num_train": 53_920, "num_holdout": 0, "num_test": 0}, 0)
    without = {i for i, row in rows.items() if 0 in (float(row[side]) for side in "xyz")}
    assert len(rows) == 53_940
    assert set(whole.train.ids) == set(rows) - without
    assert len(whole.holdout) == len(whole.test) == 0
    with pytest.raises(DataError, match="there are 53920 records"):
        load_source("diamonds", {"num_train": 53_921, "num_holdout": 0, "num_test": 0}, 0)


@NEEDED
def test_quarters_of_the_price_hold_a_quarter_of_the_training_records_each():
    data = load_source("diamonds", SIZES, 0)
    quarter, price = np.asarray(data.train["price_quarter"]), np.asarray(data.train["price"])
    assert sorted(set(quarter)) == [1, 2, 3, 4]
    assert np.allclose(np.bincount(quarter)[1:], 100, atol=3)
    for low in (1, 2, 3):
        assert price[quarter == low].max() <= price[quarter == low + 1].min()
    # The edges are those of the training records, whatever the test records cost.
    assert set(np.asarray(data.test["price_quarter"])) <= {1, 2, 3, 4}
    cheap = np.asarray(data.test["price"]) < price[quarter == 2].min()
    assert (np.asarray(data.test["price_quarter"])[cheap] == 1).all()


@NEEDED
def test_the_cut_may_be_the_class():
    data = load_source("diamonds", {**SIZES, "target": "cut"}, 0)
    assert data.kind == "classifier"
    assert data.facts["num_classes"] == 5
    names = data.facts["classes"]
    assert [names[label] for label in data.train["y"]] == list(data.train["cut"])
    # The price takes the cut's place among the inputs: its logarithm, standardised.
    price = np.log(np.asarray(data.train["price"]))
    expected = (price - price.mean()) / price.std()
    np.testing.assert_allclose(np.asarray(data.train["x"])[:, 3], expected, rtol=1e-4, atol=1e-5)


@NEEDED
def test_the_package_is_not_imported():
    load_source("diamonds", SIZES, 0)
    assert "plotnine" not in sys.modules


def test_without_the_package_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StorageError, match="pip install --no-deps plotnine"):
        load_source("diamonds", {}, 0)
