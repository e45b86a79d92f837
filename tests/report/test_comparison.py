import pytest

from expunge.core.errors import IntegrityError
from expunge.core.finding import Finding
from expunge.report.comparison import by_record_set, comparisons, overall, remarks
from expunge.report.facts import read_facts


def found(subject="after", **changes):
    base = {"audit": "a", "metric": "m", "title": "T", "value": 0.5, "n": 3, "direction": "none"}
    return Finding(subject=subject, **{**base, **changes})


def test_numbers_of_one_metric_stand_side_by_side(language_run):
    one = next(
        c
        for c in comparisons(read_facts(language_run).findings)
        if c.after.metric == "auc"
    )  # fmt: skip
    assert (one.before.value, one.after.value) == (0.99, 0.56)
    assert one.retrained == pytest.approx(0.525)
    assert one.gap == pytest.approx(0.035)
    assert one.noise_floor == pytest.approx(0.03)
    assert not one.within_noise
    assert one.label == "Loss attack, area under the ROC curve"


def test_record_sets_come_in_reading_order_with_the_whole_model_last(language_run):
    groups = by_record_set(comparisons(read_facts(language_run).findings))
    assert list(groups) == ["forget", "retain", "world_facts", ""]


def test_a_reference_without_the_number_does_not_enter_the_mean():
    (one,) = comparisons(
        [found(), found("reference", value=None), found("reference", value=0.25)]
    )  # fmt: skip
    assert one.retrained == 0.25


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["pass", "fail", "inconclusive"], "fail"),
        (["pass", "inconclusive"], "inconclusive"),
        (["pass", "not_applicable"], "pass"),
        (["not_applicable"], "not_applicable"),
        ([], "not_applicable"),
    ],
)
def test_inconclusive_is_never_rounded_up(verdicts, expected):
    compared = comparisons(
        [found(metric=f"m{i}", verdict=verdict) for i, verdict in enumerate(verdicts)]
    )
    assert overall(compared) == expected


def test_a_number_without_the_new_model_is_refused():
    with pytest.raises(IntegrityError, match=r"a\.m has no value"):
        comparisons([found("before")])


def test_a_remark_is_told_once_for_all_its_numbers():
    told = [found(metric=m, title=f"{m} (x)", note="few records") for m in ("p", "log p")]
    compared = comparisons([*told, found("before", metric="p", note="of before"), found()])
    assert remarks(compared) == {"few records": ["p", "log p"]}
