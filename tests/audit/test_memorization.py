"""Verbatim and knowledge memorization on scores that can be counted by hand."""

import pytest

from expunge.audit.audit import audits, plan_readings
from expunge.audit.evidence import Evidence, Subject
from expunge.audit.memorization import MemorizationConfig, memorization
from expunge.audit.readings import PARAPHRASE, PERTURBED, Reading
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
    import numpy as np

    from expunge.audit.scores import Scores

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
