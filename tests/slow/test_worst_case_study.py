"""Worst-case forget sets on small pictures: hardly forgotten even by retraining, and who fails."""

from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path("/usr/share/datasets/fashion-mnist").is_dir(),
        reason="Fashion-MNIST is not installed (Debian package dataset-fashion-mnist)",
    ),
]


@pytest.fixture(scope="session")
def found(study):
    """Means over two seeds; nothing is chosen by them."""
    return study("worst_case")


def test_retraining_without_the_worst_set_still_knows_it(found):
    hard = found["hardness"]
    worst, random = hard["search, step 1e4"], hard["random"]
    assert worst["ua"] <= 0.2 * random["ua"]
    assert worst["mia"] <= 0.2 * random["mia"]
    assert abs(worst["ta"] - random["ta"]) <= 1.5


def test_the_lowest_losses_are_as_hard_as_the_search_finds(found):
    hard = found["hardness"]
    assert hard["lowest losses"]["ua"] <= hard["search, step 1e4"]["ua"] + 1
    assert hard["highest losses"]["ua"] > 80


def test_small_steps_of_the_weights_never_leave_the_random_start(found):
    hard = found["hardness"]
    for name in ("search, step 1e-3", "search, step 1e-2"):
        assert hard[name]["overlap"] == 1
        assert hard[name]["ua"] > 0.5 * hard["random"]["ua"]
    assert hard["search, step 1e4"]["overlap"] < 0.3


def test_hard_sets_are_of_few_classes(found):
    hard = found["hardness"]
    assert hard["search, step 1e4"]["largest_class"] > hard["random"]["largest_class"]
    assert hard["search, step 1e4"]["classes"] < hard["random"]["classes"]


def test_relabelling_is_near_on_a_random_set_and_far_on_the_worst(found):
    ranks = found["ranking"]
    for name in ("random_label", "salun"):
        assert ranks[name]["random"] < ranks["finetune"]["random"]
        assert ranks[name]["worst"] > ranks["finetune"]["worst"]
