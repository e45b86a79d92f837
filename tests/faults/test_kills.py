"""``kill -9`` at random moments, then resume: the same digests as a run that nobody disturbed."""

import json
import random

import pytest
from killer import survive
from small_recipes import DIGITS, PEOPLE, write_recipe

RECIPES = {"digits": DIGITS, "people": PEOPLE}


def killed_until(kills, recipe, tmp_path):
    """Yield the folder of each finished run; begin a new one until there were enough kills."""
    draw, done = random.Random(0), 0
    while done < kills:
        out = tmp_path / f"killed-{done}"
        done += survive(recipe, out, tmp_path / f"cache-{done}", draw, kills - done)
        yield out


@pytest.mark.parametrize(
    ("name", "kills"),
    [
        ("digits", 3),
        ("people", 3),
        pytest.param("digits", 20, marks=pytest.mark.slow),
        pytest.param("people", 20, marks=pytest.mark.slow),
    ],
)
def test_killed_runs_end_with_the_digests_of_an_undisturbed_one(name, kills, tmp_path):
    recipe = write_recipe(tmp_path / "recipe.yaml", RECIPES[name])
    assert survive(recipe, tmp_path / "whole", tmp_path / "cache-whole", random.Random(), 0) == 0
    whole = json.loads((tmp_path / "whole/digest.json").read_text())
    for out in killed_until(kills, recipe, tmp_path):
        assert json.loads((out / "digest.json").read_text()) == whole
        assert (out / "report.html").stat().st_size > 0
        assert not list(out.rglob("*.partial"))
        assert not (out / "checkpoints").exists()
