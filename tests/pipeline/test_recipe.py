import json
from pathlib import Path

import pytest
import yaml
from small_recipes import DIGITS, PEOPLE

from expunge.core.errors import ConfigError
from expunge.pipeline.recipe import (
    decisive,
    make_recipe,
    read_recipe,
    recipe_json,
    split_part,
)

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("value", [DIGITS, PEOPLE])
def test_plain_data_and_recipe_are_the_same_thing(value):
    recipe = make_recipe(value)
    assert make_recipe(recipe_json(recipe)) == recipe
    assert make_recipe(yaml.safe_load(yaml.safe_dump(recipe_json(recipe)))) == recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid(path):
    from expunge.audit.audit import audits
    from expunge.data.source import sources
    from expunge.forget.method import methods
    from expunge.models.source import model_sources

    recipe = read_recipe(path)
    parts = [(recipe.data, sources), (recipe.model, model_sources), (recipe.forget, methods)]
    parts += [(part, audits) for part in recipe.audits]
    assert all(split_part(part, "part")[0] in registry for part, registry in parts)


def test_assignments_reach_nested_settings(tmp_path):
    (tmp_path / "r.yaml").write_text(json.dumps({**DIGITS, "forget": "npo"}))
    changes = ["forget.beta=0.25", "train.lr=1e-3", "name=other", "audits=[mia]"]
    recipe = read_recipe(tmp_path / "r.yaml", changes)
    assert recipe.forget == {"name": "npo", "beta": 0.25}
    assert recipe.train.lr == 1e-3
    assert recipe.train.epochs == DIGITS["train"]["epochs"]
    assert (recipe.name, recipe.audits) == ("other", ("mia",))


def test_a_recipe_without_training_retrains_nothing():
    value = {"data": "digits", "model": "mlp", "forget": "npo"}
    assert recipe_json(make_recipe(value))["references"] == 0
    with pytest.raises(ConfigError, match="nothing says how to retrain"):
        make_recipe({**value, "references": 1})


def test_what_cannot_change_a_result_does_not_count():
    other = {**DIGITS["machine"], "max_seconds": 5.0, "trackers": ["tensorboard"]}
    same = decisive(make_recipe({**DIGITS, "machine": other}))
    assert same == decisive(make_recipe(DIGITS))


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"machine": {**DIGITS["machine"], "threads": 2}},
        {"machine": {**DIGITS["machine"], "checkpoint_every": 3}},
        {"guard": None},
        {"audits": []},
    ],
)
def test_everything_else_counts(changes):
    assert decisive(make_recipe({**DIGITS, **changes})) != decisive(make_recipe(DIGITS))


@pytest.mark.parametrize("part", [{}, {"name": 3}, {"beta": 1}])
def test_a_part_needs_a_name(part):
    with pytest.raises(ConfigError, match=r"recipe.forget: name is missing"):
        split_part(part, "forget")


def test_an_audit_named_twice_is_refused():
    with pytest.raises(ConfigError, match="mia, mia names one twice"):
        make_recipe({**DIGITS, "audits": ["mia", {"name": "mia"}]})
