"""GS-LoRA++: divergence from prototypes, where they come from, and what they add."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.tasks.open_set import OpenSet
from expunge.forget.gs_lora_pp import divergence
from expunge.forget.method import Given, apply
from expunge.models.heads import CosineHead

QUICK = {"epochs": 12, "batch_size": 20}


def hidden(model, records):
    with torch.no_grad():
        return model[1](model[0](torch.from_numpy(np.asarray(records["x"]))))


def apart(world, model, records):
    """Mean divergence of features from the prototypes of the first model, in plain torch."""
    whole = torch.cat([hidden(world.model, r) for r in (world.forget, world.retain)]).double()
    labels = np.concatenate([np.asarray(r["y"]) for r in (world.forget, world.retain)])
    means = torch.stack([whole[labels == c].mean(0) for c in range(10)])
    target = F.log_softmax(means[np.asarray(records["y"])], -1)
    now = F.log_softmax(hidden(model, records).double(), -1)
    return float(F.kl_div(now, target, log_target=True, reduction="batchmean"))


def run(world, settings):
    given = Given(world.task, world.forget, world.retain)
    return apply("gs_lora_pp", world.model, given, Run(), {"schedule": QUICK, **settings})


def test_the_divergence_is_that_of_the_released_code():
    """(2, 0, 0) and (0, 1, 0): 0.779365, by torch's kl_div with log targets and batchmean."""
    prototypes, features = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    assert float(divergence(prototypes, features)) == pytest.approx(0.779365, abs=1e-6)


@given(
    st.lists(st.floats(-20, 20), min_size=3, max_size=3),
    st.lists(st.floats(-20, 20), min_size=3, max_size=3),
    st.floats(-5, 5),
)
def test_the_divergence_is_never_negative_and_blind_to_constants(p, e, constant):
    one, other = torch.tensor([p], dtype=torch.float64), torch.tensor([e], dtype=torch.float64)
    value = float(divergence(one, other))
    assert value >= -1e-12
    assert float(divergence(one, other + constant)) == pytest.approx(value, abs=1e-9)
    assert float(divergence(one, one + constant)) == pytest.approx(0, abs=1e-12)


def test_features_of_what_is_forgotten_leave_their_prototypes(digits_world):
    world = digits_world
    pushed, plain = (run(world, {"push": w, "beta": 0.0, "alpha": 0.0}) for w in (1.0, 0.0))
    assert pushed.history.stopped is None
    first, last = (apart(world, m, world.forget) for m in (world.model, pushed.model))
    assert last > first + 0.2
    assert apart(world, plain.model, world.forget) < last - 0.2


def test_without_its_terms_it_is_gs_lora(digits_world):
    world = digits_world
    given = Given(world.task, world.forget, world.retain)
    plain = apply("gs_lora", world.model, given, Run(), {"schedule": QUICK})
    same = run(world, {"push": 0.0, "pull": 0.0})
    assert plain.history == same.history
    pairs = zip(plain.model.state_dict().values(), same.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_retained_features_are_held_by_the_pull(digits_world):
    world = digits_world
    held, free = (run(world, {"pull": w, "alpha": 0.0}) for w in (3.0, 0.0))
    assert apart(world, held.model, world.retain) < apart(world, free.model, world.retain)
    assert {"push", "pull"} <= set(held.history.steps[0])


def test_the_first_step_reports_the_divergence_from_the_original_prototypes(digits_world):
    """Prototypes are means over all records of a class, forgotten and retained ones."""
    world = digits_world
    settings = {"schedule": {"epochs": 1, "batch_size": 1000}, "pull": 1.0, "alpha": 0.0}
    first = run(world, settings).history.steps[0]
    assert first["pull"] == pytest.approx(apart(world, world.model, world.retain), rel=1e-4)


def test_the_push_ends_at_its_bound(digits_world):
    world = digits_world
    bound = apart(world, world.model, world.forget) + 0.2
    settings = {"prototype_bound": bound, "push": 1.0, "beta": 0.0, "alpha": 0.0}
    near = [s["push"] for s in run(world, settings).history.steps[-10:]]
    far = [s["push"] for s in run(world, {**settings, "prototype_bound": 50.0}).history.steps[-10:]]
    assert np.mean(near) == pytest.approx(bound, abs=0.15)
    assert np.mean(far) > np.mean(near) + 0.2


def test_the_usual_bound_follows_the_size_of_the_features(digits_world):
    world, schedule = digits_world, {"epochs": 2, "batch_size": 20}
    by_default = run(world, {"schedule": schedule})
    by_hand = run(world, {"schedule": schedule, "prototype_bound": 3 * math.log(32)})
    assert by_default.history == by_hand.history


def test_a_model_of_faces_is_run_without_its_margin_while_it_trains():
    """The margin is part of the logits in train mode; features do not depend on it."""
    draw = np.random.default_rng(0)
    records = Records(
        tuple(f"r{i}" for i in range(24)),
        {"x": draw.normal(size=(24, 6)).astype(np.float32), "y": np.arange(24) % 3},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), CosineHead(8, 3, 8.0))
    forget, retain = records.take(range(8)), records.take(range(8, 24))
    settings = {"bound": 20.0, "schedule": {"epochs": 1, "batch_size": 8}}

    def first(margin):
        given = Given(OpenSet(3, margin=margin), forget, retain, guard=None)
        return apply("gs_lora_pp", model, given, Run(), settings).history.steps[0]

    with_margin, without = first(2.0), first(0.0)
    assert with_margin["push"] == without["push"]
    assert with_margin["forget"] > without["forget"] + 0.5
