import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.core.errors import DataError
from expunge.core.records import Records
from expunge.data.arrays import draw_parts, from_arrays
from expunge.data.dataset import number_ids
from expunge.data.source import load_source

X = np.arange(12, dtype=np.float64).reshape(4, 3)


def test_arrays_become_records_with_facts() -> None:
    data = from_arrays(X, [0, 2, 1, 0], holdout=(X[:2], [0, 1]), splits={"first": ["train-00000"]})
    assert data.facts == {"num_classes": 3, "input_shape": [3]}
    assert data.train.ids == number_ids("train", 4)
    assert data.train["x"].dtype == np.float32
    assert data.train["y"].dtype == np.int64
    assert data.holdout.ids == ("holdout-00000", "holdout-00001")
    assert data.splits == {"first": ("train-00000",)}


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([[1.0, 2.0], [3.0]], [0, 1], "not numbers of one shape"),
        ([["a"], ["b"]], [0, 1], "not numbers of one shape"),
        ([[1.0], [float("nan")]], [0, 1], r"1 inputs hold NaN or infinity \(rows 1\)"),
        ([1.0, 2.0], [0, 1], "need rows and features"),
        ([[1.0], [2.0]], [0.5, 1.0], "one integer from 0"),
        ([[1.0], [2.0]], [-1, 1], "one integer from 0"),
        ([[1.0], [2.0]], [0], "2 rows|one value per id"),
    ],
)
def test_bad_arrays_give_one_clear_error(x: list, y: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_arrays(x, y)


def test_an_id_that_stands_twice_is_named() -> None:
    with pytest.raises(DataError, match=r"stand twice \(a\)"):
        from_arrays(X[:2], [0, 1], ids=["a", "a"])


@given(
    total=st.integers(3, 40),
    first=st.integers(0, 20),
    second=st.integers(0, 20),
    seed=st.integers(0, 9),
)
def test_parts_are_disjoint_and_of_the_size_asked(
    total: int, first: int, second: int, seed: int
) -> None:
    pool = Records(number_ids("r", total), {"v": list(range(total))})
    sizes = {"first": first, "second": second}
    if first + second > total:
        with pytest.raises(DataError, match=f"there are {total} records"):
            draw_parts(pool, sizes, seed)
        return
    parts = draw_parts(pool, sizes, seed)
    assert {name: len(part) for name, part in parts.items()} == sizes
    assert not set(parts["first"].ids) & set(parts["second"].ids)
    assert parts == draw_parts(pool, sizes, seed)


def test_digits_split_is_a_function_of_the_seed() -> None:
    data = load_source("digits", {"num_holdout": 300, "num_test": 297}, 0)
    again = load_source("digits", {"num_holdout": 300, "num_test": 297}, 0)
    other = load_source("digits", {"num_holdout": 300, "num_test": 297}, 1)
    assert (len(data.train), len(data.holdout), len(data.test)) == (1200, 300, 297)
    assert data.facts == {"num_classes": 10, "input_shape": [1, 8, 8]}
    assert data.digest() == again.digest() != other.digest()
    assert len({*data.train.ids, *data.holdout.ids, *data.test.ids}) == 1797
    # The first picture of scikit-learn's file shows a zero; its id does not depend on the seed.
    everything = {i: y for part in (other.train, other.holdout, other.test)
                  for i, y in zip(part.ids, part["y"], strict=True)}  # fmt: skip
    assert everything["digits-00000"] == 0
    assert 0.0 <= data.train["x"].min() < data.train["x"].max() == 1.0


def test_digits_leave_something_to_train_on() -> None:
    with pytest.raises(DataError, match="1797 records but 1000 for holdout"):
        load_source("digits", {"num_holdout": 1000, "num_test": 797}, 0)


def test_mnist_has_five_hundred_pictures_of_each_digit() -> None:
    data = load_source("mnist", {"num_holdout": 0, "num_test": 0}, 0)
    assert np.bincount(data.train["y"]).tolist() == [500] * 10
    assert data.facts["input_shape"] == [1, 28, 28]
