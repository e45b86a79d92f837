"""Distances between outputs of two models: known values, bounds, the floor of references."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import rel_entr

from expunge.audit.evidence import Evidence, Subject
from expunge.audit.output_distance import (
    OutputDistanceConfig,
    activation_distance,
    jensen_shannon,
    output_distance,
    same_choice,
)
from expunge.audit.outputs import PROBABILITIES
from expunge.audit.readings import Reading
from expunge.core.errors import DataError
from expunge.core.run import Run


def oracle(p, q):
    m = (np.asarray(p) + q) / 2
    return (rel_entr(p, m) + rel_entr(q, m)).sum(-1) / 2


def simplex(rows=4, classes=3):
    numbers = arrays(np.float64, (rows, classes), elements=st.floats(0, 1))
    return numbers.map(lambda x: (x + 1e-9) / (x + 1e-9).sum(1, keepdims=True))


def test_known_divergence():
    # Reference values of the corrective-unlearning card: 1 - mean divergence = 0.946596.
    p, q = np.array([[0.9, 0.1], [0.4, 0.6]]), np.full((2, 2), 0.5)
    assert 1 - jensen_shannon(p, q).mean() == pytest.approx(0.946596, abs=1e-6)


def test_opposite_certainties_are_as_far_apart_as_can_be():
    p, q = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    assert activation_distance(p, q)[0] == pytest.approx(math.sqrt(2))
    assert jensen_shannon(p, q)[0] == pytest.approx(math.log(2))
    assert same_choice(p, q)[0] == 0


@given(simplex(), simplex())
def test_divergence_is_that_of_scipy_symmetric_and_bounded(p, q):
    found = jensen_shannon(p, q)
    np.testing.assert_allclose(found, oracle(p, q), atol=1e-7)
    np.testing.assert_allclose(found, jensen_shannon(q, p), atol=1e-15)
    assert (found >= 0).all()
    assert (found <= math.log(2) + 1e-12).all()
    assert (jensen_shannon(p, p) == 0).all()
    assert (activation_distance(p, q) <= math.sqrt(2) + 1e-12).all()


@pytest.fixture
def make_subject(make_scores):
    def make(role, probabilities, seed=None, num_test=3):
        scores = {}
        for name, size in (("forget", len(probabilities)), ("test", num_test)):
            plain = make_scores([-1.0] * size, prefix=name)
            taken = np.asarray(probabilities, float)[:size].reshape(size, 2)
            scores[Reading(name)] = dataclasses.replace(plain, measured={PROBABILITIES: taken})
        return Subject(role, role, scores, seed)

    return make


SURE, UNSURE, OTHER = [[1.0, 0.0]] * 40, [[0.6, 0.4]] * 40, [[0.4, 0.6]] * 40


def findings_of(after, references, **settings):
    evidence = Evidence(after=after, before=None, references=references, sets="s")
    return output_distance(evidence, OutputDistanceConfig(**settings), Run())


def test_each_model_is_compared_with_the_references_and_these_with_each_other(make_subject):
    references = (make_subject("reference", UNSURE, 0), make_subject("reference", OTHER, 1))
    found = findings_of(make_subject("after", SURE), references, max_divergence=0.1)
    after = {f.metric: f for f in found if f.subject == "after"}
    near, far = math.hypot(0.4, 0.4), math.hypot(0.6, 0.6)
    assert after["activation_distance_forget"].value == pytest.approx((near + far) / 2)
    assert after["completeness_forget"].value == pytest.approx(0.5)
    assert after["jaccard_forget"].value == pytest.approx(0.5)  # mean of 1 / (2 - 1) and 0
    floor = [f for f in found if f.subject == "reference" and f.metric == "js_divergence_forget"]
    expected = oracle(UNSURE[0], OTHER[0])
    assert [f.value for f in floor] == pytest.approx([expected] * 2)
    divergence = after["js_divergence_forget"]
    assert divergence.reference.gap == pytest.approx(divergence.value - expected)
    assert divergence.reference.noise_floor is None  # two references share one number
    assert divergence.verdict == "fail"
    assert after["js_divergence_test"].threshold is None
    low, high = (getattr(after["completeness_forget"].interval, end) for end in ("low", "high"))
    assert low < 0.5 < high


def test_jaccard_is_that_of_the_sets_of_records_with_their_choices(make_subject):
    mixed = [[0.9, 0.1]] * 30 + [[0.1, 0.9]] * 10
    after, reference = make_subject("after", mixed), make_subject("reference", SURE, 0)
    found = findings_of(after, (reference,))
    value = next(f.value for f in found if f.metric == "jaccard_forget" and f.subject == "after")
    one, other = ({(row, int(np.argmax(p))) for row, p in enumerate(x)} for x in (mixed, SURE))
    assert value == pytest.approx(len(one & other) / len(one | other))  # 30 / 50


def test_the_same_model_is_at_no_distance(make_subject):
    found = findings_of(make_subject("after", SURE), (make_subject("reference", SURE, 0),))
    after = {f.metric: f for f in found if f.subject == "after"}
    for name in ("forget", "test"):
        assert after[f"activation_distance_{name}"].value == 0
        assert after[f"completeness_{name}"].value == 1
        assert after[f"js_divergence_{name}"].interval.high > 0  # forty records prove little


def test_without_references_or_test_records_the_reason_is_told(make_subject):
    found = findings_of(make_subject("after", SURE, num_test=0), (), max_divergence=0.1)
    told = {f.metric: (f.value, f.note, f.verdict) for f in found}
    no = "no other retrained model to compare with"
    assert told["js_divergence_forget"] == (None, no, "inconclusive")
    assert told["completeness_test"][1] == "there are no test records"


def test_scores_without_probabilities_are_refused(make_scores):
    scores = {Reading(name): make_scores([-1.0]) for name in ("forget", "test")}
    with pytest.raises(DataError, match="probabilities"):
        findings_of(Subject("after", "a", scores), (Subject("reference", "r", scores, 0),))
