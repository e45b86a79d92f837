"""``expunge request like``: what it says, and that it refuses in one line."""

import json

import pytest
from refusals import refused
from small_recipes import DIGITS, write_recipe
from typer.testing import CliRunner

from expunge.cli.main import app


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    return write_recipe(tmp_path / "recipe.yaml", DIGITS)


def test_it_names_the_page_and_says_that_nothing_was_forgotten(recipe, tmp_path):
    out = tmp_path / "like"
    given = ["--id", "digits-00000", "--count", "4", "--out", str(out), "--set", "train.epochs=1"]
    done = CliRunner().invoke(app, ["request", "like", str(recipe), *given], catch_exceptions=False)
    assert done.exit_code == 0
    assert f"look at {out}/neighbours.html, which holds personal data" in done.stdout
    assert "nothing was forgotten" in done.stdout
    assert f"request: {{file: {out}/neighbours.json}}" in done.stdout
    assert len(json.loads((out / "neighbours.json").read_text())) == 5
    purged = CliRunner().invoke(app, ["purge", str(out)], catch_exceptions=False)
    assert purged.stdout.strip() == f"removed {out}/neighbours.html"


def test_an_unknown_id_is_one_message(recipe, tmp_path, monkeypatch, capsys):
    given = ["--id", "nobody", "--out", tmp_path / "like"]
    assert "1 unknown record ids (nobody)" in refused(
        monkeypatch, capsys, "request", "like", recipe, *given
    )


def test_it_has_these_options_and_no_others():
    shown = CliRunner().invoke(app, ["request", "like", "--help"], terminal_width=200).stdout
    words = {word for word in shown.split() if word.startswith("--")}
    assert words >= {"--id", "--examples", "--count", "--radius", "--set", "--out"}
    assert len(words - {"--count.", "--help"}) == 6
