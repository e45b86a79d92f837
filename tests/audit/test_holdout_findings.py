"""Findings as a reusable holdout answers them, and what an audit may show of a reused set."""

import dataclasses

import numpy as np
import pytest
from holdouts import SURE, mechanism, on_disk

from expunge.audit.audit import audits, parse_config, run_audit
from expunge.audit.evidence import Evidence, Subject
from expunge.audit.holdout_findings import BOUNDED, answered, reusable, without
from expunge.audit.readings import Reading
from expunge.core.errors import DataError
from expunge.core.finding import Finding, Interval, Reference
from expunge.core.run import Run

# Findings


def finding(value, n=1000, **changes):
    told = {"interval": Interval(low=0.1, high=0.9), "verdict": "fail", "note": f"saw {value}"}
    common = {"title": "Accuracy", "subject": "after", "direction": "higher", **told, **changes}
    return Finding(audit="recall", metric="accuracy", value=value, n=n, **common)


def test_a_finding_is_answered_and_tells_the_budget():
    asked = mechanism(**SURE, budget=7)
    near = reusable(finding(0.5), finding(0.51, threshold=0.9, record_set="holdout"), asked)
    assert (near.value, near.record_set, near.verdict) == (0.5, "holdout", "fail")
    assert near.interval is None
    assert near.note == (
        "Reusable holdout, training value: 7 of 7 disagreements left, epsilon 2 each, "
        "not a certificate."
    )
    far = reusable(finding(0.9), finding(0.1), asked)
    assert far.value == pytest.approx(0.1, abs=0.02)
    assert far.verdict == "not_applicable"
    assert "held-out value with noise: 6 of 7 disagreements left" in far.note


def test_a_finding_on_agreement_tells_nothing_of_the_holdout():
    found = [
        reusable(
            finding(0.5),
            finding(value, reference=Reference(values=(value,), gap=value, noise_floor=None)),
            mechanism(**SURE),
        )
        for value in (0.512345, 0.487654)
    ]
    assert found[0] == found[1]


def test_a_verdict_within_a_threshold_of_the_bound_is_inconclusive():
    for bound, verdict in ((0.29, "pass"), (0.31, "inconclusive"), (0.69, "inconclusive")):
        held_out = finding(0.5, threshold=bound)
        assert reusable(finding(0.5), held_out, mechanism(**SURE)).verdict == verdict
    held_out = finding(0.5, threshold=0.71)
    assert reusable(finding(0.5), held_out, mechanism(**SURE)).verdict == "fail"


def test_an_answer_as_a_finding_stays_in_its_range():
    asked = mechanism(threshold=0.2, noise=0.03)
    values = [reusable(finding(0.0), finding(1.0), asked).value for _ in range(20)]
    assert max(values) == 1.0
    percent = mechanism(**SURE)
    found = reusable(finding(90.0), finding(10.0), percent, low=0.0, high=100.0)
    assert found.value == pytest.approx(10, abs=2)


def test_an_exhausted_holdout_leaves_a_finding_without_a_number():
    asked = mechanism(**SURE, budget=0)
    found = reusable(finding(0.5), finding(0.5, threshold=0.1), asked)
    assert (found.value, found.interval, found.verdict) == (None, None, "inconclusive")
    assert "exhausted: 0 of 0 disagreements left" in found.note


def test_the_demonstration_is_marked_in_the_finding():
    found = reusable(finding(0.5), finding(0.5), mechanism(mode="science_demo", **SURE))
    assert "without a guarantee" in found.note
    assert "epsilon" not in found.note


@pytest.mark.parametrize(("on_train", "on_holdout"), [(None, 0.5), (0.5, None)])
def test_a_number_that_is_missing_is_not_asked(on_train, on_holdout):
    asked = mechanism(**SURE)
    found = reusable(finding(on_train), finding(on_holdout), asked)
    assert (found.value, found.interval, asked.ledger.asked) == (None, None, 0)
    assert "no number to ask" in found.note


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        (finding(0.5), finding(0.5, subject="before"), "differ in subject"),
        (finding(0.5, model="a"), finding(0.5, model="b"), "differ in model"),
        (finding(0.5), finding(0.5, n=999), "rests on 1000 and 999 records"),
        (finding(0.5), finding(1.5), "the holdout mean is NaN or outside"),
    ],
)
def test_findings_that_do_not_match_are_refused(one, other, told):
    asked = mechanism(**SURE)
    with pytest.raises(DataError, match=told) as caught:
        reusable(one, other, asked)
    assert asked.ledger.asked == 0
    assert "1.5" not in str(caught.value)


# What was asked before


def named(value, **changes):
    return finding(value, model="m", sets="s", **changes)


def test_what_was_asked_of_a_model_before_is_answered_alike_for_nothing(tmp_path):
    asked = on_disk(tmp_path / "ledger", **SURE, budget=1)
    first = reusable(named(0.0), named(1.0), asked)
    assert "0 of 1 disagreements left" in first.note
    for again in (asked, on_disk(tmp_path / "ledger", **SURE)):
        assert reusable(named(0.0), named(1.0), again) == first
        assert again.ledger.asked == 1
        # Another model, other sets, or another metric is another question.
        for changes in ({"model": "n"}, {"sets": "t"}):
            other = [dataclasses.replace(named(value), **changes) for value in (0.0, 1.0)]
            assert reusable(*other, again).value is None
        assert reusable(finding(0.0), finding(1.0), again).value is None


# A whole audit


def gap(metric, value, record_set, subject="after", **changes):
    told = {"n": 1000, "model": subject, "sets": "s", "seed": None, **changes}
    return Finding(
        audit="unlearning_gap",
        metric=metric,
        title=metric,
        subject=subject,
        value=value,
        direction="higher",
        record_set=record_set,
        **told,
    )


def two_numbers(retain, test, subject="after", **changes):
    return [
        gap("ra", retain, "retain", subject, **changes),
        gap("ta", test, "test", subject, **changes),
    ]


def test_an_audit_shows_the_reused_set_through_the_mechanism_only():
    asked = mechanism(**SURE)
    blind = [gap("ua", 40.0, "forget"), gap("ra", 90.0, "retain")]
    gone = [gap("mia", 30.0, "forget", threshold=20.0), gap("average_gap", 3.0, "")]
    found = answered([*blind, gap("ta", 89.0, "test"), *gone], blind, asked)
    assert found[:2] == blind
    assert found[2].value == 90.0
    assert "training value: 50 of 50 disagreements left" in found[2].note
    for one in found[3:]:
        assert (one.value, one.interval, one.reference) == (None, None, None)
        assert one.note.startswith("Withheld by the reusable holdout: it rests on the reused set")
    assert [one.verdict for one in found[3:]] == ["inconclusive", "not_applicable"]
    assert asked.ledger.asked == 1


def test_what_shows_on_agreement_is_the_same_whatever_the_reused_set_holds():
    blind = [gap("ra", 90.0, "retain")]
    shown = [
        answered(
            [*blind, gap("ta", value, "test"), gap("average_gap", value / 9, "")],
            blind,
            mechanism(**SURE),
        )
        for value in (91.234, 87.654)
    ]
    assert shown[0] == shown[1]


def test_the_model_after_unlearning_is_asked_first_and_answers_stand_beside_each_other():
    rows = [
        *two_numbers(10.0, 90.0, "before"),
        *two_numbers(20.0, 80.0, "after"),
        *two_numbers(30.0, 70.0, "reference", seed=1),
        *two_numbers(40.0, 60.0, "reference", seed=0),
    ]
    blind = [one for one in rows if one.metric == "ra"]

    def shown(budget):
        found = answered(rows, blind, mechanism(**SURE, budget=budget))
        return {(f.subject, f.seed): f for f in found if f.metric == "ta"}

    whole = shown(4)
    assert whole["after", None].value == pytest.approx(80, abs=2)
    beside = whole["after", None].reference
    assert beside.values == (whole["reference", 0].value, whole["reference", 1].value)
    assert beside.gap == pytest.approx(whole["after", None].value - sum(beside.values) / 2)
    assert beside.noise_floor == pytest.approx(max(beside.values) - min(beside.values))
    assert whole["reference", 0].reference is None
    first = shown(1)
    assert [who for who, one in first.items() if one.value is not None] == [("after", None)]
    assert first["after", None].reference is None
    assert "exhausted" in first["before", None].note


@pytest.mark.parametrize(
    ("retain", "test", "why"),
    [
        ([], gap("ta", 80.0, "test"), "no such number of retain records"),
        (
            [gap("ra", 90.0, "retain", n=300)],
            gap("ta", 80.0, "test"),
            "on 300 retain and 1000 test records of 1000 and 1000; let the audit take all",
        ),
        ([gap("ra", 90.0, "retain")], gap("ta", 80.0, "test", n=7), "and 7 test records"),
        ([gap("ra", 90.0, "retain")], gap("tb", 80.0, "test"), "no mean of bounded values"),
    ],
)
def test_what_cannot_be_asked_is_withheld(retain, test, why):
    asked = mechanism(**SURE)
    [*_, found] = answered([*retain, test], retain, asked)
    assert found.value is None
    assert why in found.note
    assert asked.ledger.asked == 0


def test_evidence_without_a_set_has_no_score_of_it(make_scores):
    readings = [Reading("test"), Reading("retain"), Reading("test", "perturbed:0")]
    one = make_scores([-1.0, -2.0], rouge=[0.5, 1.0])
    subjects = [
        Subject(role, role, dict.fromkeys(readings, one))
        for role in ("after", "before", "reference", "part")
    ]
    shown = Evidence(subjects[0], subjects[1], (subjects[2],), "s", parts=(subjects[3],))
    for subject in without(shown, "test"):
        assert [len(scores) for scores in subject.scores.values()] == [0, 2, 0]
        assert subject.scores[readings[0]].measured["rouge_l"].shape == (0,)
        assert subject.scores[readings[0]].loss_R.shape == (0,)
    assert [len(scores) for scores in shown.after.scores.values()] == [2, 2, 2]


@pytest.mark.parametrize("name", ["tofu", "memorization", "unlearning_gap"])
def test_the_numbers_that_can_be_asked_for_are_those_of_the_audits(make_scores, name):
    """Each is the mean of one value of 0..1 for every record of the set, or 100 times that."""
    info = audits.get(name)
    settings = {"tofu": {"utility_sets": ["retain", "test"]}}.get(name, {})
    config = parse_config(info, settings)
    random = np.random.default_rng(0)

    def subject(role):
        made = {}
        for record_set, n in (("forget", 30), ("retain", 60), ("test", 40)):
            for view in ("answer", "perturbed:0"):
                limit = 300 if record_set != "forget" and name != "unlearning_gap" else 0
                reading = Reading(record_set, view, limit)
                logprob_R, rouge_R = -random.exponential(size=n), random.random(n)
                made[reading] = make_scores(
                    logprob_R, prefix=record_set, rouge=rouge_R, wrong=range(0, n, 3)
                )
        return Subject(role, role, made)

    shown = Evidence(subject("after"), subject("before"), (subject("reference"),), "s")
    found = run_audit(info, config, shown, Run())
    blind = run_audit(info, config, without(shown, "test"), Run())
    asked = mechanism(samples=(60, 40), threshold=0.9, noise=0.001)
    told = answered(found, blind, asked)
    answers = [one for one in told if one.record_set == "test"]
    names = {one.metric for one in answers}
    assert names == {metric for audit, metric in BOUNDED if audit == name}
    assert asked.ledger.asked == len(answers) == 3 * len(names)
    for one in answers:
        high = BOUNDED[name, one.metric].high
        assert 0 <= one.value <= high
        assert "training value" in one.note
    # Nothing of the retained and the forgotten records alone is withheld.
    kept = [one for one in blind if one.record_set in ("forget", "retain")]
    assert {one.digest() for one in kept if one.metric != "mia"} <= {one.digest() for one in told}
