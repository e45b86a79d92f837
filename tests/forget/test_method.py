"""The one way to call a method: needs first, declared sight only, settings by name."""

import dataclasses

import pytest
import torch
from torch import nn

from expunge.core.config import config, to_json
from expunge.core.errors import ConfigError, DataError, NumericalError, UnsupportedModelError
from expunge.core.run import Run
from expunge.engine.guard import GuardSettings
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope
from expunge.engine.weights import state_digest
from expunge.forget.method import (
    Given,
    Sight,
    UndeclaredNeed,
    apply,
    check_needs,
    methods,
    parse_config,
)


def given_of(world, **changes):
    whole = Given(world.task, world.forget, world.retain, fresh=world.fresh)
    return dataclasses.replace(whole, **changes)


class Unread(nn.Module):
    """A model that fails when anything of it is used."""

    def state_dict(self, *args, **kwargs):
        raise AssertionError("work began before the check")

    def __deepcopy__(self, memo):
        raise AssertionError("work began before the check")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("npo", {"retain": None}, "it needs retain records and there are none"),
        ("retrain", {"fresh": None}, "it needs the model from before training"),
        ("npo", {"task": None}, "the model is a 'denoiser'"),
    ],
)
def test_needs_are_checked_before_any_work(digits_world, name, changes, message):
    if "task" in changes:

        class Denoiser:
            kind = "denoiser"

        changes = {"task": Denoiser()}
    with pytest.raises(ConfigError, match=message) as caught:
        apply(name, Unread(), given_of(digits_world, **changes), Run())
    assert "methods that can: " in str(caught.value)


def test_fresh_models_stay_as_they_were_given(digits_world):
    untrained = digits_world.fresh()
    digest = state_digest(untrained)
    given = given_of(digits_world, fresh=lambda: untrained)
    apply("retrain", digits_world.model, given, Run(), {"schedule": {"epochs": 1}})
    assert state_digest(untrained) == digest
    assert all(parameter.requires_grad for parameter in untrained.parameters())


def test_every_reason_is_listed_with_methods_that_can(digits_world):
    given = given_of(digits_world, retain=None, fresh=None)
    with pytest.raises(ConfigError, match="3 problems") as caught:
        apply("retrain", Unread(), given, Run())
    said = str(caught.value)
    assert "retain records" in said
    assert "before training" in said
    able = "boundary_expand, boundary_shrink, ceu, grad_ascent"
    assert f"methods that can: {able}" in said


def test_needs_follow_the_settings(digits_world):
    info = methods.get("npo")
    given = given_of(digits_world, retain=None)
    check_needs(info, parse_config(info, {"retain": "none"}), given)
    with pytest.raises(ConfigError, match="needs retain"):
        check_needs(info, parse_config(info, {"retain": "kl"}), given)


def test_unknown_methods_and_settings_offer_near_matches(digits_world):
    given = given_of(digits_world)
    with pytest.raises(ConfigError, match="no methods entry 'nop'; did you mean 'npo'"):
        apply("nop", Unread(), given, Run())
    with pytest.raises(ConfigError, match=r"unknown setting 'betta'; did you mean 'beta'"):
        apply("npo", Unread(), given, Run(), {"betta": 1})
    with pytest.raises(ConfigError, match=r"schedule\.epoch'; did you mean 'epochs'"):
        apply("npo", Unread(), given, Run(), {"schedule": {"epoch": 1}})


def test_settings_in_part_keep_the_methods_own_defaults():
    """Not those of the nested class: SalUn's schedule is sequential SGD, Schedule's is not."""
    info = methods.get("salun")
    default = info.config()
    config = parse_config(info, {"schedule": {"epochs": 3}, "scope": {"mask": {"fraction": 0.2}}})
    assert config.schedule == dataclasses.replace(default.schedule, epochs=3)
    assert config.schedule.optimizer == "sgd" != Schedule().optimizer
    assert to_json(config.scope)["mask"] == {
        **to_json(default.scope)["mask"],
        "fraction": 0.2,
    }


def test_a_mask_can_be_added_and_taken_away_by_settings():
    assert parse_config(methods.get("salun"), {"scope": {"mask": None}}).scope == Scope()
    mask = parse_config(methods.get("npo"), {"scope": {"mask": {"by": "saliency"}}}).scope.mask
    assert mask is not None
    assert mask.by == "saliency"


@pytest.mark.parametrize(
    ("touch", "declared"),
    [
        (lambda sight: sight.forget, {"retain"}),
        (lambda sight: sight.retain, {"forget"}),
        (lambda sight: sight.reference, {"forget"}),
        (lambda sight: sight.reference_model, {"forget"}),
        (lambda sight: sight.neutral(0), {"forget"}),
        (lambda sight: sight.fresh(), {"forget"}),
    ],
)
def test_undeclared_needs_raise(digits_world, touch, declared):
    sight = Sight(given_of(digits_world), frozenset(declared), digits_world.model, Run())
    with pytest.raises(UndeclaredNeed, match="but declares only"):
        touch(sight)


def test_labels_are_hidden_from_methods_that_do_not_declare_them(digits_world):
    sight = Sight(given_of(digits_world), frozenset({"forget"}), digits_world.model, Run())
    assert len(sight.forget["y"]) == len(digits_world.forget)
    batch = digits_world.task.batch(sight.forget, [0, 1], targets=False)
    assert torch.equal(batch.inputs["x"], torch.from_numpy(digits_world.forget["x"][:2]))
    with pytest.raises(UndeclaredNeed, match=r"read the labels \('y'\)"):
        digits_world.task.batch(sight.forget, [0, 1])


def test_references_are_of_the_model_before_it_changes(digits_world):
    model = digits_world.fresh()
    needs = frozenset({"forget", "reference", "reference_model"})
    sight = Sight(given_of(digits_world), needs, model, Run())
    before = dict(sight.reference.values)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert sight.reference.values == before
    assert all(bool(p.any()) for p in sight.reference_model.parameters())
    assert not any(p.requires_grad for p in sight.reference_model.parameters())
    assert not sight.reference_model.training


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_model_with_weights_that_are_no_numbers_is_refused(digits_world, bad):
    model = digits_world.fresh()
    with torch.no_grad():
        model[0].bias[3] = bad
    with pytest.raises(NumericalError, match=r"the model to unlearn: 1 tensors .*\(0\.bias\)"):
        apply("npo", model, given_of(digits_world), Run())


def test_an_unusable_device_is_refused(digits_world):
    with pytest.raises(ConfigError, match="device = 'nowhere' is not usable here"):
        apply("npo", digits_world.model, given_of(digits_world), Run(device="nowhere"))


def test_in_place_gives_the_model_away(digits_world):
    model = digits_world.fresh()
    result = apply("finetune", model, given_of(digits_world), Run(), in_place=True)
    assert result.model is model


def test_the_guard_can_be_set_and_turned_off(digits_world):
    steep = {"schedule": {"lr": 3e-2}}
    run = {"checkpoint_every": 5}
    tight = given_of(digits_world, guard=GuardSettings(max_increase=0.05))
    stopped = apply("grad_ascent", digits_world.model, tight, Run(**run), steep).history.stopped
    assert stopped is not None
    assert "bound of 0.05" in stopped.reason
    free = given_of(digits_world, guard=None)
    whole = apply("grad_ascent", digits_world.model, free, Run(**run), steep).history
    assert whole.stopped is None
    assert len(whole.steps) == 20


def test_a_saliency_mask_brings_its_forget_records_but_not_into_an_exact_method(digits_world):
    settings = {"scope": {"mask": {"by": "saliency", "fraction": 0.1}}}
    info = methods.get("finetune")
    assert "forget" in info.needs(parse_config(info, settings))
    given = given_of(digits_world)
    model = apply("finetune", digits_world.model, given, Run(), settings).model
    pairs = zip(model.parameters(), digits_world.model.parameters(), strict=True)
    moved = sum(int((new != old).sum()) for new, old in pairs)
    assert 0 < moved <= 0.1 * sum(p.numel() for p in model.parameters())
    fresh = dataclasses.replace(given, fresh=digits_world.fresh)
    with pytest.raises(ConfigError, match=r"reads only \['train'\]"):
        apply("retrain", digits_world.model, fresh, Run(), settings)


def test_methods_do_not_share_checkpoints_in_one_folder(digits_world, tmp_path):
    given = given_of(digits_world)
    settings = [{"beta": 0.5}, {"beta": 5.0}]
    models = [
        apply("npo", digits_world.model, given, Run(folder=tmp_path), s).model for s in settings
    ]
    assert not torch.equal(models[0][0].weight, models[1][0].weight)
    assert len(list(tmp_path.glob("npo-*"))) == 2


def test_overlap_counts_and_names(digits_world):
    with pytest.raises(DataError, match=r"share 40 record ids \(digit-0, .* \(\+35 more\)\)"):
        apply("npo", Unread(), given_of(digits_world, retain=digits_world.forget), Run())


def test_config_classes_are_frozen_and_keyword_only():
    @config
    class Toy:
        """Settings."""

        size: int = 1
        """Size."""

    with pytest.raises(dataclasses.FrozenInstanceError):
        Toy().size = 2
    for info in methods:
        with pytest.raises(dataclasses.FrozenInstanceError):
            info.config().scope = None


@pytest.mark.parametrize("name", ["npo", "uld", "whp", "task_vector", "flat"])
def test_no_method_changes_or_nests_a_composite(name, questions_world):
    world = questions_world
    given = Given(world.task, world.forget, world.retain)
    composite = apply("whp", world.model, given, Run(), {"schedule": {"epochs": 1}}).model
    before = state_digest(composite)
    with pytest.raises(UnsupportedModelError, match="not the composite 'logit_difference'"):
        apply(name, composite, given, Run())
    assert state_digest(composite) == before


def test_answers_of_a_file_belong_to_the_key_of_a_run(questions_world, tmp_path):
    world, answers = questions_world, tmp_path / "answers.txt"
    given = Given(world.task, world.forget, guard=None)
    settings = {"retain": "none", "answers": {"file": str(answers)}, "schedule": {"epochs": 1}}
    digests = []
    for text in ("oslo", "lima"):
        answers.write_text(text + "\n")
        run = Run(folder=tmp_path / "run")
        digests.append(state_digest(apply("idk", world.model, given, run, settings).model))
    assert digests[0] != digests[1]
