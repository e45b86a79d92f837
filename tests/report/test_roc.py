import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from expunge.audit.stats import tpr_at_fpr
from expunge.report.roc import membership, roc, roc_curves, rocs

# Few distinct values, so that ties are common.
LOSSES = st.lists(st.integers(0, 12), min_size=1, max_size=40).map(lambda v: np.array(v) / 4)


@given(LOSSES, LOSSES)
def test_curve_and_area_are_those_of_another_library(members, others):
    found = roc(members, others)
    labels = np.repeat([1, 0], [len(members), len(others)])
    suspicion = -np.concatenate([members, others])
    assert found.auc == pytest.approx(roc_auc_score(labels, suspicion))
    fpr, tpr, _ = roc_curve(labels, suspicion, drop_intermediate=False)
    # Every point of the other curve lies on ours, and every corner of ours is a point of theirs.
    for x, y in zip(fpr, tpr, strict=True):
        on = [
            np.isclose(y, np.interp(x, found.fpr_K[i : i + 2], found.tpr_K[i : i + 2]))
            or (
                found.fpr_K[i] == found.fpr_K[i + 1]
                and np.isclose(x, found.fpr_K[i])
                and found.tpr_K[i] <= y <= found.tpr_K[i + 1]
            )
            for i in range(len(found.fpr_K) - 1)
            if found.fpr_K[i] - 1e-12 <= x <= found.fpr_K[i + 1] + 1e-12
        ]
        assert any(on)
    points = set(zip(fpr.round(9), tpr.round(9), strict=True))
    assert set(zip(found.fpr_K.round(9), found.tpr_K.round(9), strict=True)) <= points


@given(LOSSES, st.integers(1, 5), LOSSES)
def test_the_marked_point_is_the_one_that_the_audit_reports(members, repeats, others):
    others = np.tile(others, 60 * repeats)  # so that 1 % of them is sometimes a record or more
    hits, n = tpr_at_fpr(-members, -others, 0.01)
    fpr, tpr = roc(members, others).low
    assert fpr <= 0.01 + 1e-9
    assert tpr == pytest.approx(hits / n)


@given(LOSSES, LOSSES)
def test_membership_averages_to_the_area(members, others):
    assert membership(members, others).mean() == pytest.approx(roc(members, others).auc)
    assert membership(others, others).mean() == pytest.approx(0.5)


def test_membership_of_one_record_is_the_share_of_held_out_records_it_beats():
    others = np.array([1.0, 2.0, 3.0, 4.0])
    assert membership(np.array([0.5, 2.0, 9.0]), others).tolist() == [1.0, 0.625, 0.0]


def test_perfect_separation_goes_through_the_corner():
    found = roc(np.array([0.1, 0.2, 0.3]), np.array([1.0, 2.0]))
    assert found.auc == 1.0
    assert found.low == (0.0, 1.0)
    assert list(zip(found.fpr_K, found.tpr_K, strict=True)) == [(0, 0), (0, 1), (1, 1)]


def test_without_held_out_records_there_is_no_curve():
    some = np.ones(3)
    losses = {
        "before": {"forget": some, "holdout": some},
        "after": {"forget": some},
        "reference-0": {"forget": some, "holdout": np.empty(0)},
    }
    assert list(rocs(losses)) == ["before"]


def test_every_model_has_a_curve_with_its_area_named():
    rng = np.random.default_rng(0)
    sets = {"forget": rng.random(30), "holdout": rng.random(30) + 0.3}
    curves = rocs({name: sets for name in ("before", "after", "reference-0", "reference-1")})
    svg = str(roc_curves(curves))
    root = ET.fromstring(svg.replace("xlink:href", "href"))
    texts = ["".join(node.itertext()).strip() for node in root.iter("text")]
    area = f"AUC {curves['after'].auc:.2f}"
    for name in ("before", "after", "retrained 1", "retrained 2"):
        assert f"{name}, {area}" in texts
    assert "cannot tell" in texts
    assert not re.search(r"#0[1-6]0", svg)


def test_many_records_do_not_swell_the_curve():
    members, others = np.linspace(0, 1, 5000), np.linspace(1, 2, 5000)
    assert len(roc(members, others).fpr_K) == 4  # the two sets share one value
