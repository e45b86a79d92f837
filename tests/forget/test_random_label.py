"""Random labelling: one pass over wrong labels, one over true ones, in plain numpy."""

import numpy as np
import pytest
from torch import nn

from expunge.core.config import to_json
from expunge.core.errors import ConfigError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.tasks.classifier import Classifier
from expunge.forget.method import Given, Sight, apply, methods, parse_config
from expunge.forget.random_label import RandomLabelConfig, random_labels


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


def sight_of(task, forget, retain, settings, seed=0):
    info = methods.get("random_label")
    config = parse_config(info, settings)
    given = Given(task, forget, retain)
    return Sight(given, info.needs(config), nn.Linear(1, 1), Run(seed)), config


def drawn_labels(linear, settings, epochs, seed=0):
    sight, config = sight_of(linear.task, linear.forget, linear.retain, settings, seed)
    forget = random_labels(sight, config)[0]["forget"]
    return [np.asarray(forget.at_epoch(epoch)["y"]) for epoch in range(epochs)]


def test_the_papers_code_draws_over_all_classes(linear):
    drawn = np.array(drawn_labels(linear, {"exclude_true_label": False}, 200))
    assert set(drawn.ravel()) == {0, 1, 2, 3}
    # 1,200 draws from four classes: 300 of each, standard deviation 15; the true one is among them.
    counts = np.bincount(drawn.ravel(), minlength=4)
    assert (abs(counts - 300) < 75).all()
    assert abs((drawn == linear.y).mean() - 0.25) < 0.05
    again = np.array(drawn_labels(linear, {"exclude_true_label": False}, 200))
    other = np.array(drawn_labels(linear, {"exclude_true_label": False}, 200, seed=1))
    assert (drawn == again).all()
    assert (drawn != other).any()


def test_drawing_over_all_classes_needs_classes(questions_world):
    world = questions_world
    given = Given(world.task, world.forget, world.retain)
    with pytest.raises(ConfigError, match="exclude_true_label = false draws over all classes"):
        apply("random_label", world.model, given, Run(), {"exclude_true_label": False})


def two_classes():
    draw = np.random.default_rng(0)
    columns = {"x": draw.normal(size=(8, 3)).astype(np.float32), "y": np.arange(8) % 2}
    records = Records(tuple("abcdefgh"), columns)
    return Classifier(2), records.take(range(4)), records.take(range(4, 8))


def test_with_two_classes_it_is_a_label_flip_and_says_so():
    sight, config = sight_of(*two_classes(), {})
    with pytest.warns(UserWarning, match="random labels are flipped labels"):
        streams, _ = random_labels(sight, config)
    flipped = streams["forget"].at_epoch(3)
    assert flipped["y"] == [1, 0, 1, 0]
    sight, config = sight_of(*two_classes(), {"exclude_true_label": False})
    random_labels(sight, config)  # no warning, which would be an error here


def test_with_one_class_there_is_no_other_label():
    with pytest.raises(ConfigError, match="num_classes = 1: a classifier needs at least 2"):
        Classifier(1)


@pytest.mark.parametrize("order", ["sequential", "mixed"])
def test_the_order_of_updates_is_a_setting(linear, order):
    """Sequential: forget records, then retain records. Mixed: one pass over both, pooled."""
    settings = {"order": order, "batch_size": 4, "epochs": 1, "lr": 0.1}
    given = Given(linear.task, linear.forget, linear.retain, guard=None)
    steps = apply(
        "random_label", linear.model(), given, Run(), {"schedule": settings}
    ).history.steps
    seen = [set(numbers) & {"forget", "retain"} for numbers in steps]
    expected = {"sequential": [{"forget"}, {"forget"}, {"retain"}], "mixed": None}[order]
    if expected is not None:
        assert seen == expected
    else:
        assert len(seen) == 2  # 7 records in batches of 4
        assert {"forget", "retain"} in seen


def test_a_mixed_step_is_the_gradient_of_all_its_records_pooled(linear):
    wrong = np.array(linear.task.neutral(linear.forget, 0, 0)["y"])
    x = np.concatenate([linear.x, linear.kept_x])
    y = np.concatenate([wrong, linear.kept_y])
    gw, gb = linear.gradient(x, y)
    schedule = {
        **{"epochs": 1, "batch_size": 64, "order": "mixed", "optimizer": "sgd", "lr": 0.1},
        **{"momentum": 0.0, "weight_decay": 0.0},
    }
    got_w, got_b = linear.apply("random_label", {"schedule": schedule})
    np.testing.assert_allclose(got_w, linear.w - 0.1 * gw, atol=1e-14)
    np.testing.assert_allclose(got_b, linear.b - 0.1 * gb, atol=1e-14)
