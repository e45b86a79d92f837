import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from expunge.report.comparison import comparisons
from expunge.report.facts import History, read_facts
from expunge.report.losses import losses_of, read_scored
from expunge.report.plots import (
    MAX_POINTS,
    forget_utility_plane,
    loss_bins,
    loss_curves,
    loss_distributions,
    plane_numbers,
    plane_points,
    terms,
)


@pytest.fixture
def facts(run_folder):
    return read_facts(run_folder)


def texts(svg):
    root = ET.fromstring(str(svg).replace("xlink:href", "href"))
    return ["".join(node.itertext()).strip() for node in root.iter("text")]


def test_curves_name_every_loop(facts):
    svg = loss_curves(facts.histories)
    assert {"Forgetting", "Training", "forget", "retain", "before", "retrained 2"} <= set(
        texts(svg)
    )


def test_no_steps_no_curves():
    assert loss_curves({"forget": History([])}) is None


def test_terms_that_take_turns_are_followed_over_their_own_steps():
    steps = [{"step": 1, "lr": 0.1, "forget": 3.0}, {"step": 2, "retain": 1.0}]
    found = terms(History([*steps, {"step": 3, "forget": 2.0}]))
    assert found["forget"].steps.tolist() == [1, 3]
    assert found["forget"].values.tolist() == [3.0, 2.0]
    assert found["retain"].steps.tolist() == [2]


def test_long_histories_are_averaged_over_spans():
    steps = [{"step": i + 1, "lr": 0.1, "grad_norm": 1.0, "forget": 1.0} for i in range(5000)]
    (path,) = re.findall(r'<path d="([^"]*)" clip-path[^>]*var\(--after\)', loss_curves(
        {"forget": History(steps)}
    ))  # fmt: skip
    assert path.count("L") < MAX_POINTS


def test_the_plane_holds_every_model(facts):
    pair = plane_numbers(comparisons(facts.findings))
    points = plane_points(pair)
    assert [name for _, name, _, _ in points] == ["before", "after", "retrained 1", "retrained 2"]
    assert {"before", "after", "retrained"} <= set(texts(forget_utility_plane(pair)))


def test_without_the_ceiling_the_plane_falls_back_to_probability(language_run):
    findings = [
        found
        for found in read_facts(language_run).findings
        if not (found.metric == "forget_quality_log10" and found.subject == "reference")
    ]
    pair = plane_numbers(comparisons(findings))
    assert pair[1].after.metric == "probability"


def test_no_known_numbers_no_plane():
    assert plane_numbers([]) is None


def test_bins_cover_all_models_and_shares_sum_to_one_hundred(run_folder, facts):
    losses = losses_of(read_scored(run_folder, facts.models))
    edges = loss_bins(losses, "forget")
    everything = np.concatenate([sets["forget"] for sets in losses.values()])
    assert edges[0] == pytest.approx(everything.min())
    assert edges[-1] == pytest.approx(everything.max())
    assert {"before", "after", "retrained"} <= set(
        texts(loss_distributions(losses, "forget", edges))
    )


def test_equal_and_vanishing_losses_have_bins():
    edges = loss_bins({"after": {"forget": np.zeros(3)}}, "forget")
    assert np.all(np.diff(edges) > 0)
    assert loss_bins({"after": {}}, "forget") is None


def test_plots_follow_the_pages_colours_and_load_nothing(facts):
    svg = str(loss_curves(facts.histories))
    assert "var(--after)" in svg
    assert 'role="img" aria-label="Line plot' in svg
    assert re.search(r"#0[1-6]0", svg) is None
    assert not re.search(r"http|<style|<script|<image|<a\b", svg)
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', svg)) <= set(ids)
