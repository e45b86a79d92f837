"""The comparison of language-model methods: its rows, its jobs, its table, and being stopped."""

import dataclasses
import json

import pytest
from refusals import refused

from expunge.core.errors import ConfigError
from expunge.core.run import Run
from expunge.forget.method import methods, parse_config
from expunge.report.bench import body, cells, head, markdown
from expunge.workloads import lm_fixtures
from expunge.workloads.lm_arms import ARMS
from expunge.workloads.lm_fixtures import FIXTURES
from expunge.workloads.workload import run_workload, workloads

# Language-model methods that the table leaves out, and why.
NOT_COMPARED = {
    **dict.fromkeys(
        ("cfk", "concept", "euk", "l1_sparse", "neggrad_plus", "salun_soft"),
        "a classifier's method that works on language models too; see the bench vision",
    ),
    "finetune": "it reads no forget record",
    "random_label": "on a language model it is idk with another schedule",
    "retrain": "it is what the others are compared with",
    "salun": "on a language model it is idk under a mask",
}


@pytest.mark.parametrize("fixture", FIXTURES)
@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.label)
def test_every_row_has_settings_that_its_method_takes(arm, fixture):
    known = FIXTURES[fixture]
    settings = arm.settings_on(fixture, known.schedule, known.scope)
    config = parse_config(methods.get(arm.method), settings)
    if not arm.own_scope and fixture == "people":
        assert config.scope.last_layers == 8


def test_every_language_model_method_has_a_row():
    compared = {arm.method for arm in ARMS}
    able = {info.name for info in methods if "causal_lm" in info.kinds}
    assert able - compared == NOT_COMPARED.keys()
    assert len({arm.label for arm in ARMS}) == len(ARMS)


@pytest.fixture
def small(monkeypatch, tmp_path, in_process):
    """The country facts at a size of seconds: a tiny model that learns for one epoch."""
    whole = FIXTURES["country_facts"]
    tiny = dataclasses.replace(
        whole,
        model=("tiny_gpt", {"width": 16, "layers": 1, "heads": 2}),
        training={"epochs": 1, "batch_size": 64, "lr": 4e-3},
        schedule={"epochs": 1, "batch_size": 24, "lr": 1e-3},
        max_records=4,
    )
    monkeypatch.setitem(lm_fixtures.FIXTURES, "country_facts", tiny)
    return tmp_path / "bench"


SETTINGS = {"fixtures": ["country_facts"], "arms": ["npo, nll", "whp"], "seeds": 2}


def test_a_bench_leaves_numbers_a_page_and_a_table(small):
    page = run_workload("lm", SETTINGS, small, Run())
    text = page.read_text()
    assert "npo, nll" in text
    assert "whp *" in text  # weights as before
    results = json.loads((small / "results.json").read_text())
    assert [row["label"] for row in results["rows"]] == ["npo, nll", "whp"]
    npo = results["rows"][0]
    assert npo["steps"] == 3
    assert len(npo["numbers"]["utility"]) == 2
    assert all(0 <= value <= 1 for value in npo["numbers"]["utility"])
    assert all(mebibytes > 0 for mebibytes in npo["measured"]["mebibytes"])
    assert results["standards"]["country_facts"].keys() == {"before", "reference-1", "reference-2"}
    assert (small / "table.md").read_text().count("\n| ") == 6


def test_a_bench_that_was_stopped_goes_on_with_what_is_missing(small):
    run_workload("lm", SETTINGS, small, Run())
    jobs = small / "jobs" / "country_facts"
    kept = (jobs / "whp-0.json").read_bytes()
    (jobs / "npo-nll-1.json").unlink()
    results = (small / "results.json").read_text()
    run_workload("lm", SETTINGS, small, Run())
    assert (jobs / "whp-0.json").read_bytes() == kept
    again = json.loads((small / "results.json").read_text())
    assert again["rows"][0]["numbers"] == json.loads(results)["rows"][0]["numbers"]


def test_unknown_names_are_told_with_near_ones(small):
    with pytest.raises(ConfigError, match="arms: no 'npoo'; did you mean 'npo'"):
        run_workload("lm", {**SETTINGS, "arms": ["npoo"]}, small, Run())
    with pytest.raises(ConfigError, match="fixtures: no 'countries'"):
        run_workload("lm", {"fixtures": ["countries"]}, small, Run())


def test_the_command_line_refuses_an_unknown_bench(monkeypatch, capsys, tmp_path):
    told = refused(monkeypatch, capsys, "bench", "lmm", "--out", tmp_path / "out")
    assert "no workloads entry 'lmm'; did you mean 'lm'" in told
    told = refused(monkeypatch, capsys, "bench", "lm", "--set", "seeds=0", "--out", tmp_path / "o")
    assert "seeds = 0" in told


def test_workloads_are_registered_with_a_title():
    assert "lm" in workloads
    assert all(info.title for info in workloads)


def test_cells_show_the_mean_and_the_range_and_what_was_refused():
    names = ("forget_quality_log10", "truth_ratio", "verbatim", "knowledge", "utility")
    names += ("held_verbatim", "held_knowledge", "mia_auc", "mia_gap")
    row = {
        "label": "m",
        "evidence": "weights-suppressed",
        "refused": "",
        "numbers": {**{name: [0.5, 0.5] for name in names}, "verbatim": [0.25, 0.75]},
        "measured": {"cpu_seconds": [1.0, 2.0], "mebibytes": [10.0, 30.0]},
    }
    fixture = FIXTURES["country_facts"]
    columns = [(name, c.heading, c.digits) for name, c in fixture.columns.items()]
    results = {
        "columns": {"x": columns},
        "standards": {"x": {"before": {}, "reference-1": {}}},
        "rows": [{**row, "fixture": "x"}],
    }
    heads = head(results, "x")
    shown = dict(zip(heads, cells(row, columns), strict=True))
    assert shown["verbatim, forgotten"] == "0.50 (0.25 to 0.75)"
    assert shown["knowledge, forgotten"] == "0.50"
    assert shown["peak MiB"] == "20"
    row["numbers"]["mia_gap"] = [None, None]
    assert dict(zip(heads, cells(row, columns), strict=True))["MIA gap"] == "n/a"
    refusal = cells({**row, "refused": "no room", "evidence": "output-suppressed"}, columns)
    assert refusal[:2] == ["m *", "refused: no room"]
    assert len(refusal) == len(heads)
    table = markdown(heads, body(results, "x"))
    assert {line.count("|") for line in table.splitlines()} == {len(heads) + 1}
