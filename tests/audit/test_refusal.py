"""Refusal rates and their change, on planted answers and on a tiny model."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from expunge.audit.audit import audits, plan_readings, run_audit
from expunge.audit.collecting import collect
from expunge.audit.evidence import Evidence, Subject
from expunge.audit.readings import Reading
from expunge.audit.refusal import RefusalConfig, refusal
from expunge.audit.views import Scene, see
from expunge.core.errors import ConfigError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.core.sets import Sets
from expunge.data.dataset import Dataset

HARMFUL, BENIGN = Reading("retain", "harmful"), Reading("retain", "benign")
RETAIN, NEAR = Reading("retain", "asked", 100), Reading("retain", "near:1:100")
FORGET = Reading("forget", "asked", 100)


@pytest.fixture
def make_subject(make_scores):
    """A model that refuses the first so many harmful, and the first so many other prompts."""

    def make(role, harmful, others, *, n=200, seed=None, gibberish=0, shift=0):
        scores = {}
        for reading in (HARMFUL, BENIGN, RETAIN, NEAR, FORGET):
            refused = np.zeros(n)
            refused[: harmful if reading == HARMFUL else others] = 1
            fluent = np.ones(n)
            fluent[n - gibberish :] = 0
            measured = {"refused": np.roll(refused, shift), "fluent": fluent}
            scores[reading] = dataclasses.replace(make_scores(np.full(n, -1.0)), measured=measured)
        return Subject(role, f"{role}-{harmful}-{others}", scores, seed)

    return make


def audited(after, before, *references, **settings):
    evidence = Evidence(after, before, references, sets="sets", audit="refusal")
    findings = refusal(evidence, RefusalConfig(**settings), Run())
    return {finding.metric: finding for finding in findings if finding.subject == "after"}


def test_rates_carry_exact_intervals(make_subject):
    found = audited(make_subject("after", 180, 20, gibberish=10), make_subject("before", 180, 10))
    assert found["refused_harmful"].value == 0.9
    # scipy.stats.binomtest(180, 200).proportion_ci(method="exact")
    interval = found["refused_harmful"].interval
    assert (interval.low, interval.high) == pytest.approx((0.849787, 0.937841), abs=1e-5)
    assert found["refused_benign"].value == found["refused_forget"].value == 0.1
    assert found["fluent_near"].value == 0.95
    assert found["refused_harmful"].record_set == "harmful"
    assert found["refused_near"].record_set == "retain"
    assert "change_forget" not in found
    assert {one.verdict for one in found.values()} == {"not_applicable"}


@pytest.mark.parametrize(("after", "words"), [(20, "20 of 200 more"), (0, "")])
def test_a_change_counts_up_or_down(make_subject, after, words):
    found = audited(make_subject("after", 0, after), make_subject("before", 0, 0))
    change = found["change_benign"]
    assert change.value == after / 200
    assert change.note == words
    assert 0 <= change.interval.low <= change.value < change.interval.high
    back = audited(make_subject("after", 0, 0), make_subject("before", 0, after))["change_benign"]
    assert back.value == change.value
    assert back.interval.low == pytest.approx(change.interval.low, abs=1e-12)
    assert back.interval.high == pytest.approx(change.interval.high, abs=1e-12)
    assert back.note == words.replace("more", "fewer")


@pytest.mark.parametrize(
    ("after", "n", "verdict"),
    [(0, 400, "pass"), (0, 60, "inconclusive"), (60, 400, "fail"), (24, 400, "inconclusive")],
)
def test_the_bound_is_judged_with_the_interval(make_subject, after, n, verdict):
    found = audited(
        make_subject("after", 0, after, n=n), make_subject("before", 0, 0, n=n), max_change=0.05
    )
    assert found["change_benign"].verdict == verdict
    assert found["change_harmful"].value == 0
    assert found["change_retain"].verdict == "not_applicable"


def test_an_equal_rate_of_other_prompts_is_less_sure_than_the_same_prompts(make_subject):
    before = make_subject("before", 0, 40)
    same = audited(make_subject("after", 0, 40), before)["change_benign"]
    moved = audited(make_subject("after", 0, 40, shift=100), before)["change_benign"]
    assert same.value == moved.value == 0
    assert moved.interval.high > 1.5 * same.interval.high


def test_few_prompts_give_no_change_and_some_more_no_verdict(make_subject):
    few = audited(
        make_subject("after", 0, 5, n=19), make_subject("before", 0, 0, n=19), max_change=0.05
    )
    assert few["change_benign"].value is None
    assert few["change_benign"].verdict == "inconclusive"
    assert few["refused_benign"].value == pytest.approx(5 / 19)
    some = audited(
        make_subject("after", 0, 40, n=40), make_subject("before", 0, 0, n=40), max_change=0.05
    )
    assert some["change_benign"].value == 1
    assert some["change_benign"].verdict == "inconclusive"
    assert "50" in some["change_benign"].note


def test_without_a_model_before_there_is_no_change(make_subject):
    found = audited(make_subject("after", 9, 9), None, max_change=0.05)
    assert found["change_harmful"].value is None
    assert "before" in found["change_harmful"].note
    assert found["change_harmful"].verdict == "inconclusive"


# --- on a model ---


@pytest.fixture
def world(make_llama):
    """A task, a random model, and data of a few records."""
    task, fresh = make_llama
    answers = ("oslo on the fjord", "paris", "tokyo by the bay", "lima", "santiago", "madrid")
    records = Records(
        tuple(f"capital-{row}" for row in range(len(answers))),
        {"question": ["what is the capital of peru"] * len(answers), "answer": answers},
    )
    own = Records(("own-0", "own-1"), {"question": ["paris", "lima"], "answer": ["lima", "paris"]})
    dataset = Dataset("causal_lm", records, probes={"mine": own})
    return task, fresh, dataset, Sets.partition(records.ids, records.ids[:2])


def whole(world, config, model, role="after"):
    task, _, dataset, sets = world
    planned = plan_readings([(audits.get("refusal"), config)], dataset)
    return collect(model, task, dataset, sets, planned, Run(), role=role), sets


def test_the_whole_audit_on_a_small_model(world):
    config = RefusalConfig(max_new_tokens=4)
    model = world[1]()
    after, sets = whole(world, config, model)
    before, _ = whole(world, config, world[1](), "before")
    evidence = Evidence(after, before, (), sets.digest())
    found = run_audit(audits.get("refusal"), config, evidence, Run())
    values = {one.metric: one for one in found if one.subject == "after"}
    assert [values[f"refused_{name}"].n for name in ("harmful", "benign", "forget")] == [
        100,
        100,
        2,
    ]
    assert values["refused_harmful"].value == 0  # the words of a refusal are not in its vocabulary
    assert values["change_harmful"].value == 0
    # Of 100 none differs: Wilson's upper end of 0 in 100 is z^2 / (100 + z^2), enough for 0.05.
    assert values["change_harmful"].interval.high == pytest.approx(0.036995, abs=1e-5)
    assert values["change_near"].value is None
    again, _ = whole(world, config, model)
    for reading in (HARMFUL, BENIGN):
        for name in ("refused", "fluent"):
            first, second = (one.scores[reading].measured[name] for one in (after, again))
            assert np.array_equal(first, second)


def test_the_length_of_its_answers_is_its_own(world):
    """TOFU asks for 200 tokens of the same records."""
    info = audits.get("tofu")
    chosen = [(audits.get("refusal"), RefusalConfig(max_new_tokens=4, max_records=300))]
    planned = plan_readings([*chosen, (info, info.config())], world[2])
    lengths = {one.max_new_tokens for one in planned if "refused" in one.measures}
    assert lengths == {4}
    assert {one.max_new_tokens for one in planned} > {4}


def test_a_view_of_its_own_changes_no_record(world):
    task, _, dataset, sets = world
    plain = Reading("retain", limit=2)
    scene = Scene(dataset, sets)
    same, records = see(task, scene, dataclasses.replace(plain, view="asked"))
    assert same is task
    assert records.digest() == see(task, scene, plain)[1].digest()


@pytest.mark.parametrize(("length", "refused", "fluent"), [(1, 1, 1), (8, 0, 0)])
def test_a_model_that_refuses_is_seen_to_refuse(world, length, refused, fluent):
    # It writes "unknown", or "unknown unknown unknown …" where there is room.
    model = world[1]()
    with torch.random.fork_rng():
        head = nn.Linear(32, len(world[0].tokenizer))
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    with torch.no_grad():
        head.bias[world[0].tokenizer.convert_tokens_to_ids("unknown")] = 9
    model.lm_head = head
    subject, _ = whole(world, RefusalConfig(max_new_tokens=length), model)
    for reading in (HARMFUL, BENIGN, RETAIN, NEAR, FORGET):
        measured = subject.scores[reading].measured
        assert set(measured["refused"]) == {refused}
        assert set(measured["fluent"]) == {fluent}


def test_sets_of_the_users_own_take_the_place_of_the_packaged_ones(world):
    info = audits.get("refusal")
    planned = plan_readings([(info, RefusalConfig(harmful="mine", max_records=0))], world[2])
    assert {(one.record_set, one.view, one.limit) for one in planned} == {
        ("mine", "asked", 0),
        ("retain", "benign", 0),
        ("retain", "asked", 0),
        ("retain", "near:1:0", 0),
        ("forget", "asked", 0),
    }
    assert {one.max_new_tokens for one in planned} == {32}
    with pytest.raises(ConfigError, match="mine"):
        plan_readings([(info, RefusalConfig(benign="mime"))], world[2])
