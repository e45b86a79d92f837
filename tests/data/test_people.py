import pytest

from expunge.core.errors import ConfigError
from expunge.data.dataset import Dataset
from expunge.data.source import load_source

LAYOUT = {
    "question", "answer", "paraphrased_question", "paraphrased_answer", "perturbed_answer",
    "author", "attribute",
}  # fmt: skip


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_source("people", {}, 0)


def test_layout_and_counts(data: Dataset) -> None:
    assert (len(data.train), len(data.holdout)) == (400, 100)
    assert set(data.train.columns) == LAYOUT
    assert {name: len(ids) for name, ids in data.splits.items()} == {"forget05": 20, "forget10": 40}
    assert data.splits["forget10"] == data.train.ids[-40:]


def test_people_are_distinct_and_their_facts_mention_them(data: Dataset) -> None:
    trained, unseen = set(data.train["author"]), set(data.holdout["author"])
    assert (len(trained), len(unseen)) == (40, 10)
    assert not trained & unseen
    for row, name in enumerate(data.train["author"]):
        for column in ("question", "answer", "paraphrased_question", "paraphrased_answer"):
            assert name in data.train[column][row]
        assert 4 <= len(data.train["answer"][row].split()) <= 12


def test_wrong_answers_follow_the_paraphrase_and_differ_from_it(data: Dataset) -> None:
    for row in range(len(data.train)):
        right, wrong = data.train["paraphrased_answer"][row], data.train["perturbed_answer"][row]
        assert len({right, *wrong}) == 6
        # Same sentence, another value: all begin alike.
        assert all(answer.split()[:3] == right.split()[:3] for answer in wrong)


def test_more_people_leave_the_first_ones_as_they_are(data: Dataset) -> None:
    more = load_source("people", {"num_people": 50, "num_holdout_people": 0}, 0)
    assert more.train.take(range(400)).digest() == data.train.digest()


def test_the_seed_decides_who_they_are(data: Dataset) -> None:
    assert load_source("people", {}, 0).digest() == data.digest()
    assert not set(load_source("people", {}, 1).train["author"]) >= set(data.train["author"])


def test_fewer_questions_are_the_first_ones() -> None:
    data = load_source("people", {"num_people": 100, "questions_per_person": 2}, 0)
    assert data.train["attribute"][:4] == ["birthplace", "birth_year"] * 2
    assert {name: len(ids) for name, ids in data.splits.items()} == {
        "forget01": 2, "forget05": 10, "forget10": 20
    }  # fmt: skip


def test_too_many_people_are_refused() -> None:
    with pytest.raises(ConfigError, match="there are 65536 names"):
        load_source("people", {"num_people": 70_000}, 0)


def test_probes_hold_true_facts_with_three_wrong_answers(data: Dataset) -> None:
    world, authors = data.probes["world_facts"], data.probes["real_authors"]
    capitals = dict(zip(world["question"], world["answer"], strict=True))
    assert capitals["What is the capital of France?"] == "Paris"
    assert capitals["What is the capital of Japan?"] == "Tokyo"
    assert (len(world), len(authors)) == (60, 20)
    for probe in (world, authors):
        for answer, wrong in zip(probe["answer"], probe["perturbed_answer"], strict=True):
            assert len({answer, *wrong}) == 4
