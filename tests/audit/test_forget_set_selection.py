"""Selecting forget sets: golden steps, every way to choose, diagnostics and what is refused."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from expunge.audit.forget_set_selection import Bilevel, outer_step, select, top_rows
from expunge.audit.scores import score
from expunge.audit.weighted_tuning import weighted_tuning
from expunge.core.config import parse
from expunge.core.errors import ConfigError, DataError, NumericalError
from expunge.core.records import Records, concatenate
from expunge.core.run import Run
from expunge.engine.tasks.classifier import Classifier
from expunge.engine.tasks.regressor import Regressor
from expunge.engine.weights import state_digest

QUICK = Bilevel(outer_steps=3, epochs=1, batch_size=64)
WEIGHTS, LOSSES = np.array([1.0, 0, 1, 0]), np.array([2, 0.1, 0.05, 0.3])


@pytest.fixture(scope="module")
def train(digits_world):
    return concatenate([digits_world.retain, digits_world.forget])


def losses_of(world, records, model=None):
    return score(model or world.model, world.task, records, Run(), batch_size=256).loss_R


@pytest.mark.parametrize(
    ("step", "expected", "chosen"),
    [
        (1e-3, [0.998793, 0.000693, 1, 0.000493], [0, 2]),
        (1.0, [0, 0.6, 1, 0.4], [1, 2]),
        (1e4, [0, 1, 1, 0], [1, 2]),
    ],
)
def test_one_outer_step_has_the_golden_values(step, expected, chosen):
    # Reference values of the worst-case card; the release's bisection stops at 1e-5.
    found = outer_step(WEIGHTS, LOSSES, Bilevel(step=step))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.sum() == pytest.approx(2)
    assert top_rows(found, 2).tolist() == chosen


def test_a_step_that_is_too_small_never_leaves_the_start():
    weights = WEIGHTS
    for _ in range(10):
        weights = outer_step(weights, LOSSES, Bilevel(step=1e-3))
    assert top_rows(weights, 2).tolist() == [0, 2]


def test_the_reverse_goes_to_the_largest_losses():
    found = outer_step(WEIGHTS, LOSSES, Bilevel(), reverse=True)
    np.testing.assert_allclose(found, [1, 0, 0, 1], atol=1e-9)


def test_within_classes_each_keeps_its_sum():
    classes = np.array([0, 0, 1, 1])
    found = outer_step(np.array([1.0, 0, 0, 1]), LOSSES, Bilevel(), classes)
    np.testing.assert_allclose(found, [0, 1, 1, 0], atol=1e-9)
    whole = outer_step(np.array([1.0, 1, 0, 0]), LOSSES, Bilevel(), classes)
    np.testing.assert_array_equal(whole, [1, 1, 0, 0])  # no freedom is left


def test_equal_losses_leave_the_weights_as_they_are():
    found = outer_step(WEIGHTS, np.full(4, 0.7), Bilevel(gamma=0.0))
    np.testing.assert_allclose(found, WEIGHTS, atol=1e-8)


def test_of_equals_the_first_is_chosen():
    assert top_rows(np.array([1.0, 2, 2, 2, 0]), 2).tolist() == [1, 2]


def test_the_lowest_and_the_highest_losses(digits_world, train):
    loss = losses_of(digits_world, train)
    order = np.argsort(loss, kind="stable")
    low, high = (
        select(by, digits_world.model, digits_world.task, train, 20, Run())
        for by in ("low_loss", "high_loss")
    )
    assert set(low.ids) == {train.ids[row] for row in order[:20]}
    assert set(high.ids) == {train.ids[row] for row in order[-20:]}
    np.testing.assert_allclose(low.scores_R, -loss)
    other = select(
        "low_loss", digits_world.model, digits_world.task, train, 20, Run(), reverse=True
    )
    assert set(other.ids) == set(high.ids)
    assert sum(low.classes.values()) == 20
    assert low.overlap is None


def test_random_sets_follow_the_seed(digits_world, train):
    chosen = [
        select("random", digits_world.model, digits_world.task, train, 20, Run(seed)).ids
        for seed in (0, 0, 1)
    ]
    assert chosen[0] == chosen[1] != chosen[2]
    assert len(set(chosen[0])) == 20


def test_the_same_share_of_every_class(digits_world, train):
    found = select(
        "low_loss", digits_world.model, digits_world.task, train, 40, Run(), per_class=True
    )
    labels = np.asarray(train["y"])
    sizes = np.bincount(labels, minlength=10)
    for name, count in found.classes.items():
        assert abs(count - sizes[name] * 40 / 200) < 1
    assert sum(found.classes.values()) == 40
    loss = losses_of(digits_world, train)
    for name, count in found.classes.items():
        rows = np.flatnonzero(labels == name)
        best = rows[np.argsort(loss[rows], kind="stable")[:count]]
        assert {train.ids[row] for row in best} <= set(found.ids)


def test_the_search_finds_what_is_still_known_after_unlearning(digits_world, train):
    digest = state_digest(digits_world.model)
    arguments = ("bilevel", digits_world.model, digits_world.task, train, 20)
    found, again = (select(*arguments, Run(3), settings=QUICK) for _ in range(2))
    assert found.ids == again.ids
    assert state_digest(digits_world.model) == digest
    assert len(found.losses) == 3
    assert found.losses[-1] < found.losses[0]
    assert found.scores_R.sum() == pytest.approx(20)
    assert found.overlap < 0.5
    assert found.notes == ()
    random = select("random", *arguments[1:], Run(3))
    loss = dict(zip(train.ids, losses_of(digits_world, train), strict=True))
    assert np.mean([loss[i] for i in found.ids]) < np.mean([loss[i] for i in random.ids])
    easiest = select(*arguments, Run(3), settings=QUICK, reverse=True)
    assert np.mean([loss[i] for i in easiest.ids]) > np.mean([loss[i] for i in random.ids])


def test_a_search_that_did_not_move_says_so(digits_world, train):
    slow = Bilevel(outer_steps=2, epochs=1, step=1e-3)
    found = select(
        "bilevel", digits_world.model, digits_world.task, train, 20, Run(), settings=slow
    )
    assert found.overlap == 1
    assert "hardly moved" in found.notes[0]


def test_a_lower_level_of_ones_own_gets_the_weights(digits_world, train):
    seen = []

    def unlearn(weights_R):
        seen.append(weights_R)
        return digits_world.model

    found = select(
        "bilevel",
        digits_world.model,
        digits_world.task,
        train,
        20,
        Run(),
        settings=QUICK,
        unlearn=unlearn,
    )
    assert [len(weights) for weights in seen] == [200] * 3
    assert set(np.unique(seen[0])) == {0, 1}
    assert seen[0].sum() == 20
    # The model does not change, so that the choice is that of the lowest losses.
    low = select("low_loss", digits_world.model, digits_world.task, train, 20, Run())
    assert found.ids == low.ids


def test_unlearning_by_weights_is_sign_steps_on_what_is_retained(digits_world, train):
    weights = np.zeros(200)
    weights[160:] = 1  # the forget set is to be forgotten whole
    run, settings = Run(5), Bilevel(epochs=1, batch_size=200, lr=1e-3)
    task = digits_world.task
    found = weighted_tuning(digits_world.model, task, train, None, settings, run)(weights)
    by_hand = copy.deepcopy(digits_world.model)
    x, y = (torch.from_numpy(np.asarray(train[name])[:160]) for name in ("x", "y"))
    nn.functional.cross_entropy(by_hand(x), y, reduction="sum").backward()
    with torch.no_grad():
        for parameter in by_hand.parameters():
            parameter -= 1e-3 * parameter.grad.sign()
    for one, other in zip(found.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=0)


def test_records_beside_are_retained_whatever_the_weights(digits_world):
    settings = Bilevel(epochs=1, batch_size=200, lr=1e-3)
    arguments = (digits_world.model, digits_world.task, digits_world.forget)
    beside = digits_world.retain
    kept = weighted_tuning(*arguments, beside, settings, Run())(np.ones(40))
    whole = concatenate([digits_world.forget, beside])
    weights = np.repeat([1.0, 0.0], [40, 160])
    same = weighted_tuning(*arguments[:2], whole, None, settings, Run())(weights)
    for one, other in zip(kept.parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=0)


def test_whole_classes_by_their_mean_loss(digits_world, train):
    found = select(
        "worst_class",
        digits_world.model,
        digits_world.task,
        train,
        3,
        Run(),
        settings=QUICK,
        unlearn=lambda weights_R: digits_world.model,
    )
    labels, loss = np.asarray(train["y"]), losses_of(digits_world, train)
    means = np.array([loss[labels == name].mean() for name in range(10)])
    assert set(found.groups) == set(np.argsort(means)[:3].tolist())
    assert set(found.ids) == {
        i for i, name in zip(train.ids, labels, strict=True) if name in found.groups
    }
    assert len(found.scores_R) == 200


def test_groups_of_ones_own_are_chosen_whole(digits_world, train):
    groups = [row // 10 for row in range(200)]
    found = select(
        "bilevel",
        digits_world.model,
        digits_world.task,
        train,
        4,
        Run(),
        settings=QUICK,
        groups=groups,
    )
    assert len(found.groups) == 4
    assert len(found.ids) == 40
    chosen = {groups[train.ids.index(i)] for i in found.ids}
    assert chosen == set(found.groups)


def test_a_regressor_has_no_classes():
    records = Records(
        tuple("abcdef"), {"x": np.arange(6.0)[:, None].astype("f4"), "y": np.zeros(6, "f4")}
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(1, 1)
    found = select("low_loss", model, Regressor(), records, 2, Run())
    assert found.classes == {}
    for settings in ({"by": "worst_class"}, {"by": "low_loss", "per_class": True}):
        by = settings.pop("by")
        with pytest.raises(DataError, match="classes"):
            select(by, model, Regressor(), records, 2, Run(), **settings)


@pytest.mark.parametrize("count", [0, -1, 200, 201, 2.0, True, "3"])
def test_counts_that_cannot_be_had_are_refused(digits_world, train, count):
    with pytest.raises(DataError, match="choose a whole number from 1 to 199"):
        select("low_loss", digits_world.model, digits_world.task, train, count, Run())


def test_as_many_classes_as_there_are_is_refused(digits_world, train):
    with pytest.raises(DataError, match="of 10 groups"):
        select("worst_class", digits_world.model, digits_world.task, train, 10, Run())


def test_groups_of_another_length_are_refused(digits_world, train):
    with pytest.raises(DataError, match="3 groups for 200 records"):
        select("bilevel", digits_world.model, digits_world.task, train, 1, Run(), groups=[0, 1, 2])


def test_a_damaged_model_or_missing_labels_are_refused(digits_world, train):
    broken = copy.deepcopy(digits_world.model)
    with torch.no_grad():
        next(broken.parameters())[0, 0] = float("inf")
    with pytest.raises(NumericalError, match="before unlearning"):
        select("low_loss", broken, digits_world.task, train, 20, Run())
    with pytest.raises(NumericalError, match="not finite"):
        select(
            "bilevel",
            digits_world.model,
            digits_world.task,
            train,
            20,
            Run(),
            unlearn=lambda weights: broken,
        )
    bare = Records(train.ids, {"x": train["x"]})
    with pytest.raises(DataError, match="no column 'y'"):
        select("random", digits_world.model, digits_world.task, bare, 20, Run())


@pytest.mark.parametrize("wrong", [{"step": 0.0}, {"epochs": 0}, {"outer_steps": 0}, {"lr": -1.0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        parse(Bilevel, wrong, "bilevel")


def test_what_to_mind_is_noted():
    records = Records(
        tuple(f"r{i}" for i in range(12)), {"x": np.ones((12, 2), "f4"), "y": np.zeros(12, int)}
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(2, 2)
    found = select("low_loss", model, Classifier(2), records, 11, Run())
    assert found.notes == (
        "no signal: all losses are equal, so that the choice is arbitrary",
        "the records are of one class",
        "only 1 records are left to retain",
    )
