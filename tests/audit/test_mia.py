"""The loss attack on planted members, on strangers, and on what stands out upwards."""

import numpy as np
import pytest

from expunge.audit.evidence import Evidence, Measurement, Subject
from expunge.audit.mia import MiaConfig, distance, mia
from expunge.audit.readings import Reading
from expunge.core.finding import Interval
from expunge.core.run import Run


@pytest.fixture
def attack(make_scores):
    rng = np.random.default_rng(0)
    holdout = make_scores(-rng.uniform(1, 3, 100), prefix="h")

    def subject(role, low, high, seed=None):
        forget = make_scores(-np.random.default_rng(seed or 9).uniform(low, high, 60))
        return Subject(role, role, {Reading("forget"): forget, Reading("holdout"): holdout}, seed)

    def run(low, high, **settings):
        evidence = Evidence(
            after=subject("after", low, high),
            before=subject("before", 0.0, 0.5),
            references=tuple(subject("reference", 1, 3, seed) for seed in (1, 2)),
            sets="digest",
        )
        found = mia(evidence, MiaConfig(**settings), Run())
        return {(f.metric, f.subject): f for f in found if f.subject != "reference"}, found

    return run


def test_members_have_lower_loss(attack):
    found, everything = attack(1, 3, max_auc_gap=0.2)
    assert found["auc", "before"].value == 1
    assert found["tpr", "before"].value == 1
    assert found["auc", "after"].value == pytest.approx(0.5, abs=0.15)
    assert found["auc", "after"].interval.low < 0.5 < found["auc", "after"].interval.high
    assert found["auc", "before"].reference.gap > 0.3
    assert found["auc_gap", "after"].verdict == "pass"
    assert found["auc_gap", "before"].verdict == "not_applicable"
    references = [f for f in everything if f.metric == "auc_gap" and f.subject == "reference"]
    floor = found["auc", "after"].reference.noise_floor
    assert [f.value for f in references] == pytest.approx([floor, floor])


def test_pushing_losses_too_far_is_caught_as_well(attack):
    found, _ = attack(5, 9, max_auc_gap=0.2)
    assert found["auc", "after"].value == 0
    assert found["auc", "after"].reference.gap < -0.3
    assert found["auc_gap", "after"].verdict == "fail"


def test_without_strangers_there_is_no_verdict(make_scores):
    scores = {Reading("forget"): make_scores([-1.0, -2.0]), Reading("holdout"): make_scores([])}
    evidence = Evidence(after=Subject("after", "a", scores), before=None, references=(), sets="s")
    for finding in mia(evidence, MiaConfig(max_auc_gap=0.1), Run()):
        assert finding.value is None
        assert "no held-out records" in finding.note
    assert finding.verdict == "inconclusive"


def test_distance_folds_the_interval_at_zero():
    found = Measurement(0.6, 10, Interval(low=0.45, high=0.75))
    around = distance(found, [Measurement(0.5, 10), Measurement(0.6, 10)])
    assert around.value == pytest.approx(0.05)
    assert (around.interval.low, around.interval.high) == pytest.approx((0, 0.2))
    above = distance(found, [Measurement(0.9, 10)])
    assert (above.interval.low, above.interval.high) == pytest.approx((0.15, 0.45))
    assert distance(found, []).value is None
