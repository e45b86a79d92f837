"""Filters: how alike prompts are to what was forgotten, and where the threshold lies."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.audit.context_filter import ALONE, STOPS, filters, threshold, word_filter
from expunge.audit.measures import measures
from expunge.audit.readings import Reading
from expunge.audit.views import Scene, see
from expunge.core.errors import ConfigError, DataError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.core.sets import Sets
from expunge.data.dataset import Dataset

SIZE, GONE = 24, 4
FORGET, RETAIN = Reading("forget"), Reading("retain")


def scene_of(seed=0, gone=GONE):
    rows = range(SIZE)
    records = Records(
        tuple(f"r-{row}" for row in rows),
        {
            "question": [f"who wrote book{row} of town{row}" for row in rows],
            "answer": [f"writer{row}" for row in rows],
            "perturbed_answer": [[f"fake{row}"] for row in rows],
        },
    )
    sets = Sets.partition(records.ids, records.ids[:gone])
    return Scene(Dataset("causal_lm", records), sets, seed)


@pytest.fixture(scope="module")
def look(language_model):
    def see_it(record_set, view, scene=None):
        task = language_model[1]
        return see(task, scene or scene_of(), Reading(record_set, f"filtered:{view}"))

    return see_it


def marks(seen, name=STOPS):
    return measures.get(name).of_model(None, None, seen[1], Run())


def test_a_word_counts_by_how_rare_it_is():
    """By hand: idf is ln((1 + n) / (1 + df)) + 1 over the four texts, vectors have unit length."""
    score = word_filter(["who red", "who red anna"], ["who blue", "who green"])
    who, red, anna = (math.log(5 / (1 + df)) + 1 for df in (4, 2, 1))
    short, long = math.hypot(who, red), math.hypot(who, red, anna)
    unknown = math.log(5) + 1
    found = score(["who red", "who", "red anna", "red new", "yellow", ""])
    half = red**2 / math.hypot(red, unknown) / short
    expected = [1, who / short, math.hypot(red, anna) / long, half, 0, 0]
    np.testing.assert_allclose(found, expected, atol=1e-8)


def test_a_prompt_counts_as_its_most_alike_line():
    score = word_filter(["red tree anna"], ["blue sea bo"])
    line, split, other = score(["blue sea\nred tree anna\nbo", "red\ntree\nanna", "blue sea bo"])
    assert line == pytest.approx(1)
    assert split == pytest.approx(1 / math.sqrt(3))
    assert other == 0


@given(
    prompts=st.lists(st.text(alphabet="red bluanos\n", max_size=20), min_size=2, max_size=6),
    at=st.integers(0, 5),
)
def test_a_score_lies_in_its_range_and_depends_on_no_other_prompt(prompts, at):
    score = word_filter(["red sea", "anna"], ["blue sea", "bo"])
    found = score(prompts)
    assert ((found >= 0) & (found <= 1)).all()
    assert score([prompts[at % len(prompts)]])[0] == found[at % len(prompts)]


def test_a_filter_without_words_stops_nothing():
    assert word_filter(["...", ""], ["red"])(["red", "..."]).tolist() == [0, 0]
    assert word_filter(["red"], [])([]).tolist() == []


@given(
    scores=st.lists(st.floats(0, 1), min_size=1, max_size=60),
    alarms=st.floats(0, 0.99),
)
def test_the_threshold_stops_no_more_than_its_share_and_no_less_than_it_may(scores, alarms):
    scores = np.array(scores)
    least = threshold(scores, alarms)
    stopped = scores >= least
    assert stopped.sum() <= alarms * len(scores)
    # A threshold at the next lower score would stop too many.
    lower = scores[~stopped].max()
    assert (scores >= lower).sum() > math.floor(alarms * len(scores))


def test_the_threshold_by_hand():
    scores = np.array([0.1, 0.5, 0.3, 0.9])
    assert threshold(scores, 0.0) == np.nextafter(0.9, 2)
    assert threshold(scores, 0.25) == np.nextafter(0.5, 2)
    assert threshold(np.array([]), 0.01) is None


def test_forgotten_questions_are_stopped_and_half_of_the_retained_set_the_threshold(look):
    assert marks(look("forget", "words:0.01")).tolist() == [1] * GONE
    kept = marks(look("retain", "words:0.01"))
    assert np.isnan(kept).sum() == (SIZE - GONE) // 2
    assert np.nansum(kept) == 0
    other = marks(look("retain", "words:0.01", scene_of(seed=1)))
    assert np.isnan(other).tolist() != np.isnan(kept).tolist()


def test_prompts_and_answers_are_those_of_the_view_below(look, language_model):
    scene = scene_of()
    task, seen = look("forget", "words:0.01:context:statement:2:perturbed:0")
    plain, told = see(
        language_model[1], scene, Reading("forget", "context:statement:2:perturbed:0")
    )
    assert task._texts(seen, range(GONE)) == plain._texts(told, range(GONE))
    assert list(seen["answer"]) == [f"fake{row}" for row in range(GONE)]


def test_a_told_fact_is_stopped_below_an_innocent_question(look):
    told = look("retain", "words:0.01:borrowed_context:statement:1")
    known = np.isfinite(marks(told))
    assert marks(told)[known].tolist() == [1] * known.sum()
    assert marks(told, ALONE)[known].tolist() == [0] * known.sum()
    demo = marks(look("retain", "words:0.01:borrowed_context:demo:2"))
    assert np.nansum(demo) == 0


def test_what_is_disguised_resembles_nothing(look):
    found = look("forget", "words:0.01:context:disguised:1")
    assert marks(found).tolist() == [0] * GONE
    assert all("book" not in text.split() for text in found[1]["question"])


def test_what_is_noted_counts_for_the_digest_of_the_records(look):
    """By which scores are kept; a record that the threshold rests on is digested, too."""
    (_, seen), (_, again) = (look("retain", "words:0.01") for _ in range(2))
    assert seen.digest() == again.digest()
    scene = scene_of(seed=1)
    assert seen.digest() != look("retain", "words:0.01", scene)[1].digest()


def test_without_retained_records_there_is_no_threshold(look):
    scene = scene_of(gone=SIZE)
    assert np.isnan(marks(look("forget", "words:0.01", scene))).all()


def test_a_filter_of_the_users_is_asked(look, monkeypatch):
    def make(forgotten, innocent):
        assert "who wrote book0 of town0" in forgotten
        assert "who wrote book0 of town0 writer0" in forgotten
        assert not any("book0" in text.split() for text in innocent)
        return lambda prompts: np.array([float("book3" in text) for text in prompts])

    filters.discover()
    monkeypatch.setitem(filters._parts, "mine", make)
    assert marks(look("forget", "mine:0")).tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("wrong", [[2.0], [-0.1], [math.nan], [0.1, 0.2]])
def test_a_filter_that_returns_no_scores_is_refused(look, monkeypatch, wrong):
    filters.discover()
    name = f"mine_{abs(hash(str(wrong)))}"
    values = np.resize(wrong, 99)
    make = lambda forgotten, innocent: lambda prompts: values[: len(prompts) + len(wrong) - 1]  # noqa: E731
    monkeypatch.setitem(filters._parts, name, make)
    with pytest.raises(DataError, match="one number of 0 to 1 for each"):
        look("forget", f"{name}:0")


@pytest.mark.parametrize("view", ["words", "words:1", "words:-0.1", "words:x", "wrods:0.01"])
def test_filters_and_shares_that_do_not_exist_are_refused(look, view):
    with pytest.raises(ConfigError):
        look("forget", view)
