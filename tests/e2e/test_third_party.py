"""A method out of somebody else's package appears wherever the built-in ones do."""

import importlib.metadata
import json
import sys

import pytest
from refusals import refused
from small_recipes import DIGITS, write_recipe
from typer.testing import CliRunner

from expunge.cli.main import app
from expunge.forget.method import methods
from expunge.pipeline.execute import execute
from expunge.pipeline.recipe import make_recipe

PLUGIN = '''
"""A method that shrinks every weight."""

from typing import Annotated

import torch
from pydantic import Field

from expunge.core.config import config
from expunge.forget.method import method


@config
class ShrinkConfig:
    """Settings of shrinking."""

    factor: Annotated[float, Field(gt=0)] = 0.5
    """What every weight is multiplied by."""


@method("shrink", kinds={"classifier"}, needs={"forget"}, source="An example, 2026")
def shrink(model, sight, config: ShrinkConfig):
    """Multiply every weight by a factor.

    Source: An example, 2026.
    Needs: nothing but the model.
    """
    len(sight.forget)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(config.factor)
    return model
'''


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install the plug-in as far as the registry can tell, and take it away again."""
    (tmp_path / "someones_package.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    point = importlib.metadata.EntryPoint("shrink", "someones_package", "expunge.methods")
    find = importlib.metadata.entry_points

    def found(**chosen):
        return [point] if chosen == {"group": "expunge.methods"} else find(**chosen)

    monkeypatch.setattr(importlib.metadata, "entry_points", found)
    methods.names()  # the built-in ones are there before their registry is copied
    monkeypatch.setattr(methods, "_parts", dict(methods._parts))
    monkeypatch.setattr(methods, "_discovered", False)
    yield
    sys.modules.pop("someones_package", None)


@pytest.mark.usefixtures("installed")
def test_it_is_listed_shown_run_and_checked(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    assert "shrink" in CliRunner().invoke(app, ["methods"]).stdout
    shown = CliRunner().invoke(app, ["methods", "show", "shrink"]).stdout
    assert "factor (number > 0, default 0.5)" in shown

    forget = {"name": "shrink", "factor": 0.25}
    value = {**DIGITS, "forget": forget, "references": 0, "audits": ["unlearning_gap"]}
    folder = execute(make_recipe(value), tmp_path / "run", quiet=True)
    assert json.loads((folder / "plan.json").read_text())["method"]["config"] == {"factor": 0.25}
    assert "shrink" in (folder / "report.html").read_text()
    assert "An example, 2026" in (folder / "MODEL_CARD.md").read_text()

    wrong = write_recipe(tmp_path / "r.yaml", {**DIGITS, "forget": {"name": "shrink", "facto": 1}})
    assert "did you mean 'factor'?" in refused(monkeypatch, capsys, "run", wrong)
    wrong = write_recipe(tmp_path / "r.yaml", {**DIGITS, "forget": "shrinc"})
    assert "did you mean 'shrink'?" in refused(monkeypatch, capsys, "run", wrong)


@pytest.mark.usefixtures("installed")
def test_it_cannot_run_on_another_kind_of_model(tmp_path, monkeypatch, capsys):
    from small_recipes import PEOPLE

    recipe = write_recipe(tmp_path / "r.yaml", {**PEOPLE, "forget": "shrink"})
    message = refused(monkeypatch, capsys, "run", recipe, "--out", tmp_path / "run")
    assert "it works on ['classifier'], the model is a 'causal_lm'" in message
    assert not (tmp_path / "run").exists()


def test_it_is_gone_when_its_package_is():
    assert "shrink" not in methods
