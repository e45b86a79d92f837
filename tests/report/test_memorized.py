import xml.etree.ElementTree as ET

import pytest

from expunge.core.finding import Finding
from expunge.report.comparison import comparisons
from expunge.report.facts import read_facts
from expunge.report.memorized import MAX_NUMBERS, dumbbells, labels, memorized, shares


def found(subject="after", **changes):
    base = {
        "audit": "memorization",
        "metric": "m",
        "title": "T (t)",
        "value": 0.5,
        "n": 3,
        "direction": "reference",
        "record_set": "forget",
    }
    return Finding(subject=subject, **{**base, **changes})


def three(**changes):
    return [found(subject, **changes) for subject in ("before", "after", "reference")]


def picked(findings):
    return [(one.after.audit, one.after.metric) for one in memorized(comparisons(findings))]


def test_numbers_about_memorization_come_first():
    findings = [
        *three(audit="theirs", metric="score"),
        *three(audit="tofu", metric="rouge_l"),
        *three(audit="tofu", metric="probability"),
        *three(audit="muse", metric="verbatim"),
        *three(metric="verbatim"),
    ]
    assert picked(findings) == [
        ("memorization", "verbatim"),
        ("muse", "verbatim"),
        ("tofu", "probability"),
        ("tofu", "rouge_l"),
        ("theirs", "score"),
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"audit": "mia"},
        {"direction": "lower"},
        {"record_set": "retain"},
        {"unit": "nats"},
        {"value": 1.5},
        {"value": -0.1},
        {"unit": "%", "value": 101.0},
        {"value": None, "note": "nothing to ask"},
        {"metric": "privleak", "unit": "%", "value": 40.0},
        {"metric": "min_k_auc"},
    ],
)
def test_what_is_no_share_of_the_forgotten_records_is_left_out(changes):
    assert picked(three()) == [("memorization", "m")]
    assert picked(three(**changes)) == []


def test_knowledge_that_muse_asks_of_a_set_of_its_own_is_about_the_forgotten():
    probe = {"audit": "muse", "record_set": "forget_questions"}
    assert picked(three(metric="knowledge", **probe)) == [("muse", "knowledge")]
    assert picked(three(metric="verbatim", **probe)) == []


def test_a_number_without_anything_beside_it_is_left_out():
    assert picked([found()]) == []
    assert picked([found(), found("reference", value=None)]) == []
    assert picked([found(), found("before")]) == [("memorization", "m")]


def test_percent_become_shares_and_references_their_mean():
    (one,) = comparisons(
        [
            found("before", unit="%", value=97.0),
            found(unit="%", value=12.0),
            found("reference", unit="%", value=9.0),
            found("reference", unit="%", value=11.0),
        ]
    )
    assert shares(one) == pytest.approx({"before": 0.97, "after": 0.12, "reference": 0.10})


def test_equal_short_names_are_written_in_full():
    findings = [
        *three(title="Ratio (a)"),
        *three(metric="k", title="Ratio (b)"),
        *three(metric="l"),
    ]
    names = labels(memorized(comparisons(findings)))
    assert names == ["Ratio (a) (memorization)", "Ratio (b) (memorization)", "T (memorization)"]


def test_at_most_eight_are_drawn():
    findings = [one for i in range(20) for one in three(metric=f"m{i}")]
    assert len(picked(findings)) == MAX_NUMBERS


def test_the_plot_names_every_number_and_role(language_run):
    numbers = memorized(comparisons(read_facts(language_run).findings))
    root = ET.fromstring(str(dumbbells(numbers)).replace("xlink:href", "href"))
    texts = ["".join(node.itertext()).strip() for node in root.iter("text")]
    assert {"before", "after", "retrained", "Truth ratio (tofu)"} <= set(texts)
    assert len(numbers) == 3
