"""The loop: accumulation, freezing, and the numbers it reports."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from expunge.core.errors import Interrupted, NumericalError, UnsupportedModelError
from expunge.core.records import Records
from expunge.core.run import Budget, Run
from expunge.engine.loop import Stream, Term, fit
from expunge.engine.masks.mask import Mask
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope
from expunge.engine.tasks.classifier import Classifier
from expunge.engine.weights import state_digest
from expunge.train.supervised import likelihood


def train(world, run=None, *, model=None, terms=None, scope=None, **schedule):
    """Fit a copy of the world's model in double precision; return it with its history."""
    model = copy.deepcopy(model or world.model).double()
    streams = {"forget": Stream(world.forget), "retain": Stream(world.retain)}
    terms = terms or [likelihood(world.task, "forget", -0.1), likelihood(world.task, "retain")]
    settings = Schedule(**{"epochs": 1, "optimizer": "sgd", "lr": 0.01, **schedule})
    history = fit(model, world.task, streams, terms, settings, run or Run(), scope=scope)
    return model, history


def largest_gap(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


@pytest.mark.parametrize("order", ["paired", "sequential", "mixed"])
@pytest.mark.parametrize("world", ["digits_world", "questions_world"])
def test_splitting_a_batch_changes_nothing_but_rounding(world, order, request):
    world = request.getfixturevalue(world)
    whole, numbers = train(world, batch_size=8, order=order)
    for micro in (1, 3):
        split, again = train(world, batch_size=8, micro_batch=micro, order=order)
        assert largest_gap(whole, split) < 1e-12
        for one, other in zip(numbers.steps, again.steps, strict=True):
            assert one == pytest.approx(other, rel=1e-9)
    assert largest_gap(whole, world.model) > 1e-5


def test_token_counts_weigh_records_of_unequal_length(questions_world):
    """One step's gradient is that of all NLLs summed, over all answer tokens counted once."""
    world = questions_world
    counts = world.task.num_targets(world.forget)
    assert len(set(counts)) > 1
    model = copy.deepcopy(world.model).double()
    batch = world.task.batch(world.forget, range(len(world.forget)))
    (world.task.predict(model, batch).nll_B().sum() / sum(counts)).backward()
    expected = copy.deepcopy(model)
    with torch.no_grad():
        for moved, source in zip(expected.parameters(), model.parameters(), strict=True):
            moved -= 0.01 * source.grad
    terms = [likelihood(world.task, "forget")]
    plain = {"momentum": 0.0, "weight_decay": 0.0}
    stepped, _ = train(world, terms=terms, batch_size=6, micro_batch=1, **plain)
    assert largest_gap(stepped, expected) < 1e-12


def test_per_record_terms_divide_by_records(questions_world):
    world = questions_world

    def loss(model, batch):
        return world.task.predict(model, batch).nll_B()

    _, per_record = train(world, terms=[Term("forget", loss)], batch_size=6)
    _, per_target = train(world, terms=[Term("forget", loss, per="target")], batch_size=6)
    ratio = sum(world.task.num_targets(world.forget)) / len(world.forget)
    first, second = per_record.steps[0]["forget"], per_target.steps[0]["forget"]
    assert first == pytest.approx(ratio * second, rel=1e-12)


def test_clipping_bounds_the_step_and_reports_the_norm_before(digits_world):
    plain = {"momentum": 0.0, "weight_decay": 0.0, "lr": 1.0, "batch_size": 40}
    _, free = train(digits_world, **plain)
    norm = free.steps[0]["grad_norm"]
    clipped, history = train(digits_world, clip_norm=norm / 4, **plain)
    assert history.steps[0]["grad_norm"] == norm
    start = copy.deepcopy(digits_world.model).double().state_dict()
    moved = torch.cat([(v - start[n]).flatten() for n, v in clipped.state_dict().items()])
    assert float(moved.norm()) == pytest.approx(norm / 4, rel=1e-4)


def test_a_last_partial_batch_is_seen(digits_world):
    world = digits_world
    seen = []

    def loss(model, batch):
        seen.extend(batch.ids)
        return world.task.predict(model, batch).nll_B()

    train(world, terms=[Term("forget", loss)], batch_size=16)  # 40 = 16 + 16 + 8
    assert sorted(seen) == sorted(world.forget.ids)


def test_frozen_parameters_keep_their_bits_under_momentum_and_decay(digits_world):
    before = copy.deepcopy(digits_world.model).double().state_dict()
    model, _ = train(
        digits_world, scope=Scope(patterns=("2.*",)), epochs=3, momentum=0.9, weight_decay=0.1
    )
    after = model.state_dict()
    assert torch.equal(after["0.weight"], before["0.weight"])
    assert torch.equal(after["0.bias"], before["0.bias"])
    assert not torch.equal(after["2.weight"], before["2.weight"])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_masked_entries_keep_their_bits_under_momentum_and_decay(digits_world, optimizer):
    scope = Scope(mask=Mask(by="saliency", fraction=0.2))
    before = copy.deepcopy(digits_world.model).double().state_dict()
    model, _ = train(
        digits_world, scope=scope, epochs=3, optimizer=optimizer, momentum=0.9, weight_decay=0.1
    )
    after = model.state_dict()
    total = sum(v.numel() for v in before.values())
    moved = sum(int((after[n] != before[n]).sum()) for n in before)
    assert 0.19 * total < moved <= 0.2 * total


def test_flags_modes_and_random_state_are_restored_on_success_and_error(digits_world):
    model = copy.deepcopy(digits_world.model).eval()
    model[0].weight.requires_grad_(False)
    streams = {"forget": Stream(digits_world.forget)}
    state = torch.get_rng_state()

    def untouched():
        flags = [p.requires_grad for p in model.parameters()]
        return not model.training and flags == [False, True, True, True]

    terms = [likelihood(digits_world.task, "forget")]
    fit(model, digits_world.task, streams, terms, Schedule(epochs=1), Run())
    assert untouched()

    def broken(model, batch):
        raise RuntimeError("a method's own fault")

    with pytest.raises(RuntimeError, match="own fault"):
        fit(model, digits_world.task, streams, [Term("forget", broken)], Schedule(), Run())
    assert untouched()
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_is_a_function_of_seed_and_step_not_of_global_state(digits_world):
    made = nn.Sequential(nn.Linear(64, 32), nn.Dropout(0.5), nn.Linear(32, 10))
    digests = []
    for global_seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(global_seed)
            model, _ = train(digits_world, model=made)
        digests.append(state_digest(model))
    other, _ = train(digits_world, Run(seed=1), model=made)
    assert digests[0] == digests[1] != state_digest(other)


def test_the_mean_of_each_term_is_reported_under_its_stream(digits_world):
    world = digits_world
    with torch.no_grad():
        batch = world.task.batch(world.forget, range(len(world.forget)))
        mean = float(world.task.predict(world.model, batch).nll_B().mean())
    _, history = train(world, batch_size=40)
    assert history.steps[0]["forget"] == pytest.approx(mean, rel=1e-5)
    assert set(history.steps[0]) == {"step", "lr", "grad_norm", "forget", "retain"}
    assert history.to_json()["stopped"] is None


def test_a_loss_that_is_not_a_number_names_the_remedy(digits_world):
    def loss(model, batch):
        return digits_world.task.predict(model, batch).nll_B() * float("nan")

    with pytest.raises(NumericalError, match=r"'forget' became nan at step 1.*schedule\.lr"):
        train(digits_world, terms=[Term("forget", loss)])


def test_a_gradient_that_is_not_a_number_names_the_remedy(digits_world):
    def loss(model, batch):
        nll_B = digits_world.task.predict(model, batch).nll_B()
        return nll_B + (nll_B * 0).sqrt()  # finite, but the root's slope at 0 is not

    with pytest.raises(NumericalError, match=r"gradient became nan at step 1.*schedule\.clip_norm"):
        train(digits_world, terms=[Term("forget", loss)])


def test_at_epoch_is_asked_once_per_epoch_and_gives_the_records_of_that_epoch():
    records = Records(("a", "b"), {"x": [[1.0], [2.0]], "y": [0, 0]})
    asked, seen = [], []
    task = Classifier(2)

    def at_epoch(epoch):
        asked.append(epoch)
        return records.replace(y=[epoch % 2, epoch % 2])

    def loss(model, batch):
        seen.append(batch.targets_N.tolist())
        return task.predict(model, batch).nll_B()

    fit(
        nn.Linear(1, 2),
        task,
        {"forget": Stream(records, at_epoch)},
        [Term("forget", loss)],
        Schedule(epochs=3, batch_size=1),
        Run(),
    )
    assert asked == [0, 1, 2]
    assert seen == [[0], [0], [1], [1], [0], [0]]


# --- functions of a step's mean, and changes after a step ---


def bounded(world, bound):
    """Ascent on the forget set while the mean over a step is below a bound."""
    ascent = dataclasses.replace(
        likelihood(world.task, "forget"), slope=lambda value: -1.0 if value < bound else 0.0
    )
    return [ascent, likelihood(world.task, "retain")]


@pytest.mark.parametrize("order", ["paired", "mixed"])
def test_a_function_of_the_steps_mean_does_not_depend_on_how_the_step_is_split(digits_world, order):
    world, lengths = digits_world, []
    for size in (None, 1, 3):
        terms = bounded(world, 3.0)
        model, history = train(
            world, terms=terms, epochs=6, batch_size=8, lr=0.1, micro_batch=size, order=order
        )
        lengths.append((model, [s["forget"] for s in history.steps if "forget" in s]))
    (whole, losses), *others = lengths
    assert any(loss >= 3.0 for loss in losses)  # the bound was in force
    assert losses[0] < 3.0  # and it was not from the start
    for split, again in others:
        assert largest_gap(whole, split) < 1e-9
        assert losses == pytest.approx(again, rel=1e-7)


def test_a_slope_is_taken_at_the_mean_of_the_whole_step(digits_world):
    world, seen = digits_world, []
    square = dataclasses.replace(
        likelihood(world.task, "forget"), slope=lambda value: seen.append(value) or 2 * value
    )
    model, history = train(
        world, terms=[square], batch_size=64, micro_batch=7, lr=0.1, weight_decay=0.0
    )
    assert history.steps[0]["forget"] == pytest.approx(seen[0], rel=1e-12)
    expected = copy.deepcopy(world.model).double()
    batch = world.task.batch(world.forget, range(len(world.forget)))
    (world.task.predict(expected, batch).nll_B().mean() ** 2).backward()
    with torch.no_grad():
        for parameter in expected.parameters():
            parameter -= 0.1 * parameter.grad
    assert largest_gap(model, expected) < 1e-12


def test_a_term_without_slope_at_its_value_moves_nothing(digits_world):
    world = digits_world
    still = dataclasses.replace(likelihood(world.task, "forget"), slope=lambda value: 0.0)
    model, history = train(world, terms=[still], weight_decay=0.0, momentum=0.0)
    assert largest_gap(model, copy.deepcopy(world.model).double()) == 0
    assert history.steps[0]["forget"] > 0


def fit_with(world, after, run=None, **schedule):
    model = copy.deepcopy(world.model).double()
    settings = Schedule(**{"epochs": 2, "optimizer": "sgd", "lr": 0.01, **schedule})
    streams = {"forget": Stream(world.forget)}
    terms = [likelihood(world.task, "forget")]
    fit(model, world.task, streams, terms, settings, run or Run(), after=after)
    return model


def test_what_follows_a_step_sees_the_start_and_how_far_the_loop_is(digits_world):
    world, told = digits_world, []

    def after(weights, start, done):
        told.append(done)
        assert set(weights) == set(start) == {n for n, _ in world.model.named_parameters()}
        for name, before in world.model.named_parameters():
            assert torch.equal(start[name], before.double())
        weights["2.bias"].copy_(start["2.bias"])

    model = fit_with(world, after, batch_size=20)  # 40 records: two steps an epoch
    assert told == [0.0, 0.25, 0.5, 0.75]
    assert torch.equal(model[2].bias, world.model[2].bias.double())
    assert not torch.equal(model[2].weight, world.model[2].weight.double())


def test_a_resumed_loop_is_pulled_to_the_same_start(digits_world, tmp_path):
    def after(weights, start, done):
        for name, weight in weights.items():
            weight.copy_(0.5 * (weight + start[name]))

    whole = fit_with(digits_world, after, batch_size=10)
    with pytest.raises(Interrupted):
        fit_with(
            digits_world, after, Run(folder=tmp_path, budget=Budget(max_steps=3)), batch_size=10
        )
    resumed = fit_with(digits_world, after, Run(folder=tmp_path), batch_size=10)
    assert state_digest(resumed) == state_digest(whole)


def normed():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))


@pytest.mark.parametrize(
    ("order", "size", "micro", "refused"),
    [
        ("sequential", 13, None, "40 forget records leave one"),  # 3 x 13 and one
        ("sequential", 16, 3, "40 forget records leave one"),  # 16 = 5 x 3 and one
        ("sequential", 53, None, "160 retain records leave one"),  # 3 x 53 and one
        ("paired", 53, None, None),  # as many partners as anchors
        ("sequential", 16, None, None),
    ],
)
def test_batch_norm_refuses_a_single_record_before_the_first_step(
    digits_world, order, size, micro, refused
):
    sizes = {"batch_size": size, "micro_batch": micro, "order": order}
    run, model = Run(), normed()
    free = {**sizes, "freeze_norm_statistics": False}
    if refused is None:
        train(digits_world, run, model=model, **free)
        return
    with pytest.raises(UnsupportedModelError, match=f"{refused}.*freeze_norm_statistics"):
        train(digits_world, run, model=model, **free)
    train(digits_world, Run(), model=model, **sizes, freeze_norm_statistics=True)


def test_statistics_are_as_before_after_a_trial_of_one_record(digits_world):
    """Pictures of several pixels may come alone; trying that must leave no trace."""
    model = nn.Sequential(
        *(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(72, 10)),
    )
    seen = []

    def loss(model, batch):
        seen.append(model[2].running_mean.clone())
        return digits_world.task.predict(model, batch).nll_B()

    terms = [Term("forget", loss)]
    settings = Schedule(epochs=1, batch_size=13, freeze_norm_statistics=False)
    streams = {"forget": Stream(digits_world.forget)}
    fit(model, digits_world.task, streams, terms, settings, Run())
    assert len(seen) == 4
    assert not seen[0].any()
