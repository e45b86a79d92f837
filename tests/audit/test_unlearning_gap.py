"""UA, RA, TA, MIA and the average gap on scores with known answers."""

import math

import numpy as np
import pytest

from expunge.audit.audit import audits, parse_config, plan_readings
from expunge.audit.collecting import collect
from expunge.audit.evidence import Evidence, Subject
from expunge.audit.gap_attack import drawn_alike, feature, modified_entropy, svc_nonmembers
from expunge.audit.gap_numbers import MeanLoss, Share, average_gap
from expunge.audit.outputs import LABEL, PREDICTION, PROBABILITIES
from expunge.audit.readings import Reading
from expunge.audit.unlearning_gap import UnlearningGapConfig, unlearning_gap
from expunge.core.errors import ConfigError, DataError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.core.sets import Sets
from expunge.data.dataset import Dataset
from expunge.engine.tasks.classifier import Classifier


def test_svc_attack():
    # The published attack on these confidences calls half of the targets non-members.
    members, nonmembers = np.array([0.99, 0.98, 0.97, 0.95]), np.array([0.5, 0.6, 0.7, 0.4])
    targets = np.array([0.96, 0.55, 0.99, 0.3])
    assert svc_nonmembers(members, nonmembers, targets).tolist() == [False, True, False, True]


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
    assert (
        found.note == "ua -2.4, ra -0.4, ta -0.3, mia +1.5"
    )  # signs: less forgotten than retraining
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
    assert after["average_gap"].note == "ua +20.0, ra +0.0; without ta, mia"


def test_the_attack_is_a_function_of_the_seed(make_subject):
    evidence = Evidence(after=make_subject("after", 4), before=None, references=(), sets="s")
    first, again = (unlearning_gap(evidence, UnlearningGapConfig(), Run(5)) for _ in range(2))
    assert [f.digest() for f in first] == [f.digest() for f in again]


SONG = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]])  # reference values of SalUn's card
LABELS = np.array([0, 1])


@pytest.fixture(scope="module")
def vectors():
    """Scores of a model whose probabilities are those of ``SONG``."""
    from torch import nn

    records = Records(("a", "b"), {"x": np.log(SONG).astype(np.float32), "y": LABELS})
    sets = Sets(forget=("a", "b"))
    reading = Reading("forget", measures=(LABEL, PROBABILITIES))
    dataset = Dataset("classifier", records)
    subject = collect(nn.Identity(), Classifier(3), dataset, sets, (reading,), Run(), role="after")
    return subject.scores[reading]


def test_features_of_known_probabilities(vectors):
    np.testing.assert_allclose(feature(vectors, "entropy")[:, 0], [0.801819, 0.897946], atol=1e-6)
    found = feature(vectors, "modified_entropy")[:, 0]
    np.testing.assert_allclose(found, [0.162167, 0.321869], atol=1e-6)
    np.testing.assert_allclose(feature(vectors, "probabilities"), SONG, atol=1e-7)
    np.testing.assert_allclose(feature(vectors, "confidence")[:, 0], [0.7, 0.6], atol=1e-6)
    np.testing.assert_array_equal(feature(vectors, "correctness")[:, 0], [1, 1])


def test_modified_entropy_is_nothing_when_sure_and_right_and_finite_when_sure_and_wrong():
    sure = np.array([[1.0, 0.0], [0.0, 1.0]])
    right, wrong = modified_entropy(sure, np.array([0, 0]))
    assert right == 0
    assert np.isfinite(wrong)
    assert wrong > 100


def test_a_feature_that_was_not_measured_is_refused(make_scores):
    with pytest.raises(DataError, match="'probabilities' was not taken"):
        feature(make_scores([-1.0]), "probabilities")


def test_the_larger_set_is_drawn_from():
    members, strangers = drawn_alike(3, 50, seed=1)  # fewer retained than test records
    assert (len(members), len(strangers)) == (3, 3)
    assert len(set(strangers)) == 3
    members, strangers = drawn_alike(50, 3, seed=1)
    assert (len(members), len(strangers)) == (3, 3)


def test_every_attack_is_a_number_of_its_own_and_the_first_one_counts(make_subject):
    evidence = Evidence(
        after=make_subject("after", 4),
        before=None,
        references=(make_subject("reference", 4, 0),),
        sets="digest",
    )
    config = UnlearningGapConfig(attacks=("correctness", "confidence"))
    after = {f.metric: f for f in unlearning_gap(evidence, config, Run()) if f.subject == "after"}
    assert after["mia"].value == pytest.approx(25)
    # Retained and test records are mostly right alike, so that an SVC can tell by nothing else:
    # it calls those that are wrong non-members.
    assert after["mia_correctness"].value == pytest.approx(20)
    assert "mia_correctness" in after["average_gap"].note
    assert "mia +" not in after["average_gap"].note
    assert "40 retained and as many test" in after["mia"].note


def test_readings_follow_the_kind_and_the_attacks(people):
    info = audits.get("unlearning_gap")

    def planned(kind, **settings):
        readings = plan_readings([(info, parse_config(info, settings))], Dataset(kind, people))
        return {reading.record_set: reading.measures for reading in readings}

    assert planned("classifier") == {"forget": (), "retain": (), "test": ()}
    assert planned("classifier", attacks=["modified_entropy"])["test"] == (LABEL, PROBABILITIES)
    assert planned("regressor") == {"forget": (PREDICTION,), "retain": (), "test": ()}
    with pytest.raises(ConfigError, match="looks at the loss"):
        planned("regressor", attacks=["entropy"])
    with pytest.raises(ConfigError, match="attacks"):
        parse_config(info, {"attacks": []})


@pytest.fixture
def make_regressor(make_scores):
    """Losses like a regressor's: target units, forgotten ones near test or near retained ones."""
    import dataclasses

    def make(role, forget, seed=None, scale=1.0):
        draw = np.random.default_rng(4)
        losses = {
            "forget": np.full(20, forget) + draw.uniform(0, 0.01, 20),
            "retain": draw.uniform(0.9, 1.1, 60),
            "test": draw.uniform(2.9, 3.1, 50),
        }
        scores = {
            Reading(name): make_scores(-scale * loss, prefix=name) for name, loss in losses.items()
        }
        own = scores[Reading("forget")]
        prediction = {PREDICTION: np.zeros((20, 1))}
        scores[Reading("forget")] = dataclasses.replace(own, measured=prediction)
        return Subject(role, f"{role}{forget}", scores, seed)

    return make


def test_a_regressor_is_told_by_its_errors_in_target_units(make_regressor):
    def findings(scale):
        evidence = Evidence(
            after=make_regressor("after", 2.5, scale=scale),
            before=make_regressor("before", 1.0, scale=scale),
            references=(make_regressor("reference", 3.0, 0, scale=scale),),
            sets="digest",
        )
        return unlearning_gap(evidence, UnlearningGapConfig(max_average_gap=1.0), Run())

    found = findings(1.0)
    after = {f.metric: f for f in found if f.subject == "after"}
    assert set(after) == {"forget_error", "retain_error", "test_error", "mia", "average_gap"}
    assert after["forget_error"].value == pytest.approx(2.505, abs=0.01)
    assert after["forget_error"].reference.gap == pytest.approx(-0.5)
    assert after["test_error"].value == pytest.approx(3.0, abs=0.05)
    assert after["forget_error"].unit == ""
    assert after["mia"].value == 100  # all look like test records, as a retrained model's do
    before = next(f for f in found if f.metric == "mia" and f.subject == "before")
    assert before.value == 0
    # (0.5 / 3.005 + 0 + 0) in percent and 0 points, over four numbers
    assert after["average_gap"].value == pytest.approx(100 * 0.5 / 3.005 / 4, abs=0.05)
    assert after["average_gap"].verdict == "fail"
    # In another unit (thousandths, say) only the errors change.
    other = {f.metric: f for f in findings(1000.0) if f.subject == "after"}
    assert other["forget_error"].value == pytest.approx(1000 * after["forget_error"].value)
    for metric in ("mia", "average_gap"):
        assert other[metric].value == pytest.approx(after[metric].value, rel=1e-5)


def test_errors_that_are_all_equal_have_no_interval():
    assert MeanLoss(np.ones(5)).interval(0) is None
    interval = MeanLoss(np.arange(5.0)).interval(0)
    assert interval.low < 2 < interval.high


@pytest.mark.parametrize("count", [0, 20])
def test_none_or_all_of_a_few_records_leave_a_gap_of_some_width(count):
    share = Share(count, 20)
    found = average_gap({"ua": share}, [{"ua": share}], 0)
    assert found.value == found.interval.low == 0
    # Clopper and Pearson allow up to 16.8 % unseen in 20; Jeffreys somewhat less.
    assert 5 < found.interval.high < 16.8
