"""What is scored, once: kept scores, treatments, views and measures of one model."""

import dataclasses

import numpy as np
import pytest
import torch

from expunge.audit.collecting import collect
from expunge.audit.evidence import Evidence
from expunge.audit.measures import measures, of_model
from expunge.audit.readings import Reading, union
from expunge.audit.score_table import read_scores, write_scores
from expunge.audit.treatments import (
    GROUP,
    NOT_BEFORE,
    NotApplicable,
    attacked_ids,
    groups_of,
    groups_read,
    require_two_groups,
    split_words,
    treatment,
    treatments,
)
from expunge.core.errors import ConfigError, DataError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.core.sets import Sets
from expunge.data.dataset import Dataset
from expunge.engine.weights import state_digest

FORGET, RETAIN = Reading("forget"), Reading("retain")


@pytest.fixture(scope="module")
def data(people):
    sets = Sets(forget=("train-0", "train-2"), retain=("train-1", "train-3"))
    return Dataset("causal_lm", people), sets


@pytest.fixture
def doubled(monkeypatch):
    """A treatment that doubles the last weights, and one that fits no model."""
    monkeypatch.setattr(treatments, "_parts", dict(treatments._parts))
    treatments.discover()

    @treatment("doubled", roles=NOT_BEFORE)
    def double(model, task, scene, parameters, run):
        with torch.no_grad():
            list(model.parameters())[-1].mul_(float(parameters))
            return model, task

    @treatment("never")
    def refuse(model, task, scene, parameters, run):
        raise NotApplicable("no model has what it takes")


def run_of(model, task, data, readings, role="after", **settings):
    return collect(model, task, *data, readings, Run(), role=role, **settings)


def test_a_treatment_works_on_a_copy_of_those_whom_it_is_for(language_model, data, doubled):
    model, task = language_model
    treated = Reading("forget", treatment="doubled:2")
    digest = state_digest(model)
    after = run_of(model, task, data, (FORGET, treated))
    assert state_digest(model) == digest == after.model
    assert not np.allclose(after.scores[FORGET].logprob_N, after.scores[treated].logprob_N)
    before = run_of(model, task, data, (FORGET, treated), role="before")
    assert set(before.scores) == {FORGET}
    Evidence(after=after, before=before, references=(), sets="")  # what is absent may be absent


def test_a_treatment_that_does_not_fit_says_why(language_model, data, doubled, tmp_path):
    model, task = language_model
    reading = Reading("forget", treatment="never")
    subject = run_of(model, task, data, (FORGET, reading))
    assert subject.absent == {reading: "no model has what it takes"}
    write_scores(tmp_path / "s.parquet", subject)
    assert read_scores(tmp_path / "s.parquet").absent == subject.absent


def test_an_unknown_treatment_or_view_is_refused(language_model, data):
    model, task = language_model
    with pytest.raises(ConfigError, match="no treatments entry 'quantise'"):
        run_of(model, task, data, (Reading("forget", treatment="quantise:8"),))
    with pytest.raises(ConfigError, match="no views entry 'perturb'"):
        run_of(model, task, data, (Reading("forget", "perturb:0"),))


def test_kept_scores_are_used_bit_by_bit(language_model, data, tmp_path, monkeypatch):
    model, task = language_model
    readings = (
        FORGET,
        RETAIN,
        Reading("forget", "paraphrase", max_new_tokens=3, measures=("rouge_l",)),
    )
    first = run_of(model, task, data, readings, cache=tmp_path)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2  # one for each set

    def never(*arguments, **named):
        raise AssertionError("scored again")

    monkeypatch.setattr("expunge.audit.collecting.score_together", never)
    monkeypatch.setattr("expunge.audit.collecting.answer_together", never)
    again = run_of(model, task, data, readings, cache=tmp_path, role="before")
    assert again.role == "before"
    for reading in readings:
        for field in ("logprob_N", "mean_N", "rank_N"):
            one, other = (getattr(s.scores[reading], field) for s in (first, again))
            np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(
        first.scores[readings[2]].measured["rouge_l"], again.scores[readings[2]].measured["rouge_l"]
    )


@pytest.mark.parametrize(
    "what", ["weights", "config", "template", "context", "records", "length", "batch"]
)
def test_kept_scores_serve_the_same_question_only(language_model, data, tmp_path, what):
    model, task = language_model
    reading = Reading("forget", max_new_tokens=3, measures=("rouge_l",))
    run_of(model, task, data, (reading,), cache=tmp_path)
    dataset, sets = data
    settings = {}
    if what == "weights":
        import copy

        model = copy.deepcopy(model)
        with torch.no_grad():
            next(model.parameters()).add_(1e-3)
    elif what == "config":
        import copy

        model = copy.deepcopy(model)
        model.config.rope_parameters = {"rope_type": "default", "rope_theta": 17.0}
    elif what == "context":
        task = type(task)(task.tokenizer, task.template, context=50)
    elif what == "template":
        task = task.with_template(dataclasses.replace(task.template, prompt="who {question}"))
    elif what == "records":
        sets = Sets(forget=("train-0",), retain=sets.retain)
    elif what == "length":
        reading = Reading("forget", max_new_tokens=4, measures=("rouge_l",))
    else:
        settings = {"batch_size": 1}
    run_of(model, task, (dataset, sets), (reading,), cache=tmp_path, **settings)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_damaged_file_is_scored_again(language_model, data, tmp_path):
    model, task = language_model
    first = run_of(model, task, data, (FORGET,), cache=tmp_path)
    [file] = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    again = run_of(model, task, data, (FORGET,), cache=tmp_path)
    np.testing.assert_array_equal(first.scores[FORGET].logprob_N, again.scores[FORGET].logprob_N)
    assert file.read_bytes() == whole


def test_kept_scores_hold_no_text(language_model, data, people, tmp_path):
    model, task = language_model
    run_of(
        model,
        task,
        data,
        (Reading("forget", max_new_tokens=5, measures=("rouge_l",)),),
        cache=tmp_path,
    )
    [file] = tmp_path.iterdir()
    words = {word for text in people["answer"] for word in text.split() if len(word) > 3}
    assert not any(word.encode() in file.read_bytes() for word in words)


def test_measures_stand_beside_the_scores(language_model, data, monkeypatch, tmp_path):
    monkeypatch.setattr(measures, "_parts", dict(measures._parts))

    @of_model("number_of_targets")
    def count(model, task, records, run):
        return np.array(task.num_targets(records), dtype=float)

    model, task = language_model
    wanted = union(
        [
            Reading("forget", measures=("zlib",)),
            Reading("forget", max_new_tokens=2, measures=("rouge_l",)),
        ]
    )
    wanted = union([*wanted, Reading("forget", measures=("number_of_targets",))])
    [reading] = wanted
    assert reading.measures == ("number_of_targets", "rouge_l", "zlib")
    subject = run_of(model, task, data, wanted)
    scores = subject.scores[reading]
    np.testing.assert_array_equal(scores.measured["number_of_targets"], scores.n_R)
    assert set(scores.measured) == {"number_of_targets", "rouge_l", "zlib"}
    write_scores(tmp_path / "s.parquet", subject)
    again = read_scores(tmp_path / "s.parquet").scores[reading]
    for name, values in scores.measured.items():
        np.testing.assert_array_equal(again.measured[name], values)


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_batch_size_changes_no_number(language_model, data, batch_size):
    model, task = language_model
    readings = (FORGET, Reading("forget", "paraphrase"), Reading("forget", "perturbed:0"), RETAIN)
    one = run_of(model, task, data, readings)
    other = run_of(model, task, data, readings, batch_size=batch_size)
    for reading in readings:
        np.testing.assert_allclose(
            one.scores[reading].logprob_N, other.scores[reading].logprob_N, atol=1e-5
        )


def test_padding_side_and_order_change_no_number(language_model, data, people):
    model, task = language_model
    dataset, _ = data
    readings = (FORGET, Reading("forget", "perturbed:0"))
    forward, backward = people.ids, people.ids[::-1]
    found = []
    for ids, side in ((forward, "right"), (forward, "left"), (backward, "right")):
        task.tokenizer.padding_side = side
        try:
            found.append(run_of(model, task, (dataset, Sets(forget=ids)), readings))
        finally:
            task.tokenizer.padding_side = "right"
    for other in found[1:]:
        for reading in readings:
            one, two = (
                dict(zip(s.ids, s.nll_R, strict=True))
                for s in (found[0].scores[reading], other.scores[reading])
            )
            assert one == pytest.approx(two, abs=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_an_attack_sees_some_records_and_others_are_scored(share):
    ids = tuple(f"r{i}" for i in range(10))
    seen = attacked_ids(ids, share, seed=3)
    assert seen == attacked_ids(ids, share, seed=3)
    assert len(seen) == min(max(round(10 * share), 1), 9)
    assert set(seen) < set(ids)
    assert list(seen) == [i for i in ids if i in seen]


def of_authors(*counts, column="author"):
    """A forget set with so many records of each author, not in order."""
    authors = [f"a{place}" for place, count in enumerate(counts) for _ in range(count)]
    order = np.random.default_rng(0).permutation(len(authors))
    ids = tuple(f"r{row}" for row in range(len(authors)))
    return Records(ids, {column: [authors[row] for row in order]})


@pytest.mark.parametrize("column", ["author", "country", "group"])
def test_an_attack_sees_authors_whole_or_not_at_all(column):
    records = of_authors(3, 1, 4, 2, 5, 6, column=column)
    groups_R = groups_of(records)
    seen = attacked_ids(records.ids, 0.5, 3, groups_R)
    by_author = {}
    for record_id, author in zip(records.ids, records[column], strict=True):
        by_author.setdefault(author, set()).add(record_id in seen)
    assert sorted(map(len, by_author.values())) == [1] * 6
    assert sum(whole == {True} for whole in by_author.values()) == 3
    assert "of 6 groups" in split_words(groups_R)


@pytest.mark.parametrize("records", [of_authors(9, 9, 9), of_authors(3, 3, 3, 3, column="city")])
def test_without_four_groups_records_are_divided(records):
    groups_R = groups_of(records)
    assert list(groups_R) == list(range(len(records)))
    assert attacked_ids(records.ids, 0.5, 3, groups_R) == attacked_ids(records.ids, 0.5, 3)
    assert "other records of the same subject" in split_words(groups_R)


def test_the_first_column_that_there_is_decides():
    records = of_authors(2, 2, 2, 2, 2)
    whole = records.replace(group=list(records.ids))
    assert np.array_equal(groups_of(whole), groups_of(records))


def test_records_of_equal_text_are_on_the_same_side_whatever_their_ids():
    """Up to case and white space; another answer to the same question is another record."""
    questions = ["Who?", "who? ", "Where?", "Who?", " WHO?", "When?", "Why?", "How?"]
    answers = ["Bo", "bo", "Rome", "Al", " bo", "Now", "So", "Well"]
    ids = tuple(f"r{row}" for row in range(8))
    records = Records(ids, {"question": questions, "answer": answers})
    groups_R = groups_of(records)
    assert list(groups_R) == [0, 0, 2, 3, 0, 5, 6, 7]
    for seed in range(20):
        seen = set(attacked_ids(ids, 0.5, seed, groups_R))
        assert len({i in seen for i in ("r0", "r1", "r4")}) == 1
        assert 0 < len(seen) < 8
    assert "of 6 groups of records" in split_words(groups_R)


def test_equal_documents_are_on_the_same_side():
    records = Records(("a", "b", "c"), {"text": ["Once upon", "a time", "once  upon\n"]})
    assert list(groups_of(records)) == [0, 1, 0]


def test_equal_arrays_are_on_the_same_side_and_unlike_ones_are_not():
    x = np.zeros((5, 2, 2), dtype=np.float32)
    x[1, 0, 0], x[2, 1, 1], x[4, 0, 0] = 1, 1, 1
    records = Records(tuple("abcde"), {"x": x, "y": [0, 1, 2, 3, 4]})
    assert list(groups_of(records)) == [0, 1, 2, 0, 1]
    assert list(groups_of(records.replace(x=list(x)))) == [0, 1, 2, 0, 1]


def test_subjects_that_share_a_record_are_one_group():
    columns = {
        "author": ["a", "a", "b", "b", "c", "d", "e"],
        "question": ["1", "2", "2", "3", "4", "5", "6"],
        "answer": ["x"] * 7,
    }
    groups_R = groups_of(Records(tuple("tuvwxyz"), columns))
    assert list(groups_R) == [0, 0, 0, 0, 2, 3, 4]
    chained = {**columns, "question": ["1", "2", "2", "3", "3", "4", "4"]}
    assert list(groups_of(Records(tuple("tuvwxyz"), chained))) == [0, 0, 0, 0, 0, 3, 3]


def test_one_group_leaves_nothing_to_see_and_to_score():
    records = Records(("a", "b"), {"question": ["Who?", "who?"], "answer": ["Bo", "Bo"]})
    assert attacked_ids(records.ids, 0.5, 0, groups_of(records)) == ()
    with pytest.raises(NotApplicable, match="all 2 forget records are one group"):
        require_two_groups(groups_of(records))
    require_two_groups(np.array([0, 3]))


def test_an_audit_learns_the_groups_from_the_scores_and_never_guesses(language_model, people):
    model, task = language_model
    sets = Sets(forget=people.ids)
    records = people.replace(author=["b", "a", "d", "c"])
    reading = Reading("forget", measures=(GROUP,))
    found = run_of(model, task, (Dataset("causal_lm", records), sets), (reading,))
    assert np.array_equal(groups_read(found.scores[reading]), groups_of(records))
    bare = run_of(model, task, (Dataset("causal_lm", records), sets), (Reading("forget"),))
    with pytest.raises(DataError, match="'group' was not taken"):
        groups_read(bare.scores[reading])
