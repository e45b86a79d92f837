"""The main job on pictures, through the command line, from recipe to report."""

import json
import re

import pytest
from command_line import Command
from small_recipes import DIGITS, write_recipe


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("e2e")
    recipe = write_recipe(folder / "recipe.yaml", DIGITS)
    ended = Command(["run", recipe, "--out", "out"], folder / "cache", folder).wait()
    assert ended.code == 0, ended.err
    return folder, ended


def test_it_ends_with_a_short_summary_that_names_the_report(finished):
    folder, ended = finished
    lines = ended.out.splitlines()
    assert 5 <= len(lines) <= 12
    assert re.match(r"forgotten +108 records of digits, by salun from mlp; 969 retained", lines[0])
    assert re.match(r"report +out/report.html", lines[-1])
    assert (folder / "out/report.html").is_file()


def test_the_report_tells_the_findings_and_needs_nothing_else(finished):
    page = (finished[0] / "out/report.html").read_text()
    findings = json.loads((finished[0] / "out/findings.json").read_text())
    assert len(findings) > 20
    assert all(one["title"] in page for one in findings)
    # It loads nothing; the one link leads to the page of records beside it.
    assert re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', page) == ['href="records.html"']
    assert "expunge run" in page


def test_progress_goes_to_stderr(finished):
    assert "training: " in finished[1].err
    assert "training: " not in finished[1].out


def test_it_is_the_same_run_in_python(finished, finished_digits):
    told = [json.loads((folder / "digest.json").read_text()) for folder in (
        finished[0] / "out", finished_digits,
    )]  # fmt: skip
    assert told[0] == told[1]
