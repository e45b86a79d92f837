"""bfloat16 and activations that are computed again: what changes, and what must not."""

import copy

import pytest
import torch
from torch import nn

from expunge.core.errors import ConfigError, Interrupted
from expunge.core.run import Budget, Run
from expunge.engine.composites.logit_difference import LogitDifference
from expunge.engine.loop import Stream, Term, fit
from expunge.engine.masks.mask import Mask
from expunge.engine.modes import checkpointed, training
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Lora, Scope, scoped
from expunge.engine.weights import state_digest
from expunge.forget.method import Given, apply
from expunge.train.supervised import likelihood

SCOPES = {
    "all weights": Scope(),
    "adapters": Scope(lora=Lora(rank=2)),
    "a mask": Scope(mask=Mask(fraction=0.3)),
    "last layer": Scope(last_layers=1),
}
scopes = pytest.mark.parametrize("scope", SCOPES.values(), ids=SCOPES)


def train(world, *, model=None, scope=None, terms=None, run=None, **schedule):
    """Fit a copy of a model on the world's records; return it with the numbers of every step."""
    model = copy.deepcopy(model or world.model)
    streams = {"forget": Stream(world.forget), "retain": Stream(world.retain)}
    terms = terms or [likelihood(world.task, "forget", -0.1), likelihood(world.task, "retain")]
    settings = Schedule(**{"epochs": 2, "batch_size": 3, "lr": 1e-3, **schedule})
    history = fit(model, world.task, streams, terms, settings, run or Run(), scope=scope)
    return model, history.steps


def moved(model, other):
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


@scopes
@pytest.mark.parametrize("world", ["digits_world", "questions_world"])
def test_bfloat16_arithmetic_keeps_wide_weights(world, scope, request):
    world = request.getfixturevalue(world)
    model, steps = train(world, scope=scope, precision="bfloat16")
    _, wide = train(world, scope=scope)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert moved(model, world.model) > 1e-5
    # Eight bits of precision, in logits that a trained model has made large.
    assert steps[0]["retain"] == pytest.approx(wide[0]["retain"], rel=0.05, abs=1e-3)
    assert steps[0]["retain"] != wide[0]["retain"]


def test_only_the_model_runs_in_bfloat16(questions_world):
    world, seen = questions_world, {}

    def loss(model, batch):
        handle = model.model.layers[0].mlp.up_proj.register_forward_hook(
            lambda module, args, output: seen.update(hidden=output.dtype)
        )
        predictions = world.task.predict(model, batch)
        handle.remove()
        seen.update(logits=predictions.logits_NV.dtype, nll=predictions.nll_B().dtype)
        return predictions.nll_B()

    train(world, terms=[Term("forget", loss)], epochs=1, precision="bfloat16")
    half, wide = torch.bfloat16, torch.float32
    assert seen == {"hidden": half, "logits": half, "nll": wide}


def test_values_in_half_precision_are_summed_in_single(questions_world):
    """256 + 1 is 256 in bfloat16, whatever the order."""

    def loss(model, batch):
        nll_B = questions_world.task.predict(model, batch).nll_B()
        starts = [256.0 if i == "question-0" else 1.0 for i in batch.ids]
        return (0.0 * nll_B + torch.tensor(starts)).bfloat16()

    _, steps = train(questions_world, terms=[Term("forget", loss)], batch_size=6, epochs=1)
    assert steps[0]["forget"] == pytest.approx((256 + 5) / 6, rel=1e-6)


@scopes
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_weights_in_bfloat16_are_trained_and_stay_so(questions_world, scope, optimizer, tmp_path):
    start = copy.deepcopy(questions_world.model).bfloat16()
    settings = {"model": start, "scope": scope, "optimizer": optimizer, "lr": 1e-2}
    model, steps = train(questions_world, **settings)
    assert {t.dtype for t in model.state_dict().values()} == {torch.bfloat16}
    assert all(torch.isfinite(t).all() for t in model.state_dict().values())
    assert moved(model, start) > 0
    assert steps[-1]["retain"] != steps[0]["retain"]
    with pytest.raises(Interrupted):
        train(questions_world, **settings, run=Run(folder=tmp_path, budget=Budget(max_steps=3)))
    again, _ = train(questions_world, **settings, run=Run(folder=tmp_path))
    assert state_digest(again) == state_digest(model)


@pytest.mark.parametrize("method", ["npo", "rmu", "undial", "grad_diff"])
def test_methods_with_a_reference_run_in_bfloat16(questions_world, method):
    world = questions_world
    schedule = {"epochs": 1, "batch_size": 3, "lr": 1e-3, "precision": "bfloat16"}
    given = Given(world.task, world.forget, world.retain)
    result = apply(method, world.model, given, Run(), {"schedule": schedule})
    assert moved(result.model, world.model) > 0


def gradients(world, scope, again):
    """Return the gradient of every weight in scope, with activations kept or computed again."""
    model = copy.deepcopy(world.model)
    block = checkpointed(model) if again else training(model, freeze_statistics=True)
    with (
        scoped(model, world.task, scope, {"forget": world.forget}, Run()) as selection,
        training(model, freeze_statistics=True),
        block,
    ):
        if scope.lora:  # an adapter starts at zero, where one of its halves has no gradient
            for parameter in selection.parameters.values():
                nn.init.constant_(parameter, 0.1)
        batch = world.task.batch(world.forget, range(4))
        world.task.predict(model, batch).nll_B().sum().backward()
        return {name: parameter.grad for name, parameter in selection.parameters.items()}


@scopes
def test_every_weight_gets_the_same_gradient_when_activations_are_computed_again(
    questions_world, scope
):
    kept, again = (gradients(questions_world, scope, flag) for flag in (False, True))
    assert kept.keys() == again.keys()
    for name in kept:
        assert again[name] is not None, name
        assert float(again[name].abs().max()) > 0, name
        assert torch.equal(kept[name], again[name]), name


@scopes
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_computing_activations_again_changes_no_bit(questions_world, scope, precision):
    settings = {"scope": scope, "precision": precision, "micro_batch": 2}
    model, steps = train(questions_world, **settings)
    again, numbers = train(questions_world, **settings, gradient_checkpointing=True)
    assert steps == numbers
    assert state_digest(again) == state_digest(model)


def test_dropout_is_the_same_when_it_is_computed_again(questions_world):
    model = copy.deepcopy(questions_world.model)
    for layer in model.model.layers:
        layer.mlp.act_fn = nn.Sequential(layer.mlp.act_fn, nn.Dropout(0.5))
    one, _ = train(questions_world, model=model)
    other, _ = train(questions_world, model=model, gradient_checkpointing=True)
    none, _ = train(questions_world)
    assert state_digest(one) == state_digest(other) != state_digest(none)


def test_activations_are_computed_again_indeed(questions_world):
    world, calls = questions_world, {}

    def counted(again):
        model = copy.deepcopy(world.model)
        seen = calls.setdefault(again, [])
        model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: seen.append(1))
        streams = {"forget": Stream(world.forget)}
        schedule = Schedule(epochs=1, batch_size=3, gradient_checkpointing=again)
        fit(model, world.task, streams, [likelihood(world.task, "forget")], schedule, Run())

    counted(False)
    counted(True)
    assert len(calls[True]) == 2 * len(calls[False])


def switches(model):
    names = ("gradient_checkpointing", "_gradient_checkpointing_func")
    return [[vars(module).get(name) for name in names] for module in model.modules()]


def hooks(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return [len(getattr(module, kind)) for module in model.modules() for kind in kinds]


def test_the_models_own_switch_comes_back_also_on_error(questions_world):
    model = copy.deepcopy(questions_world.model)
    model.model.layers[1].gradient_checkpointing = True  # somebody's mixture
    before = switches(model), hooks(model)
    with checkpointed(model):
        assert all(layer.gradient_checkpointing for layer in model.model.layers)
    assert (switches(model), hooks(model)) == before
    with pytest.raises(KeyError), checkpointed(model):
        raise KeyError
    assert (switches(model), hooks(model)) == before


def test_a_composite_lets_its_parts_compute_again(questions_world):
    world = questions_world
    made = LogitDifference(copy.deepcopy(world.model), copy.deepcopy(world.model), alpha=0.5)
    scope = Scope(patterns=("assistant.*",))
    model, steps = train(world, model=made, scope=scope)
    again, numbers = train(world, model=made, scope=scope, gradient_checkpointing=True)
    assert steps == numbers
    assert state_digest(again) == state_digest(model) != state_digest(made)


def test_a_model_that_cannot_is_refused(digits_world):
    message = r"schedule.gradient_checkpointing = true: a Sequential.*schedule.micro_batch"
    with pytest.raises(ConfigError, match=message):
        train(digits_world, gradient_checkpointing=True)


def test_rmu_stops_at_its_block_when_activations_are_computed_again(questions_world):
    world, found = questions_world, []
    given = Given(world.task, world.forget, world.retain)
    for again in (False, True):
        schedule = {"epochs": 1, "batch_size": 3, "lr": 1e-3, "gradient_checkpointing": again}
        found.append(apply("rmu", world.model, given, Run(), {"schedule": schedule}))
    assert moved(found[0].model, world.model) > 0
    assert state_digest(found[0].model) == state_digest(found[1].model)
