import pytest

from expunge.core.errors import DataError
from expunge.data.classes import class_numbers

NAMED = {"num_classes": 3, "classes": ["cat", "dog", "cow"]}


def test_classes_go_by_number_and_by_name():
    assert class_numbers(["dog", 2, 0], NAMED, "here") == (1, 2, 0)
    assert class_numbers([4], {"num_classes": 5}, "here") == (4,)


@pytest.mark.parametrize("value", ["cat", 3, -1])
def test_a_class_that_does_not_exist_is_refused(value):
    with pytest.raises(DataError, match=r"here: there is no class .*; the data have .* 0 to 2"):
        class_numbers([value], {"num_classes": 3}, "here")


def test_the_names_that_exist_are_told():
    with pytest.raises(DataError, match=r"'bird'; .* called cat, dog, cow"):
        class_numbers(["bird"], NAMED, "here")
