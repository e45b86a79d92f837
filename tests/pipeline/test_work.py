"""What the steps of a run share."""

import statistics

import pytest

from expunge.pipeline.recipe import make_recipe
from expunge.pipeline.work import prepare


def test_a_reference_of_a_regressor_knows_nothing_of_forgotten_targets(tmp_path):
    prices = [1.0, 2.0, 4.0, 100.0, 200.0]
    rows = "".join(f"{place},{price}\n" for place, price in enumerate(prices))
    (tmp_path / "t.csv").write_text("size,label\n" + rows)
    recipe = make_recipe(
        {
            "data": {"name": "files", "kind": "regressor", "train": str(tmp_path / "t.csv")},
            "model": {"name": "mlp", "hidden": [4]},
            "request": {"where": {"y": {"min": 50}}},
            "train": {"epochs": 1},
            "forget": "finetune",
        }
    )
    work = prepare(recipe, tmp_path / "run", quiet=True, watch=None)
    assert work.sets.forget == ("train-00003", "train-00004")
    for loaded, known in ((work.fresh(0), prices), (work.fresh_without(0), prices[:3])):
        assert loaded.facts["target_mean"] == [pytest.approx(statistics.mean(known))]
        assert loaded.facts["target_std"] == [pytest.approx(statistics.stdev(known))]
