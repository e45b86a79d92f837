"""The likelihood-ratio attack on planted models, beside a normal distribution by hand."""

import numpy as np
import pytest
from scipy import special, stats
from sklearn.metrics import roc_auc_score

from expunge.audit.audit import audits, parse_config, plan_readings
from expunge.audit.evidence import Evidence, Subject
from expunge.audit.lira import LiraConfig, lira
from expunge.audit.mia import MiaConfig, mia
from expunge.audit.readings import Reading
from expunge.core.errors import ConfigError
from expunge.core.run import Run
from expunge.data.dataset import Dataset

FORGET, HOLDOUT = Reading("forget"), Reading("holdout")
SIZES = {FORGET: 50, HOLDOUT: 60}


@pytest.fixture
def models(make_scores):
    """Records differ much more in difficulty than two models do on one record."""
    rng = np.random.default_rng(0)
    hard = {reading: rng.normal(-1, 4, size) for reading, size in SIZES.items()}
    rough = {reading: rng.uniform(0.05, 1.5, size) for reading, size in SIZES.items()}

    def model(role, learned, seed=None, few=None):
        draw = np.random.default_rng([5, seed or 0])
        scores = {}
        for reading, size in SIZES.items():
            phi = hard[reading] + rough[reading] * draw.normal(size=size)
            if reading == FORGET:
                phi = (phi + learned * rough[reading])[:few]
            scores[reading] = make_scores(special.log_expit(phi), prefix=reading.record_set)
        return Subject(role, role, scores, seed)

    def make(count, learned=3.0, few=None):
        references = tuple(model("reference", 0.0, seed, few) for seed in range(1, count + 1))
        return Evidence(model("after", learned, None, few), None, references, "sets")

    return make


def phi_of(subject):
    """Return the logits of the probabilities of both sets, forgotten records first."""
    return np.concatenate(
        [special.logit(np.exp(-subject.scores[r].loss_R.astype(np.float64))) for r in SIZES]
    )


def values(findings, metric):
    return [f.value for f in findings if f.metric == metric]


@pytest.mark.parametrize(("count", "fixed"), [(12, False), (12, True), (4, None), (8, None)])
def test_areas_are_those_of_a_normal_distribution_by_hand(models, count, fixed):
    shown = models(count)
    found = values(lira(shown, LiraConfig(fixed_variance=fixed), Run()), "auc")
    labels = np.repeat([1, 0], [*SIZES.values()])
    one_for_all = count < 8 if fixed is None else fixed
    for subject, area in zip(shown, found, strict=True):
        table = np.stack([phi_of(r) for r in shown.references if r is not subject])
        spread = table.std(axis=0, ddof=1)
        if one_for_all:
            spread = np.sqrt((spread**2).mean())
        sure = stats.norm.logcdf((phi_of(subject) - table.mean(axis=0)) / spread)
        assert area == pytest.approx(roc_auc_score(labels, sure), abs=1e-3)


def test_it_sees_what_the_loss_alone_cannot(models):
    shown = models(12)
    plain = mia(shown, MiaConfig(attacks=("loss",)), Run())
    found = lira(shown, LiraConfig(), Run())
    ratio = values(found, "auc")
    assert values(plain, "auc")[0] < 0.75
    assert ratio[0] > 0.95
    assert all(abs(area - 0.5) < 0.15 for area in ratio[1:])
    assert values(found, "tpr")[0] > 3 * values(plain, "tpr")[0]
    after = next(f for f in found if f.metric == "auc")
    assert after.reference.gap > 0.3
    assert after.interval.low < after.value <= after.interval.high


def test_a_model_like_the_retrained_ones_passes_and_one_that_remembers_fails(models):
    settings = LiraConfig(max_auc_gap=0.25)
    for learned, verdict in ((0.0, "pass"), (5.0, "fail")):
        found = lira(models(12, learned), settings, Run())
        gap = next(f for f in found if f.metric == "auc_gap" and f.subject == "after")
        assert gap.verdict == verdict


def test_a_bound_on_few_records_is_not_judged(models):
    told = "49 forgotten and 60 held-out records; a bound is judged on 50 or more of each"
    for few, verdict, note in ((50, "fail", ""), (49, "inconclusive", told)):
        found = lira(models(12, 5.0, few), LiraConfig(max_auc_gap=0.1), Run())
        gap = next(f for f in found if f.metric == "auc_gap" and f.subject == "after")
        assert (gap.verdict, gap.note) == (verdict, note)


@pytest.mark.parametrize("count", [0, 1])
def test_without_two_retrained_models_there_is_no_number(models, count):
    found = lira(models(count), LiraConfig(max_auc_gap=0.1), Run())
    for finding in found:
        assert finding.value is None
        assert "needs 2 retrained models" in finding.note
    judged = [f.verdict for f in found if f.threshold is not None]
    assert judged == ["inconclusive"]


def test_of_two_retrained_models_neither_can_be_attacked(models):
    found = lira(models(2), LiraConfig(), Run())
    after, *references = [f for f in found if f.metric == "auc"]
    assert after.value is not None
    assert after.reference is None
    assert [f.value for f in references] == [None, None]
    assert "there are 1" in references[0].note
    gap = next(f for f in found if f.metric == "auc_gap")
    assert gap.value is None
    assert "no other retrained model" in gap.note


def test_without_strangers_there_is_no_number(make_scores):
    scores = {FORGET: make_scores([-1.0, -2.0]), HOLDOUT: make_scores([])}
    subjects = [Subject("reference", "r", scores, seed) for seed in (1, 2)]
    shown = Evidence(Subject("after", "a", scores), None, tuple(subjects), "sets")
    found = lira(shown, LiraConfig(), Run())
    assert all(f.value is None and "no held-out records" in f.note for f in found)


def test_a_certain_answer_and_a_lost_one_stay_finite(make_scores):
    scores = {FORGET: make_scores([0.0, -1000.0]), HOLDOUT: make_scores([-1.0, -2.0], prefix="h")}
    subjects = [Subject("reference", "r", scores, seed) for seed in (1, 2)]
    shown = Evidence(Subject("after", "a", scores), None, tuple(subjects), "sets")
    for fixed in (True, False):
        found = lira(shown, LiraConfig(fixed_variance=fixed), Run())
        assert values(found, "auc")[0] == 0.5  # all models agree, so nothing stands out


def test_it_reads_what_mia_reads(people):
    data = Dataset("causal_lm", people)
    infos = [audits.get(name) for name in ("lira", "mia")]
    together = plan_readings([(info, info.config()) for info in infos], data)
    assert [reading.record_set for reading in together] == ["forget", "holdout"]


def test_wrong_settings_are_refused():
    with pytest.raises(ConfigError, match="fpr"):
        parse_config(audits.get("lira"), {"fpr": 1.0})
