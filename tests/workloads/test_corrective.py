"""The comparison under partly known manipulations: shares, chosen settings, and the plot."""

import json

import pytest

from expunge.core.errors import ConfigError
from expunge.core.run import Run
from expunge.workloads import corrective
from expunge.workloads.workload import run_workload

SETTINGS = {"kinds": ["poison"], "shares": [1.0, 0.25], "arms": ["ssd", "finetune"], "seeds": 1}


@pytest.fixture
def small(monkeypatch, tmp_path, in_process):
    """Digits with a patch, a small network, and two settings to choose among."""
    whole = corrective._fixture

    def smaller(kind, share):
        import dataclasses

        corrupt = {"kind": "poison", "count": 60, "size": 2}
        return dataclasses.replace(
            whole(kind, share),
            data=("digits", {"num_holdout": 200, "num_test": 200, "corrupt": corrupt}),
            model=("cnn", {"channels": [4], "hidden": 8}),
            training={"epochs": 3, "batch_size": 64, "lr": 3e-3},
        )

    monkeypatch.setattr(corrective, "_fixture", smaller)
    grid = ({"alpha": 3.0, "force": True}, {"alpha": 1.0, "lambda_": 0.5, "force": True})
    arms = [*corrective.ARMS[:1], corrective.Arm("ssd, selected", "ssd", grid=grid)]
    monkeypatch.setattr(corrective, "ARMS", tuple(arms))
    return tmp_path / "bench"


def test_shares_are_rows_of_one_table_and_lines_of_one_plot(small):
    page = run_workload("corrective", SETTINGS, small, Run())
    results = json.loads((small / "results.json").read_text())
    assert results["fixtures"].keys() == {"poison_25", "poison_100"}
    assert {row["label"] for row in results["rows"]} == {"finetune, CF(-1)", "ssd, selected"}
    for row in results["rows"]:
        assert all(0 <= value <= 100 for value in row["numbers"]["acc_corr"])
    forgotten = [
        json.loads((small / f"poison_{share}-0" / "sets.json").read_text())["forget"]
        for share in (25, 100)
    ]
    assert [len(ids) for ids in forgotten] == [15, 60]
    assert set(forgotten[0]) < set(forgotten[1])
    drawing = (small / "poison.svg").read_text()
    assert "ssd, selected" in drawing
    assert "EU(-1)" in drawing
    assert "acc_corr (%)" in drawing
    assert "acc_retain (%)" in drawing
    assert "retrained without any" in drawing
    assert page.exists()


def test_settings_are_chosen_by_merit_on_held_out_records(small):
    run_workload("corrective", {**SETTINGS, "shares": [1.0], "arms": ["ssd"]}, small, Run())
    job = json.loads((small / "jobs" / "poison_100" / "ssd-selected-0.json").read_text())
    assert len(job["tried"]) == 2
    best = job["tried"].index(max(job["tried"]))
    assert job["settings"]["alpha"] == (3.0, 1.0)[best]


@pytest.mark.parametrize("name", ["kinds", "shares"])
def test_nothing_to_compare_is_refused(small, name):
    with pytest.raises(ConfigError, match="at least one each"):
        run_workload("corrective", {**SETTINGS, name: []}, small, Run())
