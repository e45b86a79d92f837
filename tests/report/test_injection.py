"""Foreign text must stay text, in every page and line."""

import json
import re

import pytest
import yaml

from expunge.core.files import read_json, write_json
from expunge.report.card import write_model_card
from expunge.report.examples import write_examples
from expunge.report.report import summary_lines, write_report


def poison(value, payload):
    """Put a payload into every text that a run does not choose from a fixed list."""
    fixed = {
        "subject",
        "direction",
        "verdict",
        "guarantee",
        "record_set",
        "metric",
        "audit",
        "kind",
    }
    if isinstance(value, dict):
        return {
            k: v if k in fixed and isinstance(v, str) else poison(v, payload)
            for k, v in value.items()
        }
    if isinstance(value, list):
        return [poison(item, payload) for item in value]
    return payload + value if isinstance(value, str) else value


@pytest.fixture
def poisoned(language_run, payload):
    for name in ("plan.json", "findings.json", "environment.json"):
        path = language_run / name
        write_json(path, poison(read_json(path), payload))
    findings = read_json(language_run / "findings.json")
    for one in findings:
        if one["metric"] == "probability":
            one["unit"] = ""  # of foreign units nothing is drawn
    write_json(language_run / "findings.json", findings)
    models = read_json(language_run / "models.json")
    write_json(language_run / "models.json", {k: poison(v, payload) for k, v in models.items()})
    timing = read_json(language_run / "timing.json")
    write_json(language_run / "timing.json", {payload + k: v for k, v in timing.items()})
    sets = read_json(language_run / "sets.json")
    sets["forget"] = [payload + i for i in sets["forget"]]
    write_json(language_run / "sets.json", sets)
    history = read_json(language_run / "history" / "forget.json")
    for step in history["steps"]:
        step[payload] = 1.0
    history["stopped"] = {"reason": payload, "step": 3}
    write_json(language_run / "history" / "forget.json", history)
    recipe = {"name": payload, "request": {"where": {payload: [payload]}}, "guard": {}}
    (language_run / "recipe.yaml").write_text(json.dumps(recipe))
    return language_run


def test_report(poisoned, payload, check_page):
    text = write_report(poisoned).read_text(encoding="utf-8")
    check_page(text)
    assert "class=" in text
    assert text.count("<svg role") == 5


def test_examples(language_run, example_rows, payload, check_page):
    rows = [{k: payload + v for k, v in row.items()} for row in example_rows]
    check_page(write_examples(language_run, rows).read_text(encoding="utf-8"))


def test_card(poisoned):
    text = write_model_card(poisoned).read_text(encoding="utf-8")
    _, header, body = re.split(r"^---\n", text, maxsplit=2, flags=re.MULTILINE)
    body, command = body.split("## Reproduce")
    assert yaml.safe_load(header)["unlearning"]["records"]["forget"] == 15
    assert yaml.safe_load(header)["findings"][0]["verdict"] == "not_applicable"
    assert re.fullmatch(r"\n\n    .*\n", command)
    assert "<script" not in body
    assert "<img" not in body
    assert not re.search(r"(?<!\\)\[[^\]]*(?<!\\)\]\(", body)
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00\x1b]", text)
    rows = [line for line in body.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {9}


def test_terminal(poisoned):
    for line in summary_lines(poisoned):
        assert not re.search("[\u202a-\u202e\u2066-\u2069\x00\x1b]", line)
        assert "\n" not in line
