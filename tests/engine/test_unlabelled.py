"""A task that makes no targets, over records whose labels are gone."""

import numpy as np
import pytest

from expunge.core.errors import DataError
from expunge.core.records import Records
from expunge.engine.tasks.classifier import Classifier
from expunge.engine.unlabelled import Unlabelled, without_labels


class Untouchable(list):
    def __getitem__(self, row):
        raise AssertionError("a label was read")


RECORDS = Records(
    ("a", "b"),
    {"x": np.ones((2, 3), dtype=np.float32), "y": Untouchable([0, 1]), "note": ["p", "q"]},
)


def test_the_column_of_labels_goes_unread_and_others_stay():
    found = without_labels(Classifier(2), RECORDS)
    assert found.ids == RECORDS.ids
    assert set(found.columns) == {"x", "note"}


def test_a_task_that_names_no_labels_loses_nothing():
    assert set(without_labels(object(), RECORDS).columns) == {"x", "y", "note"}


@pytest.mark.parametrize("targets", [True, False])
def test_no_targets_are_made_whatever_is_asked_for(targets):
    task = Unlabelled(Classifier(2))
    batch = task.batch(without_labels(Classifier(2), RECORDS), [1, 0], targets=targets)
    assert (batch.ids, len(batch.targets_N)) == (("b", "a"), 0)
    assert task.num_targets(RECORDS) == task.lengths(RECORDS) == [1, 1]


def test_the_plain_task_would_have_read_them():
    with pytest.raises(AssertionError, match="a label was read"):
        Classifier(2).batch(RECORDS, [0])
    with pytest.raises(DataError, match="no column 'y'"):
        Classifier(2).batch(without_labels(Classifier(2), RECORDS), [0])


def test_it_is_not_mistaken_for_the_task():
    assert Unlabelled(Classifier(2)).fingerprint() != Classifier(2).fingerprint()
    assert Unlabelled(Classifier(2)).fingerprint() != Unlabelled(Classifier(3)).fingerprint()


def test_there_is_nothing_to_neutralise():
    assert Unlabelled(Classifier(2)).neutral(RECORDS, 0, 0) is RECORDS
