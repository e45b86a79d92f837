"""The TOFU audit on planted scores, and end to end on a tiny random Llama."""

import dataclasses
import math

import numpy as np
import pytest
from scipy.stats import ks_2samp

from expunge.audit.audit import audits, plan_readings, run_audit
from expunge.audit.collecting import collect
from expunge.audit.evidence import Evidence, Subject
from expunge.audit.readings import Reading
from expunge.audit.score_table import read_scores, write_scores
from expunge.audit.tofu import TofuConfig, tofu
from expunge.audit.verdicts import judged_together
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.core.sets import Sets
from expunge.data.dataset import Dataset

CONFIG = TofuConfig(utility_sets=("retain", "world_facts"), max_utility_records=0)


@pytest.fixture
def make_subject(make_scores):
    """A model by the log truth ratios it has on forgotten records and its loss on the others."""

    def make(role, ratios, utility_loss=0.1, seed=None, size=4):
        n = len(ratios)
        scores = {
            Reading("forget"): make_scores([-1.0] * n),
            Reading("forget", "paraphrase"): make_scores([-5.0] * n),
            Reading("forget", "perturbed:0"): make_scores(-5.0 - np.asarray(ratios)),
        }
        for name in CONFIG.utility_sets:
            scores |= {
                Reading(name): make_scores(
                    [-utility_loss] * size, prefix="u", rouge=[1, 1, 0, 1] * (size // 4)
                ),
                Reading(name, "perturbed:0"): make_scores([-3 * utility_loss] * size, prefix="u"),
            }
        return Subject(role, f"{role}-{seed}", scores, seed)

    return make


def by_metric(findings, subject="after"):
    return {(f.metric, f.record_set): f for f in findings if f.subject == subject}


def test_every_number_of_known_scores(make_subject):
    ratios = np.array([-0.5, 0.0, 0.5, 1.0])
    evidence = Evidence(
        after=make_subject("after", ratios), before=None, references=(), sets="digest"
    )
    found = by_metric(tofu(evidence, CONFIG, Run()))
    assert found["probability", "forget"].value == pytest.approx(math.exp(-1))
    expected = np.exp(-np.abs(ratios)).mean()
    assert found["truth_ratio", "forget"].value == pytest.approx(expected, abs=1e-6)
    assert found["probability", "retain"].value == pytest.approx(math.exp(-0.1), abs=1e-6)
    share = math.exp(-0.1) / (math.exp(-0.1) + math.exp(-0.3))
    assert found["probability", "world_facts"].value == pytest.approx(share, abs=1e-6)
    assert found["rouge_l", "retain"].value == 0.75
    assert ("rouge_l", "forget") not in found
    # Retained records have no paraphrase here: the true answer stands in, S = exp(0.3 - 0.1).
    assert found["truth_ratio", "retain"].value == pytest.approx(1 - math.exp(-0.2), abs=1e-6)
    six = [0.75, math.exp(-0.1), 1 - math.exp(-0.2), 0.75, share, 1 - math.exp(-0.2)]
    utility = found["model_utility", ""]
    assert utility.value == pytest.approx(6 / sum(1 / x for x in six), abs=1e-6)
    assert utility.interval.low < utility.value < utility.interval.high
    assert utility.note == ""
    quality = found["forget_quality", "forget"]
    assert quality.value is None
    assert "no other retrained model" in quality.note


def test_forget_quality_against_each_reference(make_subject):
    rng = np.random.default_rng(0)
    own, *others = (rng.normal(shift, 1, 60) for shift in (0.4, 0.0, 0.1, 1.5))
    evidence = Evidence(
        after=make_subject("after", own),
        before=make_subject("before", own + 9),
        references=tuple(make_subject("reference", r, seed=i) for i, r in enumerate(others)),
        sets="digest",
    )
    config = TofuConfig(
        utility_sets=CONFIG.utility_sets, max_utility_records=0, min_forget_quality=0.9
    )
    findings = tofu(evidence, config, Run())
    after, before = by_metric(findings), by_metric(findings, "before")
    tests = sorted((ks_2samp(own, r) for r in others), key=lambda t: t.pvalue)
    quality = after["forget_quality", "forget"]
    assert quality.value == pytest.approx(tests[1].pvalue, rel=1e-6)
    assert quality.verdict == "fail"
    assert quality.error == pytest.approx(min(1.5 * tests[1].pvalue, 1))  # the second of three
    assert before["forget_quality", "forget"].error is None
    assert after["forget_quality_distance", "forget"].value == pytest.approx(tests[1].statistic)
    log10 = after["forget_quality_log10", "forget"].value
    assert log10 == pytest.approx(math.log10(tests[1].pvalue), rel=1e-6)
    assert "p against each reference" in quality.note
    assert before["forget_quality", "forget"].value < 1e-30
    # The ceiling: each reference against the other two, the smaller p of the two.
    expected = [min(ks_2samp(r, o).pvalue for o in others if o is not r) for r in others]
    assert quality.reference.values == pytest.approx(expected, rel=1e-6)


def test_a_destroyed_model_fails_although_its_p_value_passes(make_subject):
    ratios = np.random.default_rng(1).normal(size=40)
    evidence = Evidence(
        after=make_subject("after", ratios, utility_loss=500.0, size=60),
        before=make_subject("before", ratios + 5, size=60),
        references=(make_subject("reference", ratios, seed=0, size=60),),
        sets="digest",
    )
    config = TofuConfig(
        utility_sets=CONFIG.utility_sets,
        max_utility_records=0,
        min_forget_quality=0.05,
        min_utility_kept=0.9,
    )
    found = by_metric(tofu(evidence, config, Run()))
    quality = found["forget_quality", "forget"]
    assert quality.value == 1
    assert quality.verdict == "fail"
    assert quality.error is None  # a rule and no test
    assert "collapsed" in quality.note
    assert "only 40 records" in quality.note
    assert found["utility_kept", ""].value < 0.01
    assert found["utility_kept", ""].verdict == "fail"


@pytest.mark.parametrize("loss", [500.0, 1000.0])
def test_a_collapsed_model_fails_among_other_bounds(make_subject, loss):
    """No resample has any utility; what unseen records may hold is still far below the bound."""
    ratios = np.random.default_rng(1).normal(size=60)
    evidence = Evidence(
        after=make_subject("after", ratios, utility_loss=loss, size=300),
        before=make_subject("before", ratios + 5, size=300),
        references=(make_subject("reference", ratios, seed=0, size=300),),
        sets="digest",
    )
    config = TofuConfig(
        utility_sets=CONFIG.utility_sets,
        max_utility_records=0,
        min_forget_quality=0.05,
        min_utility_kept=0.8,
    )
    found = by_metric(judged_together(run_audit(audits.get("tofu"), config, evidence, Run()) * 3))
    # Of 300 records with no hit 0.0122 may hit; that is one of six means, the others are high.
    unseen = 1 - 0.025 ** (1 / 300)
    utility, kept = found["model_utility", ""], found["utility_kept", ""]
    most = 6 / (1 / unseen + 2 / 0.75 + 3)
    assert utility.value == pytest.approx(0, abs=1e-9)
    assert utility.interval.low == pytest.approx(0, abs=1e-9)
    assert utility.interval.high == pytest.approx(most, rel=0.02)
    assert kept.interval.high > most
    assert kept.verdict == "fail"
    assert found["forget_quality", "forget"].verdict == "fail"


@pytest.mark.parametrize("size", [4, 60, 400])
def test_a_model_that_lost_nothing_is_as_sure_as_its_records_are_many(make_subject, size):
    """Resamples of the same answers never differ; a share of unseen ones might."""
    subject, before = (make_subject(role, [0.0, 1.0], size=size) for role in ("after", "before"))
    evidence = Evidence(after=subject, before=before, references=(), sets="digest")
    config = TofuConfig(
        utility_sets=CONFIG.utility_sets, max_utility_records=0, min_utility_kept=0.9
    )
    found = by_metric(tofu(evidence, config, Run()))
    kept, unseen = found["utility_kept", ""], 1 - 0.025 ** (1 / size)
    assert kept.value == 1
    assert kept.interval.low == pytest.approx(1 - unseen)
    assert kept.interval.high > 1
    assert kept.verdict == ("pass" if unseen < 0.1 else "inconclusive")
    assert found["probability", "retain"].interval.low < math.exp(-0.1)


def test_utility_kept_is_paired(make_subject):
    """Hard and easy records are so for both models; the share kept hardly varies."""
    rouge = np.tile([1.0, 0.9, 0.1, 0.2], 15)

    def subject(role, by):
        made = make_subject(role, [0.0, 1.0], size=60)
        name = Reading("retain")
        measured = {"rouge_l": by * rouge}
        scores = {**made.scores, name: dataclasses.replace(made.scores[name], measured=measured)}
        return dataclasses.replace(made, scores=scores)

    config = TofuConfig(utility_sets=("retain",), max_utility_records=0)
    evidence = Evidence(subject("after", 0.9), subject("before", 1.0), (), "digest")
    found = by_metric(tofu(evidence, config, Run()))
    widths = [
        found[metric, ""].interval.high - found[metric, ""].interval.low
        for metric in ("utility_kept", "model_utility")
    ]
    assert 0 < widths[0] < widths[1] / 4


@pytest.mark.parametrize(
    ("n", "verdict"), [(3, "inconclusive"), (49, "inconclusive"), (50, "pass")]
)
def test_a_test_that_cannot_reject_clears_no_model(make_subject, n, verdict):
    """Nothing was forgotten; of three records the smallest p-value that there is is 0.1."""
    ratios = np.random.default_rng(1).normal(size=n)
    after = ratios + 9 if n == 3 else ratios
    evidence = Evidence(
        after=make_subject("after", after),
        before=None,
        references=(make_subject("reference", ratios, seed=0),),
        sets="digest",
    )
    config = TofuConfig(utility_sets=CONFIG.utility_sets, min_forget_quality=0.05)
    quality = by_metric(tofu(evidence, config, Run()))["forget_quality", "forget"]
    assert quality.value >= 0.05
    assert quality.verdict == verdict
    assert quality.error is None  # of a pass none is known
    told = "a pass needs 50 records: forget more of those that have wrong answers"
    assert (told in quality.note) is (n < 50)


def test_few_records_may_condemn_a_model(make_subject):
    ratios = np.random.default_rng(1).normal(size=10)
    evidence = Evidence(
        after=make_subject("after", ratios + 9),
        before=None,
        references=(make_subject("reference", ratios, seed=0),),
        sets="digest",
    )
    config = TofuConfig(utility_sets=CONFIG.utility_sets, min_forget_quality=0.05)
    quality = by_metric(tofu(evidence, config, Run()))["forget_quality", "forget"]
    assert (quality.verdict, quality.n) == ("fail", 10)
    assert "a pass needs" not in quality.note


def test_absent_utility_sets_are_named(make_subject):
    subject = make_subject("after", [0.0, 1.0])
    evidence = Evidence(after=subject, before=None, references=(), sets="digest")
    config = TofuConfig(utility_sets=("retain", "real_authors"), max_utility_records=0)
    utility = by_metric(tofu(evidence, config, Run()))["model_utility", ""]
    assert utility.note == (
        "not measured: rouge_l of real_authors, probability of real_authors, "
        "truth_ratio of real_authors"
    )
    nothing = TofuConfig(utility_sets=("real_authors",))
    utility = by_metric(tofu(evidence, nothing, Run()))["model_utility", ""]
    assert utility.value is None


def test_end_to_end_and_again_from_disk(language_model, people, tmp_path):
    model, task = language_model
    facts = Records(
        ("w-0", "w-1"),
        {
            "question": ["who wrote it", "is it red"],
            "answer": ["anna", "it is"],
            "perturbed_answer": [["bo", "carl"], ["it was"]],
        },
    )
    dataset = Dataset("causal_lm", people, probes={"world_facts": facts})
    sets = Sets(forget=("train-0", "train-2", "train-3"), retain=("train-1",))
    info = audits.get("tofu")
    config = TofuConfig(utility_sets=("retain", "world_facts"), max_new_tokens=4)
    readings = plan_readings([(info, config)], dataset)
    subjects = [
        collect(model, task, dataset, sets, readings, Run(), role=role, seed=seed)
        for role, seed in (("before", None), ("after", None), ("reference", 0))
    ]

    def audit(before, after, reference):
        evidence = Evidence(after=after, before=before, references=(reference,), sets=sets.digest())
        return run_audit(info, config, evidence, Run())

    findings = audit(*subjects)
    found = by_metric(findings)
    assert found["forget_quality", "forget"].value == 1  # the same model throughout
    assert found["forget_quality", "forget"].n == 3
    assert found["rouge_l", "forget"].n == 3
    assert found["utility_kept", ""].value in (None, pytest.approx(1))
    assert found["model_utility", ""].note == "not measured: truth_ratio of retain"
    for subject in subjects:
        write_scores(tmp_path / f"{subject.role}.parquet", subject)
    again = audit(*(read_scores(tmp_path / f"{s.role}.parquet") for s in subjects))
    assert [f.digest() for f in again] == [f.digest() for f in findings]
