"""Several models side by side: gaps, noise floor, verdicts; and how audits are found."""

import numpy as np
import pytest

from expunge.audit.audit import audits, parse_config, plan_readings, run_audit
from expunge.audit.evidence import Evidence, Measurement, Subject
from expunge.audit.readings import Reading
from expunge.core.config import fields
from expunge.core.errors import ConfigError, DataError
from expunge.core.finding import Interval
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.data.dataset import Dataset

VALUES = {"before": 0.9, "after": 0.5, "r0": 0.3, "r1": 0.4}


@pytest.fixture
def evidence(make_scores):
    scores = {Reading("forget"): make_scores([-1.0, -2.0])}
    return Evidence(
        after=Subject("after", "after", scores),
        before=Subject("before", "before", scores),
        references=tuple(Subject("reference", f"r{seed}", scores, seed) for seed in (0, 1)),
        sets="digest",
        audit="probe",
        version=7,
    )


def compare(evidence, **options):
    return evidence.compare(
        "m", "M", lambda subject: Measurement(VALUES[subject.model], 2), **options
    )


def test_every_model_gets_a_finding_beside_the_references(evidence):
    before, after, first, second = compare(evidence, direction="reference", record_set="forget")
    assert [f.value for f in (before, after, first, second)] == list(VALUES.values())
    assert [f.subject for f in (before, after, first, second)] == [
        "before",
        "after",
        "reference",
        "reference",
    ]
    assert (first.seed, second.seed, after.seed) == (0, 1, None)
    assert after.reference.values == (0.3, 0.4)
    assert after.reference.gap == pytest.approx(0.15)
    assert before.reference.gap == pytest.approx(0.55)
    assert after.reference.noise_floor == pytest.approx(0.1)
    assert first.reference is None
    assert (after.audit, after.version, after.sets, after.model) == ("probe", 7, "digest", "after")


def test_one_reference_has_no_noise_floor(evidence):
    import dataclasses

    single = dataclasses.replace(evidence, references=evidence.references[:1])
    after = compare(single, direction="higher")[1]
    assert after.reference.noise_floor is None
    assert after.reference.gap == pytest.approx(0.2)
    none = dataclasses.replace(evidence, references=(), before=None)
    (after,) = compare(none, direction="higher")
    assert after.reference is None


def test_two_references_share_a_pairwise_number_and_show_no_noise_floor(evidence):
    after = compare(evidence, direction="higher", pairwise=True)[1]
    assert after.reference.gap == pytest.approx(0.15)
    assert after.reference.noise_floor is None


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.45, 0.6, "pass"), (0.35, 0.6, "inconclusive"), (0.1, 0.39, "fail")],
)
def test_only_the_model_after_is_judged_by_its_whole_interval(evidence, low, high, verdict):
    findings = evidence.compare(
        "m",
        "M",
        lambda subject: Measurement(0.5, 2, Interval(low=low, high=high)),
        direction="higher",
        threshold=0.4,
    )
    assert [f.verdict for f in findings] == ["not_applicable", verdict] + ["not_applicable"] * 2
    assert [f.threshold for f in findings] == [None, 0.4, None, None]


def test_what_cannot_be_computed_is_inconclusive(evidence):
    findings = evidence.compare(
        "m", "M", lambda _: Measurement(None, 0, note="why"), direction="lower", threshold=1.0
    )
    assert findings[1].verdict == "inconclusive"
    assert findings[1].reference is None
    assert findings[1].note == "why"


def test_a_bound_that_does_not_apply_is_never_met(evidence):
    def compute(_):
        return Measurement(None, 0, note="why", verdict="not_applicable")

    bounded = evidence.compare("m", "M", compute, direction="lower", threshold=1.0)
    assert [f.verdict for f in bounded] == ["not_applicable", "inconclusive"] + [
        "not_applicable"
    ] * 2
    free = evidence.compare("m", "M", compute, direction="lower")
    assert {f.verdict for f in free} == {"not_applicable"}


def test_models_scored_on_other_records_are_refused(make_scores):
    here = {Reading("forget"): make_scores([-1.0, -2.0])}
    there = {Reading("forget"): make_scores([-1.0, -2.0], prefix="other")}
    with pytest.raises(DataError, match="reference model was not scored on the same 'forget'"):
        Evidence(
            after=Subject("after", "a", here),
            before=None,
            references=(Subject("reference", "r", there, 0),),
            sets="digest",
        )
    with pytest.raises(DataError, match="before model"):
        Evidence(
            after=Subject("after", "a", here),
            before=Subject("before", "b", {}),
            references=(),
            sets="digest",
        )


def test_registered_audits_say_what_they_are():
    assert audits.names() == [
        "ablation",
        "cbod",
        "corrective",
        "in_context",
        "lira",
        "memorization",
        "mia",
        "muse",
        "neighbours",
        "output_distance",
        "paraphrase",
        "probe",
        "quantize",
        "refusal",
        "relearn",
        "tofu",
        "unlearning_gap",
        "wasserstein",
        "worst_case",
    ]
    for info in audits:
        assert info.title.endswith((".", "?"))
        assert "Source:" in info.doc
        assert info.kinds <= {"causal_lm", "classifier", "regressor"}
        assert all(len(field.text) > 20 for field in fields(info.config))
        assert info.config() == parse_config(info, None)


def test_settings_are_strict():
    with pytest.raises(ConfigError, match=r"audit \(tofu\).*min_forget_quality"):
        parse_config(audits.get("tofu"), {"min_forget_qualty": 0.05})
    with pytest.raises(ConfigError, match="fpr"):
        parse_config(audits.get("mia"), {"fpr": 1.5})


def test_readings_are_planned_once_and_only_for_the_right_kind(people):
    dataset = Dataset("causal_lm", people, probes={"world_facts": Records((), {})})
    chosen = [(info, info.config()) for info in (audits.get("tofu"), audits.get("mia"))]
    planned = plan_readings(chosen, dataset)
    assert len(set(planned)) == len(planned)
    assert {r for r in planned if r.record_set == "forget"} == {
        Reading("forget"),
        Reading("forget", "paraphrase"),
        Reading("forget", "perturbed:0"),
        Reading("forget", "perturbed:1"),
    }
    assert Reading("holdout") in planned
    assert [r.record_set for r in planned if r.max_new_tokens] == ["forget", "retain"]
    with pytest.raises(ConfigError, match=r"unlearning_gap.*audits that can: ablation, cbod"):
        plan_readings([(audits.get("unlearning_gap"), None)], dataset)


def test_an_audit_signs_its_findings(evidence, make_scores):
    scores = {Reading("forget"): make_scores([-1.0]), Reading("holdout"): make_scores([-2.0])}
    plain = Evidence(after=Subject("after", "m", scores), before=None, references=(), sets="s")
    info = audits.get("mia")
    findings = run_audit(info, info.config(), plain, Run())
    assert {(f.audit, f.version, f.model, f.sets) for f in findings} == {("mia", 1, "m", "s")}
    assert np.isclose(findings[0].value, 1.0)
