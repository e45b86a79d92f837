"""UA, RA, TA, MIA and the average gap on scores with known answers."""

import math

import numpy as np
import pytest

from expunge.audit.evidence import Evidence, Subject
from expunge.audit.readings import Reading
from expunge.audit.unlearning_gap import (
    Share,
    UnlearningGapConfig,
    average_gap,
    svc_nonmembers,
    unlearning_gap,
)
from expunge.core.run import Run


def test_svc_attack():
    # The published attack on these confidences calls half of the targets non-members.
    members, nonmembers = np.array([0.99, 0.98, 0.97, 0.95]), np.array([0.5, 0.6, 0.7, 0.4])
    targets = np.array([0.96, 0.55, 0.99, 0.3])
    assert svc_nonmembers(members, nonmembers, targets) == 2


def test_average_gap():
    # SalUn on CIFAR-10 against retraining: gaps 2.39, 0.38, 0.33, 1.51 (UA, RA, TA, MIA)
    def shares(*percents):
        names = ("ua", "ra", "ta", "mia")
        return {
            name: Share(round(100 * p), 10_000) for name, p in zip(names, percents, strict=True)
        }

    retrained = shares(5.24, 100, 94.26, 12.88)
    found = average_gap(shares(2.85, 99.62, 93.93, 14.39), [retrained], 0)
    assert found.value == pytest.approx(1.1525, abs=1e-9)
    assert found.interval.low < found.value < found.interval.high
    assert average_gap(retrained, [retrained, retrained], 0).value == 0
    assert average_gap(retrained, [], 0).value is None


@pytest.fixture
def make_subject(make_scores):
    def make(role, wrong, seed=None, num_test=50):
        confident, unsure = [math.log(0.99)] * 40, [math.log(0.5)] * num_test
        scores = {
            Reading("forget"): make_scores(
                [math.log(0.99)] * 15 + [math.log(0.5)] * 5, wrong=range(wrong)
            ),
            Reading("retain"): make_scores(confident, prefix="k", wrong=[0]),
            Reading("test"): make_scores(unsure, prefix="t", wrong=range(num_test // 5)),
        }
        return Subject(role, f"{role}{wrong}", scores, seed)

    return make


def test_numbers_of_known_scores(make_subject):
    evidence = Evidence(
        after=make_subject("after", 4),
        before=make_subject("before", 0),
        references=(make_subject("reference", 3, 0), make_subject("reference", 5, 1)),
        sets="digest",
    )
    findings = unlearning_gap(evidence, UnlearningGapConfig(max_average_gap=50), Run())
    after = {f.metric: f for f in findings if f.subject == "after"}
    assert after["ua"].value == pytest.approx(20)  # 4 of 20
    assert after["ra"].value == pytest.approx(97.5)  # 39 of 40
    assert after["ta"].value == pytest.approx(80)  # 40 of 50
    assert after["mia"].value == pytest.approx(25)  # the 5 unsure of 20
    assert {f.unit for f in after.values()} == {"%", "points"}
    assert after["ua"].reference.values == (15, 25)
    assert after["ua"].reference.gap == pytest.approx(0)
    assert after["ua"].reference.noise_floor == pytest.approx(10)
    # scipy.stats.binomtest(4, 20).proportion_ci(method="exact")
    ends = (after["ua"].interval.low, after["ua"].interval.high)
    assert ends == pytest.approx((5.733400, 43.661403), abs=1e-4)
    assert after["average_gap"].value == pytest.approx(0)
    assert after["average_gap"].verdict == "pass"
    gaps = [f.value for f in findings if f.metric == "average_gap" and f.subject == "reference"]
    assert gaps == pytest.approx([2.5, 2.5])  # UA alone differs, by 10 points
    before = next(f for f in findings if f.metric == "ua" and f.subject == "before")
    assert before.reference.gap == pytest.approx(-20)


def test_without_test_records_the_rest_still_counts(make_subject):
    evidence = Evidence(
        after=make_subject("after", 4, num_test=0),
        before=None,
        references=(make_subject("reference", 0, 0, num_test=0),),
        sets="digest",
    )
    findings = unlearning_gap(evidence, UnlearningGapConfig(), Run())
    after = {f.metric: f for f in findings if f.subject == "after"}
    assert after["ta"].value is None
    assert after["mia"].value is None
    assert "no retained or test records" in after["mia"].note
    assert after["average_gap"].value == pytest.approx(10)  # mean of UA's 20 and RA's 0
    assert after["average_gap"].note == "without ta, mia"


def test_the_attack_is_a_function_of_the_seed(make_subject):
    evidence = Evidence(after=make_subject("after", 4), before=None, references=(), sets="s")
    first, again = (unlearning_gap(evidence, UnlearningGapConfig(), Run(5)) for _ in range(2))
    assert [f.digest() for f in first] == [f.digest() for f in again]
