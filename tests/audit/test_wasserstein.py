"""Wasserstein distance of predictions: golden values, properties, the floor, both kinds."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from expunge.audit.audit import audits, plan_readings
from expunge.audit.evidence import Evidence, Subject
from expunge.audit.outputs import PREDICTION
from expunge.audit.readings import Reading
from expunge.audit.wasserstein import WassersteinConfig, wasserstein, wasserstein_1
from expunge.core.run import Run
from expunge.data.dataset import Dataset

column = arrays(np.float64, (9, 2), elements=st.floats(-100, 100))


def of(*values):
    return np.array(values, dtype=float)[:, None]


def test_golden_values():
    # Deep regression unlearning, reference values 3.
    assert wasserstein_1(of(0, 1, 3), of(5, 6, 8)) == pytest.approx(5.0)
    assert wasserstein_1(of(0, 2), of(1, 1)) == pytest.approx(1.0)


@given(column, column)
def test_it_is_the_mean_distance_of_sorted_predictions_over_outputs(a, b):
    expected = np.abs(np.sort(a, axis=0) - np.sort(b, axis=0)).mean()
    assert wasserstein_1(a, b) == pytest.approx(expected, abs=1e-9)
    assert wasserstein_1(a, b) <= np.abs(a - b).mean() + 1e-9
    assert wasserstein_1(a + 3, b + 3) == pytest.approx(expected, abs=1e-9)
    assert wasserstein_1(7 * a, 7 * b) == pytest.approx(7 * expected, abs=1e-7)


@pytest.fixture
def make_subject(make_scores):
    def make(role, predictions, seed=None):
        plain = make_scores([-1.0] * len(predictions))
        taken = {PREDICTION: np.asarray(predictions, dtype=float)}
        scores = {Reading("forget"): dataclasses.replace(plain, measured=taken)}
        return Subject(role, role, scores, seed)

    return make


def findings_of(after, references, seed=0, **settings):
    evidence = Evidence(after=after, before=None, references=references, sets="s")
    return wasserstein(evidence, WassersteinConfig(**settings), Run(seed))


def named(findings, metric, subject="after"):
    return [f for f in findings if f.metric == metric and f.subject == subject]


def test_permuted_predictions_differ_by_record_and_not_in_distribution(make_subject):
    values = np.arange(40.0)[:, None]
    after, reference = make_subject("after", values[::-1]), make_subject("reference", values, 0)
    found = findings_of(after, (reference,))
    [distance], [difference] = (
        named(found, metric) for metric in ("wasserstein", "mean_absolute_difference")
    )
    assert distance.value == 0
    assert distance.interval.low == 0
    assert difference.value == pytest.approx(20.0)
    assert difference.interval.low < 20 < difference.interval.high


def test_two_retrained_models_are_the_floor(make_subject):
    base = np.random.default_rng(0).normal(size=(200, 2))
    references = tuple(make_subject("reference", base + shift, i) for i, shift in enumerate((0, 1)))
    found = findings_of(make_subject("after", base + 4), references, max_distance=3.0)
    [after] = named(found, "wasserstein")
    assert after.value == pytest.approx((4 + 3) / 2)
    floor = named(found, "wasserstein", "reference")
    assert [f.value for f in floor] == pytest.approx([1.0, 1.0])
    assert after.reference.gap == pytest.approx(2.5)
    assert after.verdict == "fail"


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_intervals_cover_the_distance_of_the_populations(make_subject, shift):
    hits = 0
    for seed in range(20):
        draw = np.random.default_rng(seed)
        common = 3 * draw.normal(size=100)
        first, second = (common + draw.normal(size=100) / 2 for _ in range(2))
        after = make_subject("after", first[:, None] + shift)
        found = findings_of(after, (make_subject("reference", second[:, None], 0),), seed)
        [distance] = named(found, "wasserstein")
        hits += distance.interval.low <= shift <= distance.interval.high
    assert hits >= 17


def test_a_classifier_is_compared_by_its_confidence(make_scores):
    def subject(role, confidence, seed=None):
        return Subject(role, role, {Reading("forget"): make_scores(np.log(confidence))}, seed)

    after, reference = subject("after", [0.9, 0.5]), subject("reference", [0.4, 0.6], 0)
    [found] = named(findings_of(after, (reference,)), "wasserstein")
    assert found.value == pytest.approx(0.2, abs=1e-6)  # 0.9 to 0.6, 0.5 to 0.4


def test_without_references_there_is_nothing_to_compare_with(make_subject):
    found = findings_of(make_subject("after", of(1, 2)), (), max_distance=1.0)
    assert {(f.value, f.note) for f in found} == {
        (None, "no other retrained model to compare with")
    }
    assert found[0].verdict == "inconclusive"


def test_only_a_regressor_needs_its_outputs_measured(people):
    info = audits.get("wasserstein")
    for kind, expected in (("regressor", (PREDICTION,)), ("classifier", ())):
        [reading] = plan_readings([(info, info.config())], Dataset(kind, people))
        assert (reading.record_set, reading.measures) == ("forget", expected)
