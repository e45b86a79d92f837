"""Which records count as neighbours, beside cosines computed by hand."""

import math
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.audit.readings import Reading
from expunge.audit.similarity import similarity_R, tenths
from expunge.audit.views import Scene, see
from expunge.core.errors import ConfigError, DataError
from expunge.core.records import Records
from expunge.core.sets import Sets
from expunge.data.dataset import Dataset

FORGET = ("who wrote the red book", "is the tree in the sea")
KEPT = ("who wrote the blue book", "the tree", "Fish, fish and chips!", "who", "???", "a sea")


def cosines(texts, forget):
    """TF-IDF with idf = ln((1 + n) / (1 + df)) + 1 and unit length, in plain Python."""
    corpus = [Counter(re.findall(r"\w+", text.lower())) for text in (*texts, *forget)]
    df = Counter(word for counts in corpus for word in counts)
    idf = {word: math.log((1 + len(corpus)) / (1 + df[word])) + 1 for word in df}
    vectors = []
    for counts in corpus:
        vector = {word: count * idf[word] for word, count in counts.items()}
        length = math.sqrt(sum(value**2 for value in vector.values())) or 1.0
        vectors.append({word: value / length for word, value in vector.items()})
    kept, gone = vectors[: len(texts)], vectors[len(texts) :]
    return [max(sum(a[w] * b.get(w, 0) for w in a) for b in gone) for a in kept]


def test_similarity_is_the_cosine_to_the_nearest_forget_text():
    assert similarity_R(KEPT, FORGET) == pytest.approx(cosines(KEPT, FORGET), abs=1e-12)


def test_texts_without_a_word_are_like_nothing():
    assert similarity_R(("?", "!!"), ("...",)).tolist() == [0, 0]
    assert similarity_R((), ("words",)).tolist() == []
    assert tenths((), ("words",)) == ()


@given(st.lists(st.sampled_from(KEPT), min_size=1, max_size=45))
def test_tenths_are_ranks_of_similarity_in_ten_parts(texts):
    found = tenths(tuple(texts), FORGET)
    values = np.round(cosines(texts, FORGET), 9)
    ranks = sorted(range(len(texts)), key=lambda row: (-values[row], row))
    expected = [0] * len(texts)
    for rank, row in enumerate(ranks):
        expected[row] = rank * 10 // len(texts) + 1
    assert list(found) == expected
    sizes = np.bincount(found, minlength=11)[1:]
    assert sizes.max() - sizes.min() <= 1


@pytest.fixture
def world(make_llama):
    """Forty retain records, of which every tenth shares words with the forget record."""
    task, _ = make_llama
    near = "what is the capital of norway"
    questions = [near] + [near if row % 10 == 3 else f"word{row} stands alone" for row in range(40)]
    records = Records(
        ("gone", *(f"kept-{row}" for row in range(40))),
        {
            "question": questions,
            "answer": ["oslo", *(f"name{row}" for row in range(40))],
            "perturbed_answer": [["paris"] if row % 2 else None for row in range(41)],
            "dual": [None, *(row < 3 for row in range(40))],
        },
    )
    return task, Scene(Dataset("causal_lm", records), Sets.partition(records.ids, ["gone"]))


def ids(world, view, seed=0):
    task, scene = world
    scene = Scene(scene.dataset, scene.sets, seed)
    return [int(i.removeprefix("kept-")) for i in see(task, scene, Reading("retain", view))[1].ids]


def test_the_nearest_tenth_holds_what_shares_words(world):
    assert ids(world, "near:1") == [3, 13, 23, 33]
    parts = [ids(world, f"near:{tenth}") for tenth in range(1, 11)]
    assert sorted(row for part in parts for row in part) == list(range(40))
    assert ids(world, "near:6-10") == sorted(row for part in parts[5:] for row in part)


def test_a_limit_draws_by_seed_and_keeps_the_order(world):
    drawn = ids(world, "near:6-10:7")
    assert len(drawn) == 7
    assert drawn == sorted(drawn) == ids(world, "near:6-10:7")
    assert set(drawn) <= set(ids(world, "near:6-10"))
    assert drawn != ids(world, "near:6-10:7", seed=1)
    assert ids(world, "near:1:0") == ids(world, "near:1:9") == ids(world, "near:1")


def test_an_inner_view_decides_the_answers(world):
    task, scene = world
    plain = see(task, scene, Reading("retain", "near:1:0"))[1]
    wrong = see(task, scene, Reading("retain", "near:1:0:perturbed:0"))[1]
    assert list(plain["answer"]) == ["name3", "name13", "name23", "name33"]
    assert wrong.ids == ()  # rows 4, 14, … of the data have no wrong answer
    far = see(task, scene, Reading("retain", "near:2-10:0:perturbed:0"))[1]
    assert set(far["answer"]) == {"paris"}


def test_a_column_of_the_user_marks_neighbours(world):
    assert ids(world, "marked:dual:yes") == [0, 1, 2]
    assert ids(world, "marked:dual:no:0") == list(range(3, 40))
    assert len(ids(world, "marked:dual:no:5")) == 5
    with pytest.raises(DataError, match="duel"):
        ids(world, "marked:duel:yes")


@pytest.mark.parametrize(
    "view", ["near", "near:0", "near:11", "near:1-11", "near:x", "near:1:many"]
)
def test_a_view_that_names_no_tenths_is_an_error(world, view):
    with pytest.raises(ConfigError, match=r"tenths|drawn"):
        ids(world, view)
