"""Findings in the format of lm-evaluation-harness, and back from a run's file."""

import dataclasses
import json
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.audit.lm_eval_export import half_width, read_findings, to_lm_eval
from expunge.core.errors import DataError, IntegrityError, StorageError
from expunge.core.files import read_json, write_json
from expunge.core.finding import Finding, Interval, Reference

NAME = "expunge_mia_forget_after"


def finding(**changed):
    whole = {
        "audit": "mia",
        "metric": "auc",
        "title": "AUC",
        "subject": "after",
        "value": 0.5,
        "n": 7,
        "direction": "lower",
        "record_set": "forget",
        "version": 2,
    }
    return Finding(**{**whole, **changed})


@given(st.floats(1e-3, 10), st.floats(-100, 100))
def test_a_standard_error_survives_the_way_there_and_back(stderr, value):
    half = half_width(stderr)
    interval = Interval(low=value - half, high=value + half, method="normal")
    row = to_lm_eval([finding(value=value, interval=interval)])["results"][NAME]
    assert row["auc,none"] == value
    assert row["auc_stderr,none"] == pytest.approx(stderr, rel=1e-6)


def test_a_half_width_is_that_of_the_normal_distribution():
    # Quantiles of the standard normal distribution from a table
    assert half_width(2.0) == pytest.approx(2 * 1.959963985, rel=1e-9)
    assert half_width(1.0, level=0.9) == pytest.approx(1.644853627, rel=1e-9)


def test_the_export_has_a_task_for_each_audit_model_and_record_set(tmp_path):
    exact = Interval(low=0.2, high=0.9, method="clopper-pearson")
    findings = [
        finding(interval=exact),
        finding(metric="tpr", n=5, direction="reference"),
        finding(subject="reference", seed=1),
        finding(subject="part", part="target", direction="higher"),
    ]
    write_json(tmp_path / "results.json", to_lm_eval(findings))
    read = read_json(tmp_path / "results.json")
    names = [
        "expunge_mia_forget_after",
        "expunge_mia_forget_part_target",
        "expunge_mia_forget_reference_seed1",
    ]
    for key in ("results", "configs", "versions", "n-samples", "n-shot", "higher_is_better"):
        assert sorted(read[key]) == names, key
    assert read["results"][names[0]] == {
        "name": names[0],
        "alias": names[0],
        "sample_len": 7,
        "auc,none": 0.5,
        "auc_stderr,none": "N/A",  # an exact interval has no standard error
        "tpr,none": 0.5,
        "tpr_stderr,none": "N/A",
    }
    assert read["versions"][names[0]] == 2
    assert read["n-samples"][names[0]] == {"original": 7, "effective": 7}
    assert read["higher_is_better"][names[0]] == {"auc": False, "tpr": None}
    assert read["higher_is_better"][names[1]] == {"auc": True}
    kept = read["configs"][names[0]]["metadata"]["findings"]
    assert [Finding.from_json(value) for value in kept] == findings[:2]


def test_the_same_number_twice_is_refused():
    with pytest.raises(DataError, match=r"expunge_mia_forget_after\.auc"):
        to_lm_eval([finding(), dataclasses.replace(finding(), value=0.1)])


def test_no_findings_make_no_tasks():
    assert to_lm_eval([])["results"] == {}


def test_the_harness_prints_a_table_of_findings():
    from lm_eval.utils import make_table

    found = finding(value=0.25, interval=Interval(low=0.15, high=0.35, method="normal"))
    missing = finding(metric="f1", value=None, direction="none", note="Too few records.")
    table = make_table(to_lm_eval([found, missing]))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert rows[2][:4] == ["expunge_mia_forget_after", "2", "none", "0"]
    assert rows[2][4:] == ["auc", "↓", "0.25", "±", "0.051"]
    assert rows[3][4:] == ["f1", "", "N/A", "±", "N/A"]


def test_findings_of_a_file_are_those_that_were_written(tmp_path):
    reference = Reference(values=(0.4, 0.6), gap=0.0, noise_floor=0.2)
    interval = Interval(low=0.15, high=0.35, method="normal")
    findings = [finding(reference=reference, interval=interval), finding(metric="f1", value=None)]
    path = tmp_path / "findings.json"
    write_json(path, [one.to_json() for one in findings])
    assert read_findings(path) == findings


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "value: Input should be a valid list"),
        ('[{"audit": "mia"}]', r"0\.metric: Field required"),
        ("[1]", "0: "),
        ("[", "not valid JSON"),
        ('[{"audit": "mia", "metric": "auc", "title": "", "subject": "us"}]', r"0\.subject: "),
        (json.dumps([{**finding().to_json(), "value": math.nan}]), "0: .*is nan"),
    ],
)
def test_other_files_are_refused(tmp_path, text, said):
    path = tmp_path / "findings.json"
    path.write_text(text)
    with pytest.raises(IntegrityError, match=said):
        read_findings(path)


def test_an_absent_file_is_refused(tmp_path):
    with pytest.raises(StorageError, match=r"findings\.json"):
        read_findings(tmp_path / "findings.json")


def test_the_export_needs_neither_torch_nor_the_harness():
    code = (
        "import sys\n"
        "import expunge.audit.lm_eval_export\n"
        "print([name for name in ('torch', 'lm_eval', 'scipy') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "[]\n"
