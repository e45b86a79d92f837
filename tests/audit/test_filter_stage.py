"""The filter stage: the card's values, planted models, and a small Llama from end to end."""

import dataclasses

import numpy as np
import pytest

from expunge.audit.audit import audits, plan_readings, run_audit
from expunge.audit.collecting import collect
from expunge.audit.context_filter import ALONE, STOPS
from expunge.audit.evidence import Evidence, Subject
from expunge.audit.filter_stage import leak
from expunge.audit.in_context_readings import InContextConfig, forget_told, retained, retained_told
from expunge.audit.readings import Reading
from expunge.core.records import concatenate
from expunge.core.run import Run
from expunge.core.sets import Sets
from expunge.data.dataset import Dataset

FORGET = Reading("forget")
N = 100
KINDS = ("statement", "demo", "disguised")
CONFIG = InContextConfig(by="exact", budgets=(1,), kinds=KINDS, two_hops=False)


@pytest.fixture
def model(make_scores):
    """A model that answers so many of 100 questions: plain, and under contexts of each kind."""

    def hits(count, stopped=0, alone=0, unset=0):
        made = make_scores([-0.1] * N, wrong=range(count, N))
        marks = np.where(np.arange(N) < stopped, 1.0, 0.0)
        marks[N - unset :] = np.nan
        own = np.where(np.arange(N) < alone, 1.0, 0.0)
        own[N - unset :] = np.nan
        return dataclasses.replace(made, measured={STOPS: marks, ALONE: own})

    def make(role, plain, contexts, alarms=(0, 0), unset=50, seed=None):
        scores = {FORGET: hits(plain), retained(CONFIG): hits(N, alarms[0], unset=unset)}
        for kind, (count, stopped, alone) in contexts.items():
            scores[forget_told(CONFIG, kind, 1)] = hits(count, stopped, alone)
            scores[retained_told(CONFIG, kind, 1)] = hits(N, alarms[1], unset=unset)
        return Subject(role, f"{role}{seed}", scores, seed)

    return make


def found(after):
    info = audits.get("in_context")
    told = run_audit(info, CONFIG, Evidence(after, None, (), "sets"), Run())
    return {f.metric: f for f in told if f.subject == "after"}


CAUGHT = {"statement": (90, 100, 100), "demo": (10, 80, 80), "disguised": (60, 20, 0)}


def test_the_leak_of_the_card():
    """Section 11: scores [1,1,0,1], filter [.9,.2,.1,.6], tau .5: a leak of .25 and TPR of .5."""
    stopped = (np.array([0.9, 0.2, 0.1, 0.6]) >= 0.5).astype(float)
    passing = leak(np.array([1.0, 1.0, 0.0, 1.0]), stopped)
    assert passing.tolist() == [0, 1, 0, 0]
    assert passing.mean() == 0.25
    assert stopped.mean() == 0.5


def test_what_the_filter_stops_and_what_passes_it(model):
    told = found(model("after", 2, CAUGHT))
    assert told["filter_caught_statement_1"].value == 1
    assert told["filter_caught_disguised_1"].value == 0.2
    assert told["filter_caught_disguised_1"].note == "0 of 100 for the question alone"
    # Clopper and Pearson (1934) for 20 of 100.
    assert told["filter_caught_disguised_1"].interval.low == pytest.approx(0.1267, abs=1e-4)
    assert told["filter_leak_statement_1"].value == 0
    assert told["filter_leak_statement_1"].interval.low == 0
    assert 0 < told["filter_leak_statement_1"].interval.high < 0.06
    assert told["filter_leak_disguised_1"].value == pytest.approx(0.4)
    expected = "80 of 100 prompts pass, and 40 of 60 with a score of at least 0.5"
    assert told["filter_leak_disguised_1"].note == expected
    interval = told["filter_leak_disguised_1"].interval
    assert interval.low < 0.4 < interval.high


def test_the_capability_is_blocked_only_where_no_context_passes(model):
    told = found(model("after", 2, CAUGHT))["capability_blocked"]
    assert told.value == 0
    assert "by disguised 1: a score of 0.400, where it is 0.020 without" in told.note
    held = {**CAUGHT, "disguised": (60, 55, 0)}
    for plain, blocked in ((0, 1.0), (2, 1.0)):
        assert found(model("after", plain, held))["capability_blocked"].value == blocked
    spared = {**CAUGHT, "disguised": (60, 53, 0)}
    assert found(model("after", 1, spared))["capability_blocked"].value == 0


def test_innocent_prompts_are_counted_where_the_threshold_was_not_set(model):
    told = found(model("after", 2, CAUGHT, alarms=(5, 10)))
    assert (told["filter_false_alarms"].value, told["filter_false_alarms"].n) == (0.1, 50)
    assert told["filter_false_alarms"].record_set == "retain"
    assert told["filter_false_alarms_demo_1"].value == 0.2
    assert "may be ones that the threshold was set on" in told["filter_false_alarms_demo_1"].note
    assert "filter_false_alarms_statement_1" not in told
    few = found(model("after", 2, CAUGHT, unset=81))["filter_false_alarms"]
    assert few.value is None
    assert "19 records" in few.note


def test_without_a_threshold_nothing_is_said(model):
    after = model("after", 2, CAUGHT, unset=100)
    scores = {
        r: dataclasses.replace(s, measured={n: np.full(N, np.nan) for n in (STOPS, ALONE)})
        for r, s in after.scores.items()
    }
    told = found(dataclasses.replace(after, scores=scores))
    for metric in ("filter_caught_demo_1", "filter_leak_demo_1", "filter_false_alarms"):
        assert told[metric].value is None
        assert "too few retained records" in told[metric].note
    assert told["capability_blocked"].value is None


def test_a_stage_without_filter_is_left_out():
    assert retained(InContextConfig(filter="")).view == "answer"
    told = forget_told(InContextConfig(filter=""), "demo", 1)
    assert (told.view, told.measures) == ("context:demo:1", ())
    guarded = forget_told(InContextConfig(false_alarms=0.05), "demo", 1)
    assert (guarded.view, guarded.measures) == (
        "filtered:words:0.05:context:demo:1",
        (STOPS, ALONE),
    )


@pytest.mark.parametrize("wrong", [{"false_alarms": 1.0}, {"false_alarms": -0.1}])
def test_shares_of_false_alarms_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match="false_alarms"):
        InContextConfig(**wrong)


def test_on_a_small_model_the_filter_knows_every_question_and_no_disguise(questions_world):
    world = questions_world
    records = concatenate([world.retain, world.forget])
    dataset = Dataset("causal_lm", records)
    sets = Sets.partition(records.ids, records.ids[:20])
    info = audits.get("in_context")
    config = info.config(budgets=(1,), kinds=("statement", "irrelevant", "disguised"))
    readings = plan_readings([(info, config)], dataset)
    subjects = [
        collect(m, world.task, dataset, sets, readings, Run(), role=role, batch_size=size)
        for m, role, size in ((world.fresh(), "after", 32), (world.model, "before", 3))
    ]
    told = run_audit(info, config, Evidence(*subjects, (), "sets"), Run())
    after = {f.metric: f for f in told if f.subject == "after"}
    before = {f.metric: f for f in told if f.subject == "before"}
    assert after["filter_caught_statement_1"].value == 1
    assert after["filter_leak_irrelevant_1"].value == 0
    assert after["filter_caught_disguised_1"].value == before["filter_caught_disguised_1"].value
    passing = 1 - before["filter_caught_disguised_1"].value
    assert passing > 0
    assert 0 < before["filter_leak_disguised_1"].value <= passing
    assert after["rho_two_hop"].verdict == "not_applicable"
    assert after["rho_two_hop"].note == "the data have no columns two_hop_question and hops"
