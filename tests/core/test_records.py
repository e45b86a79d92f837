from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge.core.errors import DataError
from expunge.core.records import Records, concatenate


class Lazy(Sequence):
    """A column that notes which rows were read, like a folder of images."""

    def __init__(self, size):
        self.size, self.read = size, []

    def __len__(self):
        return self.size

    def __getitem__(self, row):
        if not 0 <= row < self.size:
            raise IndexError(row)
        self.read.append(row)
        return np.full(2, row)


def table(**columns):
    size = len(next(iter(columns.values())))
    return Records(tuple("abcdefgh"[:size]), columns)


@given(st.permutations(range(6)))
def test_digest_does_not_depend_on_the_order_of_rows(order):
    records = table(x=np.arange(12.0).reshape(6, 2), text=list("uvwxyz"))
    assert records.take(order).digest() == records.digest()


def test_digest_does_not_depend_on_the_order_of_columns():
    assert table(x=[1, 2], y=[3, 4]).digest() == table(y=[3, 4], x=[1, 2]).digest()


@pytest.mark.parametrize(
    "other",
    [
        table(x=[12, 2], y=[3, 4]),  # the same digits, cut elsewhere
        table(x=[2, 1], y=[23, 4]),  # values under other ids
        table(y=[1, 2], x=[23, 4]),  # columns exchanged
        table(x=["1", 2], y=[23, 4]),  # text for a number
        table(x=[1, 2], z=[23, 4]),  # another name
    ],
)
def test_digest_tells_contents_apart(other):
    assert other.digest() != table(x=[1, 2], y=[23, 4]).digest()


def test_digest_reads_type_and_shape_of_arrays():
    flat = table(x=np.zeros((2, 4), dtype=np.float32))
    assert flat.digest() != table(x=np.zeros((2, 2, 2), dtype=np.float32)).digest()
    assert flat.digest() != table(x=np.zeros((2, 2), dtype=np.float64)).digest()


def test_digest_of_tensors_and_objects_is_that_of_their_values():
    values = np.arange(6.0).reshape(2, 3)
    assert table(x=torch.from_numpy(values)).digest() == table(x=values).digest()
    words = [np.array([["u"], ["v"]], dtype=object) for _ in range(2)]
    assert table(x=words[0]).digest() == table(x=words[1]).digest()


def test_select_takes_ids_in_the_given_order():
    picked = table(x=np.arange(4), text=list("uvwx")).select("ca")
    assert picked.ids == ("c", "a")
    assert list(picked["x"]) == [2, 0]
    assert list(picked["text"]) == ["w", "u"]


def test_select_refuses_unknown_ids():
    with pytest.raises(DataError, match=r"select: 1 unknown record ids \(z\)"):
        table(x=[1, 2]).select("az")


def test_lazy_columns_are_read_only_where_needed():
    column = Lazy(6)
    picked = table(x=column).take([4, 1, 5]).take([2, 0])
    joined = concatenate([picked, Records(("z",), {"x": [np.full(2, 9)]})])
    assert column.read == []
    assert [int(value[0]) for value in joined["x"]] == [5, 4, 9]
    assert int(joined["x"][-1][0]) == 9
    assert column.read == [5, 4]


def test_concatenate_keeps_shared_columns():
    one = table(x=np.arange(2), only=[0, 0])
    other = Records(("p", "q", "r"), {"x": np.arange(5, 8)})
    joined = concatenate([one, Records((), {}), other])
    assert joined.ids == ("a", "b", "p", "q", "r")
    assert list(joined.columns) == ["x"]
    np.testing.assert_array_equal(joined["x"], [0, 1, 5, 6, 7])


def test_concatenate_refuses_an_id_in_two_parts():
    with pytest.raises(DataError, match=r"2 ids stand twice \(a, b\)"):
        concatenate([table(x=[1, 2]), table(x=[3, 4])])


def test_every_fault_of_a_table_is_named_at_once():
    with pytest.raises(DataError) as caught:
        Records(("a", "a"), {"x": [1], "y": [1, 2, 3]})
    message = str(caught.value)
    assert "column 'x' has 1 rows but there are 2 ids" in message
    assert "column 'y' has 3 rows but there are 2 ids" in message
    assert "1 ids stand twice (a)" in message


def test_replace_leaves_the_original_alone():
    records = table(x=[1, 2])
    changed = records.replace(x=[5, 6], y=[7, 8])
    assert list(records["x"]) == [1, 2]
    assert "y" not in records
    assert (list(changed["x"]), list(changed["y"])) == ([5, 6], [7, 8])


def test_missing_column_names_those_that_exist():
    with pytest.raises(DataError, match="no column 'z'; they have x, y"):
        table(x=[1], y=[2])["z"]
