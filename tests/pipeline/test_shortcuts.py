from pathlib import Path

import pytest

from expunge.core.errors import ConfigError
from expunge.pipeline.shortcuts import audit_recipe, forget_recipe


def test_forget_becomes_a_recipe():
    recipe = forget_recipe(
        model="m",
        forget=Path("f.jsonl"),
        retain=Path("r.jsonl"),
        method="npo",
        seed=3,
        changes=["forget.beta=0.5", "model.dtype=bfloat16"],
    )
    assert recipe.data == {
        "name": "files",
        "kind": "causal_lm",
        "forget": "f.jsonl",
        "retain": "r.jsonl",
    }
    assert recipe.model == {"name": "transformers", "path": "m", "dtype": "bfloat16"}
    assert recipe.forget == {"name": "npo", "beta": 0.5}
    assert (recipe.seed, recipe.references, recipe.audits, recipe.train) == (3, 0, (), None)


def test_audit_becomes_a_recipe():
    recipe = audit_recipe(
        before="b",
        after="a",
        references=["x", "y"],
        forget=Path("f.csv"),
        retain=None,
        holdout=Path("h.csv"),
        audits=["mia"],
        seed=0,
    )
    assert "retain" not in recipe.data
    assert recipe.data["holdout"] == "h.csv"
    assert recipe.after["path"] == "a"
    assert [part["path"] for part in recipe.given_references] == ["x", "y"]
    assert (recipe.forget, recipe.audits) == (None, ("mia",))


def test_wrong_changes_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'seed'"):
        forget_recipe(
            model="m", forget=Path("f"), retain=None, method="npo", seed=0, changes=["sed=1"]
        )
