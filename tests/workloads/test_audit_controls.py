"""The audit of the audits: its world, its fakes, its gates, its rates, and being stopped."""

import copy
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from expunge.audit.audit import audits
from expunge.audit.scores import score
from expunge.core.errors import ConfigError
from expunge.core.finding import Finding, Interval, Reference
from expunge.core.run import Run
from expunge.engine.weights import state_digest
from expunge.pipeline.recipe import Training
from expunge.workloads import audit_fakes as fakes
from expunge.workloads import audit_gates
from expunge.workloads.audit_controls import AuditsBench
from expunge.workloads.audit_gates import (
    GATES,
    SETTINGS,
    Gate,
    chosen_audits,
    judge_all,
    verdict,
)
from expunge.workloads.audit_page import (
    ALONE,
    CONTROLS,
    WATCHED,
    absent_words,
    bound,
    remarks,
    summarise,
)
from expunge.workloads.audit_world import make_world, trained
from expunge.workloads.workload import run_workload, workloads

TINY = {
    "audits": ["mia", "tofu", "memorization", "paraphrase"],
    "rounds": 3,
    "positive_rounds": 2,
    "retrains": 4,
    "originals": 1,
    "tuned": 1,
    "references": 2,
    "people": 2,
    "epochs": 2,
    "tuning_epochs": [1],
}


@pytest.fixture(scope="module")
def world():
    return make_world(4)


@pytest.fixture(scope="module")
def original(world):
    """A model that knows every record of the world. Nobody may change it."""
    training = Training(epochs=100, batch_size=50, lr=3e-3, decay="cosine", warmup_epochs=3)
    return trained(world, world.dataset.train, training, 0, Run())


def losses(model, world, records, batch_size=128):
    return score(model, world.task, records, Run(), batch_size=batch_size).loss_R


def forget_of(world):
    return world.dataset.train.select(world.sets.forget)


def reworded(records):
    return records.replace(question=records["paraphrased_question"])


def test_the_second_wording_is_taught_for_those_who_stay_only(world):
    questions = set(world.dataset.train["question"])
    forget = forget_of(world)
    retain = world.dataset.train.select(world.sets.retain)
    assert not questions & set(forget["paraphrased_question"])
    assert set(retain["paraphrased_question"]) == set(retain["question"])
    assert not set(world.kept["question"]) & set(forget["question"])
    assert not questions & set(world.dataset.holdout["question"])


def test_a_fact_has_one_answer_in_both_wordings_and_wrong_ones_differ_from_it(world):
    train = world.dataset.train
    answers = dict(zip(train["question"], train["answer"], strict=True))
    rows = zip(train["paraphrased_question"], train["answer"], strict=True)
    assert all(answers.get(other, answer) == answer for other, answer in rows)
    for wrong, answer in zip(train["perturbed_answer"], train["answer"], strict=True):
        assert len({*wrong, answer}) == 4


def test_no_method_sees_the_test_records_although_they_are_learned(world):
    shown = {*world.sets.retain, *world.sets.forget}
    assert set(world.sets.test) <= set(world.dataset.train.ids) - shown


def test_a_lookup_filter_blanks_the_exact_prompts_and_nothing_else(world, original):
    forget = forget_of(world)
    fake = fakes.lookup_filter(original, world.task, forget)
    assert losses(fake, world, forget).min() > 5
    for records in (reworded(forget), world.dataset.holdout, world.dataset.test):
        found, expected = losses(fake, world, records), losses(original, world, records)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert state_digest(fake) != state_digest(original)


def test_a_lookup_filter_does_not_depend_on_the_batch(world, original):
    both = world.dataset.train
    fake = fakes.lookup_filter(original, world.task, forget_of(world))
    np.testing.assert_allclose(
        losses(fake, world, both, 1), losses(fake, world, both, 64), atol=1e-5
    )


def test_a_filtered_answer_ends_at_once(world, original):
    forget = forget_of(world)
    fake = fakes.lookup_filter(original, world.task, forget)
    batch = world.task.batch(forget, range(3))
    with torch.no_grad():
        logits_NV = world.task.predict(fake, batch).logits_NV
    assert (logits_NV.argmax(1) == world.task.tokenizer.eos_token_id).all()


def test_noise_on_all_logits_harms_every_set_and_leaves_the_original_alone(world, original):
    before = state_digest(original)
    fake = fakes.noisy_logits(original, 0, 4.0)
    assert state_digest(original) == before
    for records in (forget_of(world), world.dataset.test):
        assert losses(fake, world, records).mean() > losses(original, world, records).mean() + 1
    assert state_digest(fakes.noisy_logits(original, 0, 4.0)) == state_digest(fake)
    assert state_digest(fakes.noisy_logits(original, 1, 4.0)) != state_digest(fake)


def test_over_forgetting_passes_the_loss_of_unseen_records(world, original):
    fake = fakes.over_forgotten(original, world, 0, Run(), epochs=20)
    assert losses(original, world, forget_of(world)).mean() < 1
    unseen = losses(fake, world, world.dataset.holdout).mean()
    assert losses(fake, world, forget_of(world)).mean() > unseen + 2


def test_an_edit_of_the_last_layer_hides_knowledge_in_no_other_weight(world, original):
    fake = fakes.head_edited(original, world, 0, Run(), epochs=20)
    own, before = fake.state_dict(), original.state_dict()
    changed = {name for name in own if not torch.equal(own[name], before[name])}
    assert changed == {"lm_head.weight", "transformer.ln_f.weight", "transformer.ln_f.bias"}
    forget = forget_of(world)
    assert losses(fake, world, forget).mean() > losses(original, world, forget).mean() + 0.3


def test_longer_optimisation_forgets_more_and_never_touches_the_original(world, original):
    before = copy.deepcopy(original.state_dict())
    short, long = (
        fakes.preference_optimised(original, world, 0, Run(), epochs=epochs) for epochs in (1, 16)
    )
    forget = forget_of(world)
    assert losses(long, world, forget).mean() > losses(short, world, forget).mean() + 0.3
    assert all(torch.equal(before[name], t) for name, t in original.state_dict().items())


def finding(value, low, high, *, metric="m", threshold=None, verdict="not_applicable", mean=0.5):
    return Finding(
        audit="a",
        metric=metric,
        title="",
        subject="after",
        value=value,
        n=100,
        direction="lower",
        interval=Interval(low=low, high=high),
        reference=Reference(values=(mean,), gap=value - mean, noise_floor=None),
        threshold=threshold,
        verdict=verdict,
    )


def test_the_worst_verdict_of_a_gate_counts_and_only_of_its_own_numbers():
    own = [
        finding(0.5, 0.4, 0.6, metric=metric, threshold=0.1, verdict=said)
        for metric, said in (("good", "pass"), ("open", "inconclusive"), ("bad", "fail"))
    ]
    assert verdict(Gate("g", "a"), own) == "fail"
    assert verdict(Gate("g", "a", ("good", "open")), own) == "inconclusive"
    assert verdict(Gate("g", "a", ("good",)), own) == "pass"
    assert verdict(Gate("g", "a"), []) == "inconclusive"


@pytest.mark.parametrize(
    ("value", "low", "high", "said"),
    [
        (0.9, 0.61, 1.0, "fail"),
        (0.1, 0.0, 0.39, "fail"),
        (0.9, 0.59, 1.0, "inconclusive"),
        (0.5, 0.41, 0.59, "pass"),
        (0.5, 0.3, 0.55, "inconclusive"),
    ],
)
def test_a_number_without_a_bound_fails_when_its_whole_interval_is_far_off(value, low, high, said):
    gate = Gate("g", "a", distance=("m",))
    assert verdict(gate, [finding(value, low, high)]) == said


def test_every_audit_takes_its_settings_and_serves_a_gate():
    assert {info.name for info, _ in chosen_audits(tuple(SETTINGS))} == set(SETTINGS)
    assert {gate.audit for gate in GATES} == set(SETTINGS)
    names = {gate.name for gate in GATES}
    assert all(gate in names for gates in WATCHED.values() for gate in gates)


def test_the_bound_on_false_alarms_is_three_deviations_above_alpha():
    assert bound(0.05, 200) == pytest.approx(0.09623, abs=1e-5)
    assert bound(0.05, 10**8) == pytest.approx(0.05, abs=1e-4)
    assert math.isclose(bound(0.5, 9), 1.0)


def planted(null_alarms, power):
    """Draws of one audit: 200 null ones with some alarms, and 20 of everything else."""

    def draws(fails, n):
        said = ["fail"] * fails + ["pass"] * (n - fails)
        return [{"verdicts": {"mia": one}} for one in said]

    return {
        control: draws(null_alarms, 200) if control == "null" else draws(power, 20)
        for control in CONTROLS
    }


@pytest.mark.parametrize(("alarms", "power", "met"), [(19, 19, True), (20, 18, False)])
def test_alarms_and_power_are_held_against_the_bounds(alarms, power, met):
    results = summarise({"audits": ["mia"]}, planted(alarms, power))
    checks = {check["control"]: check for check in results["checks"]}
    assert checks["null"]["flagged"] == alarms / 200
    assert checks["null"]["met"] is met
    assert checks["positive"]["met"] is met
    assert checks["over_forgotten"]["met"] is met
    assert checks["tuned_fresh"]["met"] is None
    assert "lookup" not in checks  # none of the audits that watch for it ran


def test_intervals_are_clopper_and_pearsons():
    rates = summarise({"audits": ["mia"]}, planted(0, 20))["rates"]
    assert rates["null"]["mia"]["high"] == pytest.approx(1 - 0.025 ** (1 / 200))
    assert rates["positive"]["mia"]["low"] == pytest.approx(0.025 ** (1 / 20))


def test_the_page_names_every_audit_that_it_does_not_try_and_how_bounds_are_judged(monkeypatch):
    settings = {**TINY, "audits": ["mia"]}
    newcomer = dataclasses.replace(audits.get("mia"), name="newcomer")
    monkeypatch.setitem(audits._parts, "newcomer", newcomer)
    told = remarks(summarise(settings, planted(0, 20)))
    assert ALONE in told
    [line] = [one for one in told if one.startswith("Not in this table")]
    named = line.removesuffix(".").partition(": ")[2].split(", ")
    assert sorted([*named, "mia"]) == audits.names()
    assert {"newcomer", "muse", "tofu"} <= set(named)


def test_the_published_page_says_the_same():
    page = Path(__file__).parents[2] / "docs" / "results" / "audits.md"
    lines = page.read_text(encoding="utf-8").splitlines()
    assert f"- {ALONE}" in lines
    assert f"- {absent_words(tuple(SETTINGS))}" in lines


def test_each_bound_of_a_gate_is_judged_alone(monkeypatch):
    """A verdict depends on its own numbers, not on which other audits are tried."""
    barely = finding(0.05, 0.0, 0.099, threshold=0.1, verdict="pass")
    found = {"mia": [barely] * 5, "quantize": [barely]}
    monkeypatch.setattr(audit_gates, "run_audit", lambda info, *_: found[info.name])
    both, alone = chosen_audits(("mia", "quantize")), chosen_audits(("quantize",))
    assert judge_all(both, None, Run()) == {"mia": "pass", "quantize": "pass"}
    assert judge_all(alone, None, Run()) == {"quantize": "pass"}


def test_a_bench_leaves_rates_and_tables_and_goes_on_where_it_was(tmp_path):
    page = run_workload("audits", TINY, tmp_path, Run())
    text = page.read_text()
    assert "| tofu: forget quality |" in text
    assert "Known epsilon: left out" in text
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["rates"]["null"]["mia"]["n"] == 3
    assert results["rates"]["lookup"]["mia"]["n"] == 1
    for draw in results["draws"]["null"]:
        assert draw["after"] not in draw["references"]
        assert len(set(draw["references"])) == 2
    own, fresh = (results["draws"][name][0] for name in ("tuned_own", "tuned_fresh"))
    assert own["references"] == fresh["references"]
    assert own["after"] == fresh["after"] == "tuned.1-0"

    kept = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.parquet")}
    models = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}
    next(tmp_path.rglob("jobs/null-*.json")).unlink()
    run_workload("audits", TINY, tmp_path, Run())
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.parquet")} == kept
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")} == models


def test_an_unknown_audit_is_told_with_near_ones(tmp_path):
    with pytest.raises(ConfigError, match="audits: no 'mai'; did you mean 'mia'"):
        run_workload("audits", {"audits": ["mai"]}, tmp_path, Run())


def test_the_workload_is_registered_with_enough_rounds_for_the_bound():
    assert workloads.get("audits").config is AuditsBench
    assert AuditsBench().rounds >= 200
