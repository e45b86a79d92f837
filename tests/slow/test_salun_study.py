"""SalUn on small pictures: near retraining, and stable where random labelling is not."""

from pathlib import Path

import pytest

from expunge.data.sources.fashion_mnist import FashionMnistConfig

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session", params=["mnist", "fashion_mnist"])
def found(study, request):
    """Means over two seeds, at learning rates chosen on a third."""
    if request.param == "fashion_mnist" and not Path(FashionMnistConfig().folder).is_dir():
        pytest.skip("Fashion-MNIST is not installed (apt-get install dataset-fashion-mnist)")
    return study("salun", "--data", request.param)["means"]


def test_salun_is_nearer_to_retraining_than_finetuning_and_ascent(found):
    best = min(found["salun, s = 0.5"]["average_gap"], found["salun, s = 0.2"]["average_gap"])
    assert best < found["finetune"]["average_gap"]
    assert best < found["grad_ascent"]["average_gap"]


def test_a_mask_halves_what_a_large_learning_rate_destroys(found):
    masked, bare = found["salun, s = 0.2, lr 0.1"], found["random_label, lr 0.1"]
    assert masked["average_gap"] < bare["average_gap"] / 2


def test_weights_outside_the_mask_keep_their_bits(found):
    # A sum of gradients can leave a weight where it was, so no more than the share has moved.
    assert 19.0 < found["salun, s = 0.2"]["moved"] <= 20.0
    assert 49.0 < found["salun, s = 0.5"]["moved"] <= 50.0
    assert found["random_label"]["moved"] > 99.0
