"""Memorization on scores that can be counted by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.audit.audit import audits, plan_readings
from expunge.audit.evidence import Evidence, Subject
from expunge.audit.memorization import (
    MemorizationConfig,
    exact_memorization,
    extraction_strength,
    memorization,
)
from expunge.audit.readings import PARAPHRASE, PERTURBED, Reading
from expunge.audit.scores import Scores
from expunge.core.run import Run
from expunge.data.dataset import Dataset

FORGET = Reading("forget")


def found(subjects, **settings):
    evidence = Evidence(subjects[0], None, tuple(subjects[1:]), "sets")
    return memorization(evidence, MemorizationConfig(**settings), Run())


def subject(make_scores, truth, wrong, *, paraphrase=None, missed=(), role="after"):
    scores = {FORGET: make_scores(truth, wrong=missed)}
    if paraphrase is not None:
        scores[Reading("forget", view=PARAPHRASE)] = make_scores(paraphrase)
    for place, values in enumerate(wrong):
        scores[Reading("forget", view=f"{PERTURBED}{place}")] = make_scores(values)
    return Subject(role, role, scores, 1 if role == "reference" else None)


def test_both_shares_are_counted(make_scores):
    """Record 0 is known by heart, 1 by knowledge only, 2 and 3 not at all."""
    truth = [-0.1, -1.0, -2.0, -3.0]
    wrong = [[-2.0, -1.5, -1.0, -1.0], [-3.0, -4.0, -5.0, -2.0]]
    told = found([subject(make_scores, truth, wrong, missed=(1, 2, 3))])
    values = {f.metric: f for f in told}
    assert values["verbatim"].value == 0.25
    assert values["knowledge"].value == 0.5
    assert values["verbatim"].n == values["knowledge"].n == 4
    # Clopper and Pearson (1934) for 1 of 4.
    assert values["verbatim"].interval.low == pytest.approx(0.0063, abs=1e-4)
    assert values["verbatim"].interval.high == pytest.approx(0.8059, abs=1e-4)


def test_the_true_answer_in_other_words_counts_where_there_is_one(make_scores):
    truth, wrong = [-5.0, -5.0], [[-1.0, -1.0]]
    told = found([subject(make_scores, truth, wrong, paraphrase=[-0.5, -2.0])])
    assert {f.metric: f.value for f in told}["knowledge"] == 0.5


def test_without_wrong_answers_there_is_no_knowledge(make_scores):
    told = {f.metric: f for f in found([subject(make_scores, [-1.0], [])])}
    assert told["knowledge"].value is None
    assert "no record has wrong answers" in told["knowledge"].note
    assert told["verbatim"].value == 1.0


def test_forgotten_records_are_compared_with_retraining(make_scores):
    after = subject(make_scores, [-1.0] * 4, [[-2.0] * 4])
    retrained = subject(make_scores, [-1.0] * 4, [[-0.5] * 4], missed=(0, 1), role="reference")
    told = {(f.metric, f.subject): f for f in found([after, retrained])}
    assert told["knowledge", "after"].direction == "reference"
    assert told["knowledge", "after"].reference.gap == 1.0
    assert told["verbatim", "after"].reference.gap == 0.5


def test_a_word_of_several_tokens_must_match_in_all_of_them():
    """On a real model: each token of the answer, end of text included, must be the first choice."""
    rank_N = np.array([0, 0, 1, 0, 0], dtype=np.int32)
    logprob_N = np.full(5, -0.1, dtype=np.float32)
    scores = Scores(("a", "b"), np.array([0, 3, 5]), logprob_N, rank_N, logprob_N, logprob_N)
    told = found([Subject("after", "m", {FORGET: scores})])
    assert {f.metric: f.value for f in told}["verbatim"] == 0.5


def test_it_reads_every_answer_of_the_sets_that_exist(people):
    dataset = Dataset("causal_lm", people)
    info = audits.get("memorization")
    readings = plan_readings([(info, info.config(record_sets=("forget", "test")))], dataset)
    assert {reading.record_set for reading in readings} == {"forget"}
    views = {reading.view for reading in readings}
    assert views == {"answer", PARAPHRASE, f"{PERTURBED}0", f"{PERTURBED}1"}


def greedy_scores(records):
    """Scores of records whose targets are the first choice where a 1 stands."""
    n_R = [len(own) for own in records]
    rank_N = 1 - np.concatenate([np.asarray(own) for own in records]).astype(np.int32)
    zero_N = np.zeros(len(rank_N), dtype=np.float32)
    ids = tuple(f"r-{row}" for row in range(len(records)))
    offsets = np.concatenate([[0], np.cumsum(n_R)])
    return Scores(ids, offsets, zero_N, rank_N, zero_N, zero_N)


CARD = [[0, 1, 1, 1], [1, 1, 1, 1], [1, 0, 0, 1], [1, 1, 1, 0]]


def test_extraction_strength_of_the_card():
    """Open-problems card, section 11: last 3 of 4, all, only the last, none."""
    assert extraction_strength(greedy_scores(CARD)).tolist() == [0.75, 1.0, 0.25, 0.0]
    assert exact_memorization(greedy_scores(CARD)).tolist() == [0.75, 1.0, 0.5, 0.75]


def test_defect_1_an_answer_that_never_matches_has_no_extraction_strength():
    """Public code leaves its loop at k = n - 1 and counts 1 / n: 0.5 for two tokens."""
    assert extraction_strength(greedy_scores([[0, 0], [0], [0, 0, 0, 0]])).tolist() == [0, 0, 0]


def test_defect_5_the_last_token_counts():
    """Public code drops it from both numbers, and would find 1 for either record."""
    scores = greedy_scores([[1, 1, 0], [1, 1, 1]])
    assert exact_memorization(scores).tolist() == pytest.approx([2 / 3, 1])
    assert extraction_strength(scores).tolist() == [0, 1]


hits = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=12), min_size=1, max_size=8)


@given(hits)
def test_both_shares_are_those_of_a_loop(records):
    scores = greedy_scores(records)
    strength, exact = extraction_strength(scores), exact_memorization(scores)
    for row, own in enumerate(records):
        n = len(own)
        shortest = next(k for k in range(n + 1) if all(own[k:]))
        assert strength[row] == pytest.approx(1 - shortest / n)
        assert exact[row] == pytest.approx(sum(own) / n)
        assert 0 <= strength[row] <= exact[row] + 1e-12
        assert (strength[row] == 1) == (exact[row] == 1) == all(own)


@given(hits, hits)
def test_a_record_has_its_value_in_any_company(some, others):
    together = greedy_scores([*some, *others])
    for measure in (exact_memorization, extraction_strength):
        apart = [*measure(greedy_scores(some)), *measure(greedy_scores(others))]
        assert measure(together).tolist() == apart


def test_means_come_with_bounds_over_records():
    told = {f.metric: f for f in found([Subject("after", "m", {FORGET: greedy_scores(CARD * 5)})])}
    for metric, mean in (("exact", 0.75), ("extraction_strength", 0.5)):
        one = told[metric]
        assert one.value == mean
        assert one.n == 20
        assert one.interval.method == "gaffke"
        assert one.interval.low < mean < one.interval.high
    # Gaffke's bounds: one record at either end is added, and all are weighted at random.
    weights = np.random.default_rng(0).dirichlet(np.ones(21), 200_000)
    values = [0.75, 1, 0.25, 0] * 5
    ends = (
        np.quantile(weights @ np.array([*values, 0]), 0.025),
        np.quantile(weights @ np.array([*values, 1]), 0.975),
    )
    strength = told["extraction_strength"].interval
    assert (strength.low, strength.high) == pytest.approx(ends, abs=0.02)


def test_equal_shares_are_no_certainty():
    """Resamples of equal values never vary; 0 of 4 is at most 0.6024 (Clopper and Pearson)."""
    told = {f.metric: f for f in found([Subject("after", "m", {FORGET: greedy_scores([[0]] * 4)})])}
    for metric in ("exact", "extraction_strength"):
        assert told[metric].value == 0
        assert told[metric].interval.high == pytest.approx(0.6024, abs=1e-4)


def test_the_same_seed_gives_the_same_interval():
    subjects = [Subject("after", "m", {FORGET: greedy_scores(CARD)})]
    evidence = Evidence(subjects[0], None, (), "sets")
    once, again, other = (
        memorization(evidence, MemorizationConfig(), Run(seed=seed)) for seed in (1, 1, 2)
    )
    assert once == again
    assert once != other


def test_a_model_that_learned_by_heart_can_be_extracted(questions_world):
    from expunge.audit.scores import score

    world = questions_world
    learned = score(world.model, world.task, world.forget, Run())
    assert extraction_strength(learned).tolist() == [1.0] * 6
    fresh = score(world.fresh(), world.task, world.forget, Run())
    assert extraction_strength(fresh).mean() < 0.5
