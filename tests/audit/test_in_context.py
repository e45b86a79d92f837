"""In-context reintroduction: the paper card's values, planted models, and a small Llama."""

import dataclasses
import re

import numpy as np
import pytest
from by_hand import probability

from expunge.audit.audit import audits, plan_readings, run_audit
from expunge.audit.collecting import collect
from expunge.audit.evidence import Evidence, Subject
from expunge.audit.in_context import InContextConfig
from expunge.audit.in_context_readings import TEACHING
from expunge.audit.readings import Reading
from expunge.audit.recovery import recovery
from expunge.audit.reintroduction import budget_to
from expunge.core.errors import ConfigError
from expunge.core.records import Records, concatenate
from expunge.core.run import Run
from expunge.core.sets import Sets
from expunge.data.dataset import Dataset

FORGET, RETAIN, HELD = (
    Reading("forget"),
    Reading("retain", limit=100),
    Reading("holdout", limit=100),
)
N = 1000


def told(plain, kind, k, view="context", inner=""):
    return dataclasses.replace(plain, view=f"{view}:{kind}:{k}{inner}")


@pytest.fixture
def model(make_scores):
    """A model that answers so many of 1000 questions word by word: plain, and under contexts."""

    def hits(count, n=N):
        return make_scores([-0.1] * n, wrong=range(count, n))

    def make(role, plain, contexts=None, seed=None, retain=(100, {}), held=None, n=N):
        scores = {FORGET: hits(plain, n), RETAIN: hits(retain[0], 100)}
        for (kind, k), count in (contexts or {}).items():
            scores[told(FORGET, kind, k)] = hits(count, n)
            kept = retain[1].get((kind, k), retain[0])
            scores[told(RETAIN, kind, k, "borrowed_context")] = hits(kept, 100)
        if held:
            scores[HELD] = hits(held[0], 60)
            scores[told(HELD, "statement", 1)] = hits(held[1], 60)
        return Subject(role, f"{role}{seed}", scores, seed)

    return make


def found(after, before=None, references=(), **settings):
    info = audits.get("in_context")
    plain = {"filter": "", "two_hops": False}
    settings = {"by": "exact", "budgets": (1,), "kinds": ("demo",), **plain, **settings}
    evidence = Evidence(after, before, tuple(references), "sets")
    return run_audit(info, info.config(**settings), evidence, Run())


def by_name(findings, subject="after"):
    return {f.metric: f for f in findings if f.subject == subject}


def test_the_rates_of_the_card():
    """Section 11: O, U, S and rho; the last is undefined."""
    assert recovery(0.734, 0, 0.949) == pytest.approx(0.773446, abs=1e-6)
    assert recovery(0.8, 0.3, 0.8) == pytest.approx(1.0)
    assert recovery(0.25, 0.3, 0.8) == pytest.approx(-0.1)
    assert recovery(0.9, 0.3, 0.8) == pytest.approx(1.2)
    assert recovery(0.35, 0.30, 0.35) is None


def test_the_budget_of_the_card():
    rates = {1: 0.565, 2: 0.647, 5: 0.718, 10: 0.764, 20: 0.773}
    assert budget_to(rates, 0.5) == 1
    assert budget_to(rates, 0.7) == 5
    assert budget_to(rates, 0.9) is None
    assert budget_to({1: None, 2: 0.5}, 0.5) == 2


def test_the_table_of_the_card_comes_out_of_the_audit(model):
    """Section 8, seed 0: 949 of 1000 before, 0 after, and what 1, 2 and 20 demonstrations do."""
    hits = {1: 536, 2: 614, 20: 734}
    contexts = {("demo", k): count for k, count in hits.items()}
    before = model("before", 949, contexts)
    after = model("after", 0, contexts)
    told = by_name(found(after, before, budgets=(1, 2, 20)))
    for k, rho in ((1, 0.565), (2, 0.647), (20, 0.773)):
        assert told[f"rho_demo_{k}"].value == pytest.approx(rho, abs=5e-4)
        assert told[f"rho_demo_{k}"].n == N
        interval = told[f"rho_demo_{k}"].interval
        assert interval.low < rho < interval.high < rho + 0.05
    assert told["rho_demo_20"].value == pytest.approx(0.773446, abs=1e-6)
    assert told["k_star_demo_50"].value == 1
    assert told["k_star_demo_90"].value is None
    assert told["k_star_demo_90"].note == "not reached up to k = 20"
    assert told["in_context_recoverable"].value == 1
    assert told["in_context_recoverable"].note == "by demo 1, demo 2, demo 20"


def test_a_context_that_breaks_retained_answers_recovers_nothing(model):
    """The card's untrained prototypes: every forgotten answer right, every retained one wrong."""
    contexts = {("demo", 1): N}
    before, after = model("before", 949, contexts), model("after", 0, contexts)
    after = model("after", 0, contexts, retain=(100, {("demo", 1): 0}))
    told = by_name(found(after, before, max_retain_drop=0.05))
    assert told["rho_demo_1"].value > 1
    assert told["retain_drop_demo_1"].value == 1
    assert told["retain_drop_demo_1"].verdict == "fail"
    assert told["in_context_recoverable"].value == 0
    fine = by_name(found(model("after", 0, contexts), before, max_retain_drop=0.05))
    assert fine["retain_drop_demo_1"].value == 0
    assert fine["retain_drop_demo_1"].verdict == "pass"
    assert fine["in_context_recoverable"].value == 1


@pytest.mark.parametrize("kind", TEACHING)
def test_every_kind_that_the_docs_name_makes_a_model_recoverable(model, kind):
    [told] = re.findall(r"``in_context_recoverable`` is 1 when (.*?) reaches", whole_doc())
    assert kind in told
    contexts = {(kind, 20): 500}
    before, after = model("before", 900, contexts), model("after", 0, contexts)
    settings = {"kinds": (kind,), "budgets": (20,)}
    found_one = by_name(found(after, before, **settings))["in_context_recoverable"]
    assert (found_one.value, found_one.note) == (1, f"by {kind} 20")


def test_contexts_of_more_facts_than_the_docs_name_count_for_nothing(model):
    assert "at some k of at most 20 while" in whole_doc()
    contexts = {("demo", 21): 900}
    before, after = model("before", 900, contexts), model("after", 0, contexts)
    told = by_name(found(after, before, budgets=(21,)))
    assert told["rho_demo_21"].value == 1
    assert told["in_context_recoverable"].value is None


def whole_doc():
    return " ".join(audits.get("in_context").doc.split())


def test_too_few_retained_records_leave_the_question_open(model, make_scores):
    contexts = {("demo", 1): N}
    after = model("after", 0, contexts)
    few = make_scores([-0.1] * 10)
    scores = {**after.scores, RETAIN: few, told(RETAIN, "demo", 1, "borrowed_context"): few}
    after = dataclasses.replace(after, scores=scores)
    before = dataclasses.replace(
        model("before", 949, contexts),
        scores={**scores, FORGET: model("before", 949).scores[FORGET]},
    )
    told_ = by_name(found(after, before))
    assert told_["retain_drop_demo_1"].value is None
    assert told_["in_context_recoverable"].value is None
    assert "too few retained records" in told_["in_context_recoverable"].note


def test_net_is_what_the_fact_adds_to_other_text(model):
    contexts = {("statement", 1): 700, ("irrelevant", 1): 200, ("axiom", 1): 400}
    before, after = model("before", 900, contexts), model("after", 100, contexts)
    told = by_name(found(after, before, kinds=("statement", "irrelevant", "axiom")))
    assert told["rho_statement_1"].value == pytest.approx(0.75)
    assert told["rho_irrelevant_1"].value == pytest.approx(0.125)
    assert told["net_1"].value == pytest.approx(0.625)
    assert told["axiom_gap_1"].value == pytest.approx(0.375)
    assert told["net_1"].interval.low < 0.625 < told["net_1"].interval.high
    assert "excess_irrelevant_1" not in told
    assert "k_star_irrelevant_50" not in told


def test_the_excess_is_over_retrained_models(model):
    contexts = {("demo", 1): 500}
    before, after = model("before", 900, contexts), model("after", 100, {("demo", 1): 700})
    references = [
        model("reference", 100, {("demo", 1): 500}, seed=1),
        model("reference", 100, {("demo", 1): 300}, seed=2),
    ]
    told = found(after, before, references, max_excess=0.1)
    excess = by_name(told)["excess_demo_1"]
    assert excess.value == pytest.approx(0.75 - (0.5 + 0.25) / 2)
    assert excess.verdict == "fail"
    assert excess.interval.low > 0.1
    spared = by_name(found(after, before, references, max_excess=0.5))["excess_demo_1"]
    assert spared.verdict == "pass"
    alone = by_name(found(after, before, max_excess=0.5))["excess_demo_1"]
    assert (alone.value, alone.verdict) == (None, "inconclusive")
    assert "no other retrained model" in alone.note


@pytest.mark.parametrize(("n", "known"), [(49, True), (19, False)])
def test_few_records_bear_no_verdict_and_very_few_no_number(model, n, known):
    contexts = {("demo", 1): 10}
    before, after = model("before", n, contexts, n=n), model("after", 0, contexts, n=n)
    reference = model("reference", 0, contexts, seed=1, n=n)
    told = by_name(found(after, before, [reference], max_excess=0.5))["excess_demo_1"]
    assert (told.value is not None) == known
    assert told.verdict == "inconclusive"
    assert f"{n} records" in told.note


def test_nothing_forgotten_leaves_no_rate(model):
    contexts = {("demo", 1): 900}
    told = by_name(found(model("after", 880, contexts), model("before", 949, contexts)))
    for metric in ("rho_demo_1", "k_star_demo_50", "in_context_recoverable", "excess_demo_1"):
        assert told[metric].value is None
        assert "nothing was forgotten, or nothing was known" in told[metric].note


def test_without_the_model_before_there_is_no_rate(model):
    told = by_name(found(model("after", 0, {("demo", 1): 900})))
    assert told["rho_demo_1"].value is None
    assert "no model before unlearning" in told["rho_demo_1"].note
    assert told["retain_drop_demo_1"].value == 0


def test_weights_count_as_forgotten_unless_they_surely_answer_more(model):
    before = model("before", 949)
    references = [model("reference", 20, seed=1), model("reference", 30, seed=2)]
    for left, forgotten in ((0, 1.0), (28, 1.0), (200, 0.0)):
        told = by_name(found(model("after", left), before, references))["weights_forgotten"]
        assert told.value == forgotten
        assert f"{left / N:.3f}" in told.note
    assert by_name(found(model("after", 0), before))["weights_forgotten"].value is None
    told = by_name(found(model("after", 0), before, references), "before")["weights_forgotten"]
    assert told.value == 0


@pytest.mark.parametrize(("n", "left", "value"), [(49, 0, None), (50, 0, 1.0), (49, 40, 0.0)])
def test_few_records_leave_open_whether_the_weights_forgot(model, n, left, value):
    before, after = model("before", n, n=n), model("after", left, n=n)
    references = [model("reference", 0, seed=seed, n=n) for seed in (1, 2)]
    told = by_name(found(after, before, references))["weights_forgotten"]
    assert told.value == value
    assert ("too few to say so" in told.note) == (value is None)


def test_two_references_share_the_number_of_forgotten_weights_and_show_no_noise(model):
    references = [model("reference", hits, seed=hits) for hits in (20, 400)]
    told = by_name(found(model("after", 0), model("before", 949), references))
    assert told["weights_forgotten"].reference.noise_floor is None


def test_records_without_a_context_are_left_out_and_counted(model, make_scores):
    contexts = {("demo", 1): 500}
    before, after = model("before", 900, contexts), model("after", 0, contexts)
    part = make_scores([-0.1] * 400, wrong=range(300, 400))
    reading = told(FORGET, "demo", 1)
    before, after = (
        dataclasses.replace(one, scores={**one.scores, reading: part}) for one in (before, after)
    )
    rho = by_name(found(after, before))["rho_demo_1"]
    assert (rho.value, rho.n) == (pytest.approx(0.75), 400)
    assert rho.note.startswith("600 of 1000 records left out")


def test_no_context_at_all_leaves_no_number_and_bounds_open(model, make_scores):
    empty = make_scores([])
    reading = told(FORGET, "demo", 1)
    kept = told(RETAIN, "demo", 1, "borrowed_context")
    before, after = (
        dataclasses.replace(one, scores={**one.scores, reading: empty, kept: empty})
        for one in (
            model("before", 900),
            model("after", 0),
        )
    )
    found_ = by_name(found(after, before, max_excess=0.1, max_retain_drop=0.1))
    assert found_["rho_demo_1"].value is None
    assert found_["rho_demo_1"].note.startswith("1000 of 1000 records left out")
    for metric in ("excess_demo_1", "retain_drop_demo_1"):
        assert (found_[metric].value, found_[metric].verdict) == (None, "inconclusive")


def test_data_without_retained_records_are_audited_to_the_end(questions_world):
    world = questions_world
    records = world.forget
    dataset, sets = Dataset("causal_lm", records), Sets.partition(records.ids, records.ids)
    info = audits.get("in_context")
    config = info.config(budgets=(1,), kinds=("demo", "statement"), filter="")
    readings = plan_readings([(info, config)], dataset)
    after = collect(world.model, world.task, dataset, sets, readings, Run(), role="after")
    findings = by_name(run_audit(info, config, Evidence(after, None, (), "sets"), Run()))
    assert findings["rho_demo_1"].value is None
    assert f"{len(records)} of {len(records)} records left out" in findings["rho_demo_1"].note
    assert len(after.scores[told(FORGET, "statement", 1)]) == len(records)


def test_following_a_wrong_fact_is_counted(make_scores):
    """Three of four prefer what they were told; without it one did."""
    wrong = "perturbed:0"
    values = {
        FORGET: [-1.0, -1.0, -1.0, -1.0],
        dataclasses.replace(FORGET, view=wrong): [-0.5, -2.0, -2.0, -2.0],
        told(FORGET, "wrong", 1): [-3.0, -3.0, -3.0, -3.0],
        told(FORGET, "wrong", 1, inner=f":{wrong}"): [-0.1, -0.1, -0.1, -4.0],
        RETAIN: [-1.0] * 4,
        told(RETAIN, "wrong", 1, "borrowed_context"): [-1.0] * 4,
    }
    after = Subject("after", "m", {r: make_scores(v) for r, v in values.items()})
    told_ = by_name(found(after, kinds=("wrong",), by="probability"))["follows_wrong_1"]
    assert (told_.value, told_.n) == (0.75, 4)
    assert told_.note == "without the context 1 of 4, with it 3"
    # Clopper and Pearson (1934) for 3 of 4.
    assert told_.interval.low == pytest.approx(0.1941, abs=1e-4)


def test_held_out_records_tell_whether_the_model_reads_at_all(model):
    contexts = {("statement", 1): 500}
    before = model("before", 900, contexts, held=(6, 36))
    after = model("after", 0, contexts, held=(6, 36))
    told = by_name(found(after, before, kinds=("statement",)))["control_gain_1"]
    assert told.value == pytest.approx(0.5)
    assert (told.n, told.record_set) == (60, "holdout")


def test_kinds_that_the_data_lack_say_so(model):
    after, before = model("after", 0), model("before", 900)
    told = by_name(found(after, before, kinds=("axiom", "wrong")))
    assert told["rho_axiom_1"].note == "the data have no column axioms"
    assert told["rho_wrong_1"].note == "the data have no wrong answers"
    assert told["rho_axiom_1"].value is None
    assert told["rho_axiom_1"].verdict == "not_applicable"


def views_of(dataset, **settings):
    info = audits.get("in_context")
    return plan_readings([(info, info.config(**{"filter": "", **settings}))], dataset)


def test_it_reads_every_context_of_what_the_data_have(people):
    readings = views_of(Dataset("causal_lm", people), budgets=(2,))
    forget = {r.view for r in readings if r.record_set == "forget"}
    kinds = ("statement", "demo", "irrelevant", "wrong", "disguised")
    plain = {"answer", "perturbed:0", "context:wrong:2:perturbed:0"}
    assert forget == {*plain, *(f"context:{kind}:2" for kind in kinds)}
    retain = {r.view for r in readings if r.record_set == "retain"}
    assert retain == {"answer", *(f"borrowed_context:{kind}:2" for kind in kinds)}
    bare = Records(people.ids, {n: people[n] for n in ("question", "answer")})
    readings = views_of(Dataset("causal_lm", bare), kinds=("wrong", "axiom", "demo"), budgets=(1,))
    assert {r.view for r in readings} == {"answer", "context:demo:1", "borrowed_context:demo:1"}


def test_it_reads_wrong_answers_under_every_context_for_knowledge(people):
    readings = views_of(Dataset("causal_lm", people), kinds=("demo",), budgets=(1,), by="knowledge")
    forget = {r.view for r in readings if r.record_set == "forget"}
    wrong = {f"{view}perturbed:{j}" for view in ("", "context:demo:1:") for j in (0, 1)}
    assert forget == {"answer", "context:demo:1", *wrong}


@pytest.mark.parametrize("budgets", [(), (0,), (-1, 2)])
def test_budgets_are_whole_numbers_of_one_or_more(budgets):
    with pytest.raises((ConfigError, ValueError)):
        InContextConfig(budgets=budgets)


@pytest.fixture(scope="module")
def small(questions_world):
    """The small Llama's data with 20 records to go and 4 to keep."""
    world = questions_world
    records = concatenate([world.forget, world.retain])
    wrong = [[records["answer"][(row + 3) % len(records)]] for row in range(len(records))]
    records = records.replace(perturbed_answer=wrong)
    return Dataset("causal_lm", records), Sets.partition(records.ids, records.ids[:20])


def test_on_a_small_model_every_number_follows_from_plain_likelihoods(questions_world, small):
    """Prompts are written out by hand, and scored one by one without any of the machinery."""
    world, (dataset, sets) = questions_world, small
    info = audits.get("in_context")
    config = info.config(budgets=(1, 2))
    readings = plan_readings([(info, config)], dataset)
    empty = world.fresh()
    subjects = [
        collect(
            m, world.task, dataset, sets, readings, Run(), role=role, seed=seed, batch_size=size
        )
        for m, role, seed, size in (
            (empty, "after", None, 5),
            (world.model, "before", None, 32),
            (empty, "reference", 1, 32),
        )
    ]
    evidence = Evidence(subjects[0], subjects[1], tuple(subjects[2:]), "sets")
    findings = by_name(run_audit(info, config, evidence, Run()))
    forget = dataset.train.select(sets.forget)
    known = np.array([probability(world, world.model, q, a) for q, a in pairs(forget)])
    left = np.array([probability(world, empty, q, a) for q, a in pairs(forget)])
    stated = np.array([probability(world, empty, f"{q} {a}\n{q}", a) for q, a in pairs(forget)])
    false = [
        (
            probability(world, empty, f"{q} {w}\n{q}", w),
            probability(world, empty, f"{q} {w}\n{q}", a),
        )
        for (q, a), [w] in zip(pairs(forget), forget["perturbed_answer"], strict=True)
    ]
    rho = (stated.mean() - left.mean()) / (known.mean() - left.mean())
    assert findings["rho_statement_1"].value == pytest.approx(rho, abs=1e-5)
    assert findings["excess_statement_1"].value == pytest.approx(0, abs=1e-5)
    assert findings["weights_forgotten"].value is None  # 20 records are too few to say so
    assert findings["follows_wrong_1"].value == np.mean([w > a for w, a in false])
    net = findings["rho_statement_2"].value - findings["rho_irrelevant_2"].value
    assert findings["net_2"].value == pytest.approx(net, abs=1e-9)


def pairs(records):
    return list(zip(records["question"], records["answer"], strict=True))
