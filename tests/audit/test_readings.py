"""Which records a reading selects, and with which answers."""

import pytest

from expunge.audit.readings import Reading, num_perturbed, select, union
from expunge.audit.views import Scene, see
from expunge.core.errors import DataError
from expunge.core.records import Records
from expunge.core.sets import Sets
from expunge.data.dataset import Dataset


@pytest.fixture
def dataset(people):
    held = Records(("holdout-0",), {"question": ["who"], "answer": ["carl"]})
    capitals = Records(("w-0",), {"question": ["is it"], "answer": ["bo"]})
    return Dataset("causal_lm", people, holdout=held, probes={"world_facts": capitals})


SETS = Sets(forget=("train-2",), retain=("train-0", "train-1", "train-3"), holdout=("holdout-0",))


def view(people, name):
    scene = Scene(Dataset("causal_lm", people), Sets(people.ids))
    return see(None, scene, Reading("forget", name))[1]


def test_views_swap_the_answer_and_leave_out_who_lacks_it(people):
    paraphrase = view(people, "paraphrase")
    assert paraphrase.ids == ("train-0", "train-2", "train-3")
    assert list(paraphrase["answer"]) == ["the red book is by anna", "the red tree", "in it"]
    assert list(paraphrase["question"]) == [people["question"][row] for row in (0, 2, 3)]
    assert view(people, "perturbed:0").ids == ("train-0", "train-2", "train-3")
    second = view(people, "perturbed:1")
    assert second.ids == ("train-0", "train-2")
    assert list(second["answer"]) == ["carl", "a sea"]
    assert view(people, "answer").digest() == people.digest()


def test_a_view_that_no_record_has_is_empty(people):
    plain = Records(people.ids, {"answer": people["answer"]})
    assert len(view(plain, "paraphrase")) == 0
    assert len(view(plain, "perturbed:0")) == 0
    assert num_perturbed(plain) == 0
    assert num_perturbed(people) == 2


def test_each_set_comes_from_its_role(dataset):
    assert select(dataset, SETS, Reading("forget")).ids == ("train-2",)
    assert select(dataset, SETS, Reading("retain")).ids == ("train-0", "train-1", "train-3")
    assert select(dataset, SETS, Reading("holdout")).ids == ("holdout-0",)
    assert select(dataset, SETS, Reading("world_facts")).ids == ("w-0",)
    assert len(select(dataset, SETS, Reading("test"))) == 0
    with pytest.raises(DataError, match="world_facts"):
        select(dataset, SETS, Reading("word_facts"))


def test_limit_takes_complete_records_first_in_their_order(dataset):
    assert select(dataset, SETS, Reading("retain", limit=2)).ids == ("train-0", "train-3")
    second = Reading("retain", "perturbed:1", limit=2)
    assert see(None, Scene(dataset, SETS), second)[1].ids == ("train-0",)
    assert select(dataset, SETS, Reading("retain", limit=9)).ids == SETS.retain


def test_union_reads_once_and_generates_the_longest():
    joined = union(
        [
            Reading("retain"),
            Reading("forget", max_new_tokens=8),
            Reading("forget"),
            Reading("forget", max_new_tokens=32),
            Reading("forget", "paraphrase"),
        ]
    )
    assert joined == (Reading("forget"), Reading("forget", "paraphrase"), Reading("retain"))
    assert [reading.max_new_tokens for reading in joined] == [32, 0, 0]
