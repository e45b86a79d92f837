"""What is registered, as the command line tells it."""

import json

import pytest
from typer.testing import CliRunner

from expunge.cli.main import app
from expunge.core.config import fields
from expunge.core.errors import ConfigError

KNOWN = {
    "methods": {"npo", "salun", "retrain", "grad_ascent", "grad_diff"},
    "audits": {"tofu", "mia", "unlearning_gap"},
    "tasks": {"causal_lm", "classifier"},
    "sources": {"digits", "people", "tofu", "files", "images"},
    "models": {"mlp", "cnn", "tiny_gpt", "transformers", "smollm2"},
}


def told(*arguments):
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


@pytest.mark.parametrize("what", KNOWN)
def test_lists_tell_every_name_once(what):
    names = [line.split()[0] for line in told(what).splitlines()]
    assert set(names) >= KNOWN[what]
    assert names == sorted(set(names))
    entries = json.loads(told(what, "--json"))
    assert [entry["name"] for entry in entries] == names
    assert all(entry["title"] for entry in entries)


@pytest.mark.parametrize("what", KNOWN)
def test_every_entry_can_be_shown(what):
    for entry in json.loads(told(what, "--json")):
        shown = told(what, "show", entry["name"])
        assert shown.startswith(entry["name"])
        whole = json.loads(told(what, "show", entry["name"], "--json"))
        assert whole["doc"]
        assert entry.items() <= whole.items()
        assert all(setting["text"] and setting["kind"] for setting in whole["settings"])
        assert all(f"  {setting['name']} (" in shown for setting in whole["settings"])


def test_a_method_is_shown_with_equation_source_and_defaults():
    from expunge.forget.npo import NPOConfig

    shown = told("methods", "show", "npo")
    assert "NPO (Zhang et al., 2024)" in shown
    assert "beta (number > 0, default 0.1)" in shown
    settings = json.loads(told("methods", "show", "npo", "--json"))["settings"]
    assert [setting["name"] for setting in settings] == [f.name for f in fields(NPOConfig)]


@pytest.mark.parametrize("what", KNOWN)
def test_an_unknown_name_is_refused_with_near_matches(what):
    name = sorted(KNOWN[what])[0]
    with pytest.raises(ConfigError, match=rf"did you mean '{name}'"):
        CliRunner().invoke(app, [what, "show", name + "x"], catch_exceptions=False)
