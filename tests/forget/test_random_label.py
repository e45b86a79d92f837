"""Random labelling: one pass over wrong labels, one over true ones, in plain numpy."""

import numpy as np

from expunge.core.config import to_json
from expunge.forget.random_label import RandomLabelConfig


def two_steps(linear, wrong, alpha, lr=0.1):
    fw, fb = linear.gradient(linear.x, wrong)
    w, b = linear.w - lr * fw, linear.b - lr * fb
    rw, rb = linear.gradient(linear.kept_x, linear.kept_y, w=w, b=b)
    return w - lr * alpha * rw, b - lr * alpha * rb


def test_one_epoch_equals_numpy(linear):
    wrong = np.array(linear.task.neutral(linear.forget, 0, 0)["y"])
    for got, expected in zip(
        linear.apply("random_label", {"alpha": 0.6}),
        two_steps(linear, wrong, 0.6),
        strict=True,
    ):
        np.testing.assert_allclose(got, expected, atol=1e-14)


def test_labels_are_wrong_and_drawn_anew_every_epoch(linear):
    drawn = [np.array(linear.task.neutral(linear.forget, 0, epoch)["y"]) for epoch in range(50)]
    assert all((labels != linear.y).all() for labels in drawn)
    assert all((labels >= 0).all() and (labels < 4).all() for labels in drawn)
    # Each of the three other classes turns up for each record in 50 draws.
    assert all(len({int(labels[i]) for labels in drawn}) == 3 for i in range(6))


def test_defaults_are_those_of_the_paper():
    """SalUn (Fan et al., 2024): SGD, lr 0.013, momentum 0.9, decay 5e-4, 10 epochs, sequential."""
    schedule = to_json(RandomLabelConfig().schedule)
    expected = {"optimizer": "sgd", "lr": 0.013, "momentum": 0.9, "weight_decay": 5e-4}
    assert schedule.items() >= (expected | {"epochs": 10, "order": "sequential"}).items()
