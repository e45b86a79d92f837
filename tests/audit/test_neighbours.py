"""Side effects on neighbours, on planted scores and on a tiny model."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from expunge.audit.audit import audits, plan_readings, run_audit
from expunge.audit.collecting import collect
from expunge.audit.evidence import Evidence, Subject
from expunge.audit.neighbours import (
    NeighboursConfig,
    calibration_error,
    confidence_R,
    neighbours,
)
from expunge.audit.readings import Reading
from expunge.audit.stats import clopper_pearson
from expunge.core.errors import ConfigError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.core.sets import Sets
from expunge.data.dataset import Dataset
from expunge.report.comparison import comparisons
from expunge.report.narrative import unfolded

NEAR, FAR = Reading("retain", "near:1-1:300"), Reading("retain", "near:6-10:300")
CONFIG = NeighboursConfig(max_excess_drop=0.03, calibration=False, per_decile=0)


@pytest.fixture
def make_subject(make_scores):
    """A model by the mean probability of its near and far answers."""

    def make(role, near, far, *, n=200, seed=None):
        random = np.random.default_rng(0)
        scores = {
            reading: make_scores(
                np.log(mean * random.uniform(0.9, 1.1, n)), prefix=f"{reading.view[:6]}"
            )
            for reading, mean in ((NEAR, near), (FAR, far))
        }
        return Subject(role, f"{role}-{seed}-{near}", scores, seed)

    return make


def audited(config, after, before, *references):
    evidence = Evidence(after, before, references, sets="sets", audit="neighbours")
    findings = neighbours(evidence, config, Run())
    return {finding.metric: finding for finding in findings if finding.subject == "after"}


def test_data_without_probe_sets_say_so_of_a_name_for_neighbours():
    records = Records(("r-0",), {"question": ["who"], "answer": ["anna"]})
    info = audits.get("neighbours")
    with pytest.raises(ConfigError, match="'near' is no probe set of the data; they have none"):
        plan_readings([(info, NeighboursConfig(neighbours="near"))], Dataset("causal_lm", records))


def test_the_drop_of_neighbours_stands_beside_far_records_and_retraining(make_subject):
    models = [("after", 0.5, 0.78), ("before", 0.8, 0.8)]
    after, before = (make_subject(*model) for model in models)
    references = [make_subject("reference", near, 0.8, seed=near) for near in (0.7, 0.6)]
    found = audited(CONFIG, after, before, *references)

    def mean(subject, reading):
        return float(np.exp(subject.scores[reading].logprob_N.astype(np.float64)).mean())

    assert found["score_near"].value == pytest.approx(mean(after, NEAR))
    near = mean(before, NEAR) - mean(after, NEAR)
    far = mean(before, FAR) - mean(after, FAR)
    assert found["drop_near"].value == pytest.approx(near)
    assert found["drop_far"].value == pytest.approx(far)
    assert found["drop_difference"].value == pytest.approx(near - far)
    assert (
        found["drop_difference"].interval.low < near - far < found["drop_difference"].interval.high
    )
    lost = near - np.mean([mean(before, NEAR) - mean(one, NEAR) for one in references])
    assert found["excess_drop"].value == pytest.approx(lost)
    assert lost == pytest.approx(0.15, abs=0.01)
    assert found["excess_drop"].verdict == "fail"
    assert found["score_near"].reference.gap == pytest.approx(-lost)


@pytest.mark.parametrize(
    ("near", "n", "bound", "verdict"),
    [
        (0.69, 200, 0.03, "pass"),
        (0.69, 40, 0.03, "inconclusive"),
        (0.6, 200, 0.03, "fail"),
        (0.67, 60, 0.02, "inconclusive"),
        (0.67, 2000, 0.02, "fail"),
    ],
)
def test_the_rule_is_the_drop_beyond_retraining(make_subject, near, n, bound, verdict):
    after, reference = (
        make_subject("after", near, 0.8, n=n),
        make_subject("reference", 0.7, 0.8, n=n),
    )
    config = dataclasses.replace(CONFIG, max_excess_drop=bound)
    found = audited(config, after, None, reference)
    assert found["excess_drop"].verdict == verdict
    assert found["drop_near"].value is None
    assert "before" in found["drop_near"].note


def test_too_few_records_or_no_references_give_no_number(make_subject):
    few = audited(
        CONFIG,
        make_subject("after", 0.1, 0.8, n=19),
        None,
        make_subject("reference", 0.7, 0.8, n=19),
    )
    assert few["excess_drop"].value is None
    assert few["excess_drop"].verdict == "inconclusive"
    assert "19" in few["score_near"].note
    alone = audited(CONFIG, make_subject("after", 0.1, 0.8), make_subject("before", 0.7, 0.8))
    assert alone["excess_drop"].value is None
    assert alone["excess_drop"].verdict == "inconclusive"
    assert alone["drop_near"].value > 0.5


def test_the_model_before_has_no_drop(make_subject):
    evidence = Evidence(
        make_subject("after", 0.5, 0.5), make_subject("before", 0.7, 0.7), (), sets="s"
    )
    findings = neighbours(evidence, CONFIG, Run())
    before = {finding.metric: finding for finding in findings if finding.subject == "before"}
    assert before["drop_near"].value is None
    assert before["drop_difference"].value is None
    assert "this model" in before["drop_near"].note


def test_calibration_error_is_the_weighted_distance_of_confidence_and_accuracy():
    confidence = np.array([0.95, 0.92, 0.15, 1.0])
    right = np.array([1.0, 0.0, 0.5, 1.0])
    targets = np.array([1.0, 3.0, 2.0, 4.0])
    # The bin 0.9-1.0: 1(1 - 0.95) + 3(0 - 0.92) + 4(1 - 1) = -2.71; 0.1-0.2: 2(0.5 - 0.15) = 0.7.
    assert calibration_error(confidence, right, targets) == pytest.approx((2.71 + 0.7) / 10)
    assert calibration_error(right, right, targets) == 0


def test_confidence_is_the_mean_probability_of_first_choices(language_model, people):
    model, task = language_model
    found = confidence_R(model, task, people, Run())
    for row, (tokens, start) in enumerate(task.encoded(people)):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokens])).logits[0]
        top = logits.softmax(1).max(1).values[start - 1 : len(tokens) - 1]
        assert found[row] == pytest.approx(float(top.mean()), abs=1e-6)


@pytest.fixture
def world(make_llama):
    """A random model, and 300 retain records of which 30 share words with the forget record."""
    task, fresh = make_llama
    near = "what is the capital of norway"
    records = Records(
        ("gone", *(f"kept-{row}" for row in range(300))),
        {
            "question": [near, *(near if row < 30 else "madrid" for row in range(300))],
            "answer": ["oslo", *(["paris", "lima by the bay"][row % 2] for row in range(300))],
            "perturbed_answer": [["cairo", "santiago"]] * 301,
            "dual": [False, *(row >= 270 for row in range(300))],
        },
    )
    probe = Records(("p-0", "p-1"), {"question": [near] * 2, "answer": ["lima", "paris"]})
    dataset = Dataset("causal_lm", records, probes={"bio": probe})
    return task, fresh, dataset, Sets.partition(records.ids, ["gone"])


def whole(world, config):
    task, fresh, dataset, sets = world
    planned = plan_readings([(audits.get("neighbours"), config)], dataset)
    subject = collect(fresh(), task, dataset, sets, planned, Run(), role="after")
    evidence = Evidence(subject, None, (), sets.digest())
    found = run_audit(audits.get("neighbours"), config, evidence, Run())
    return subject, {finding.metric: finding for finding in found}


def test_the_whole_audit_on_a_small_model(world):
    subject, found = whole(world, NeighboursConfig(max_records=25))
    near, far = (subject.scores[Reading("retain", f"near:{part}:25")] for part in ("1-1", "6-10"))
    assert len(near) == len(far) == 25
    assert all(int(i.removeprefix("kept-")) < 30 for i in near.ids)
    assert all(int(i.removeprefix("kept-")) >= 30 for i in far.ids)
    assert found["score_near"].value == pytest.approx(float(np.exp(-near.loss_R).mean()))
    confidence = near.measured["confidence"]
    right = [
        near.greedy_N[a:b].mean() for a, b in zip(near.offsets, near.offsets[1:], strict=False)
    ]
    gap = float(np.average(np.array(right) - confidence, weights=near.n_R))
    # An untrained model is equally unsure of everything: one bin.
    assert math.ceil(confidence.max() * 10) == 1
    assert found["calibration_error_near"].value == pytest.approx(abs(gap))


def test_knowledge_compares_with_wrong_answers_of_the_same_records(world):
    config = NeighboursConfig(by="knowledge", max_records=25, calibration=False)
    subject, found = whole(world, config)
    plain = Reading("retain", "near:1-1:25")
    true, *wrong = (
        subject.scores[dataclasses.replace(plain, view=plain.view + ending)]
        for ending in ("", ":perturbed:0", ":perturbed:1")
    )
    assert wrong[0].ids == true.ids
    hits = true.loss_R < np.minimum(wrong[0].loss_R, wrong[1].loss_R)
    assert found["score_near"].value == pytest.approx(hits.mean())


def test_a_column_or_a_probe_set_names_the_neighbours(world):
    subject, found = whole(world, NeighboursConfig(column="dual", calibration=False))
    near = subject.scores[Reading("retain", "marked:dual:yes:300")]
    assert near.ids == tuple(f"kept-{row}" for row in range(270, 300))
    assert len(subject.scores[Reading("retain", "marked:dual:no:300")]) == 270
    subject, found = whole(world, NeighboursConfig(neighbours="bio", calibration=False))
    assert found["score_near"].record_set == "bio"
    assert found["score_near"].n == 2
    assert found["score_far"].record_set == "retain"


DECILES = [Reading("retain", f"near:{place}-{place}:50") for place in range(1, 11)]


@pytest.fixture
def by_decile(make_scores):
    """A model whose ten tenths have these mean probabilities and numbers of refusals."""

    def make(role, means, refused, *, n=40, seed=None):
        scores = {NEAR: make_scores([-1.0] * n), FAR: make_scores([-1.0] * n, prefix="far")}
        for place, (mean, count) in enumerate(zip(means, refused, strict=True)):
            spread = np.tile([-0.05, 0.05], n)[:n]
            made = make_scores(np.log(mean + spread), prefix=f"d{place}", wrong=range(place, n))
            measured = {"confidence": np.full(n, 0.95), "refused": (np.arange(n) < count) * 1.0}
            scores[DECILES[place]] = dataclasses.replace(made, measured=measured)
            for side in (NEAR, FAR):
                scores[side] = dataclasses.replace(scores[side], measured=measured)
        return Subject(role, f"{role}{seed}", scores, seed)

    return make


def test_score_calibration_and_refusals_are_told_by_distance(by_decile):
    before = by_decile("before", [0.8] * 10, [1] * 10)
    means, refusals = np.linspace(0.3, 0.75, 10), range(20, 0, -2)
    after = by_decile("after", means, refusals)
    reference = by_decile("reference", [0.7] * 10, [0] * 10, seed=1)
    findings = neighbours(
        Evidence(after, before, (reference,), sets="s", audit="neighbours"),
        NeighboursConfig(),
        Run(),
    )
    found = {(one.subject, one.metric): one for one in findings}
    for place in range(10):
        score = found["after", f"score_decile_{place + 1}"]
        assert score.value == pytest.approx(means[place], abs=1e-6)
        assert score.interval.low < means[place] < score.interval.high
        assert score.reference.values == pytest.approx((0.7,), abs=1e-6)
        assert found["before", score.metric].value == pytest.approx(0.8, abs=1e-6)
        # The first `place` of 40 answers are right, all with confidence 0.95.
        error = found["after", f"calibration_error_decile_{place + 1}"]
        assert error.value == pytest.approx(0.95 - place / 40)
        refused = found["after", f"refused_decile_{place + 1}"]
        assert refused.value == refusals[place] / 40
        assert refused.interval == clopper_pearson(refusals[place], 40)
        assert refused.reference.gap == refusals[place] / 40
        assert found["before", refused.metric].value == 1 / 40
        assert {score.record_set, error.record_set, refused.record_set} == {"retain"}
        assert (score.direction, error.direction, refused.direction) == ("higher", "lower", "lower")


def test_numbers_by_decile_are_folded_in_a_report(by_decile):
    after = by_decile("after", [0.5] * 10, [1] * 10)
    evidence = Evidence(after, None, (), sets="s", audit="neighbours")
    compared = comparisons(neighbours(evidence, NeighboursConfig(), Run()))
    shown = {one.after.metric for one in unfolded(compared)}
    assert sum("_decile_" in one.after.metric for one in compared) == 30
    assert not any("_decile_" in metric for metric in shown)
    assert "excess_drop" in shown


def test_the_deciles_of_a_small_model_are_every_retain_record_by_distance(world):
    subject, found = whole(world, NeighboursConfig(max_new_tokens=3))
    ids = [subject.scores[reading].ids for reading in DECILES]
    assert [len(part) for part in ids] == [30] * 10
    assert sorted(i for part in ids for i in part) == sorted(world[3].retain)
    assert all(int(i.removeprefix("kept-")) < 30 for i in ids[0])
    for place in (1, 10):
        scores = subject.scores[DECILES[place - 1]]
        mean = float(np.exp(-scores.loss_R).mean())
        assert found[f"score_decile_{place}"].value == pytest.approx(mean)
        share = float(scores.measured["refused"].mean())
        assert found[f"refused_decile_{place}"].value == share
        assert found[f"refused_decile_{place}"].n == 30


def test_what_is_not_asked_for_is_not_measured(world):
    def names(**settings):
        config = NeighboursConfig(**settings)
        readings = plan_readings([(audits.get("neighbours"), config)], world[2])
        _, found = whole(world, config)
        told = {metric.partition("_decile_")[0] for metric in found if "_decile_" in metric}
        return told, any(reading.max_new_tokens for reading in readings)

    assert names(max_new_tokens=0) == ({"score", "calibration_error"}, False)
    assert names(max_new_tokens=2, calibration=False) == ({"score", "refused"}, True)
    assert names(per_decile=0) == (set(), False)
    assert names(per_decile=19) == (set(), True)


def test_wrong_answers_of_every_decile_are_scored_without_writing_any(world):
    config = NeighboursConfig(by="knowledge", calibration=False)
    readings = plan_readings([(audits.get("neighbours"), config)], world[2])
    wrong = [reading for reading in readings if "perturbed" in reading.view]
    assert len(wrong) == 12 * 2
    assert not any(reading.max_new_tokens or reading.measures for reading in wrong)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"neighbours": "bia"}, "bio"),
        ({"column": "duel"}, "dual"),
        ({"column": "dual", "neighbours": "bio"}, "both"),
    ],
)
def test_neighbours_that_are_not_there_are_an_error(world, settings, words):
    with pytest.raises(ConfigError, match=words):
        plan_readings([(audits.get("neighbours"), NeighboursConfig(**settings))], world[2])
