"""Who's Harry Potter: logits lowered where a reinforced model's rise."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge.core.run import Run
from expunge.engine.composites.logit_difference import combine
from expunge.engine.loop import Stream, fit
from expunge.engine.schedule import Schedule
from expunge.engine.weights import state_digest
from expunge.forget.method import Given, apply, methods
from expunge.train.supervised import likelihood

SCHEDULE = {"epochs": 5, "batch_size": 6, "lr": 3e-3}


@pytest.mark.parametrize(
    ("alpha", "golden"), [(1.0, [0.5, 2, -2.5, -1]), (5.0, [-1.5, 2, -14.5, -1])]
)
def test_golden_logits(alpha, golden):
    z_b, z_r = torch.tensor([1, 2, 0.5, -1]), torch.tensor([1.5, 1, 3.5, -1])
    assert combine(z_b, z_r, alpha, "offset").tolist() == golden


logits = st.lists(st.floats(-20, 20), min_size=5, max_size=5)


@given(logits, logits, st.floats(0, 50))
def test_it_equals_numpy_and_never_raises_a_logit(base, reinforced, alpha):
    b, r = np.array(base), np.array(reinforced)
    got = combine(torch.from_numpy(b), torch.from_numpy(r), alpha, "offset").numpy()
    np.testing.assert_allclose(got, b - alpha * np.maximum(r - b, 0), atol=1e-12)
    assert (got <= b).all()


@pytest.fixture(scope="module")
def subtracted(questions_world):
    world = questions_world
    given = Given(world.task, world.forget, world.retain)
    settings = {"alpha": 3.0, "schedule": SCHEDULE}
    return apply("whp", world.model, given, Run(), settings)


def test_the_target_keeps_its_bits_and_the_assistant_is_the_reinforced_model(
    questions_world, subtracted
):
    world = questions_world
    reinforced = copy.deepcopy(world.model)
    terms = [likelihood(world.task, "forget")]
    streams = {"forget": Stream(world.forget)}
    fit(reinforced, world.task, streams, terms, Schedule(**SCHEDULE), Run())
    model = subtracted.model
    assert state_digest(model.target) == state_digest(world.model)
    assert state_digest(model.assistant) == state_digest(reinforced) != state_digest(world.model)
    assert (model.alpha, model.rule, model.keep_ratio) == (3.0, "offset", 0.0)
    assert (model.evidence, methods.get("whp").evidence) == ("output-suppressed",) * 2


def test_scores_are_those_of_the_formula(questions_world, subtracted):
    world = questions_world
    batch = world.task.batch(world.forget, range(len(world.forget)))
    with torch.no_grad():
        z, z_b, z_r = (
            world.task.predict(model, batch).logits_NV.numpy()
            for model in (subtracted.model, subtracted.model.target, subtracted.model.assistant)
        )
    np.testing.assert_allclose(z, z_b - 3.0 * np.maximum(z_r - z_b, 0), atol=1e-5)
    assert np.abs(z - z_b).max() > 0.1


def test_the_loss_on_forgotten_records_grows_with_alpha(questions_world, subtracted):
    world = questions_world
    batch = world.task.batch(world.forget, range(len(world.forget)))
    model, losses = copy.deepcopy(subtracted.model), []
    for alpha in (0.0, 1.0, 3.0, 10.0):
        model.alpha = alpha
        with torch.no_grad():
            losses.append(float(world.task.predict(model, batch).nll_B().mean()))
    assert losses == sorted(losses)
    assert losses[-1] > losses[0] + 0.1


def test_without_subtraction_it_is_the_target_bit_by_bit(questions_world):
    world = questions_world
    given = Given(world.task, world.forget)
    model = apply("whp", world.model, given, Run(), {"alpha": 0.0, "schedule": SCHEDULE}).model
    batch = world.task.batch(world.retain, range(len(world.retain)))
    with torch.no_grad():
        pair = [world.task.predict(m, batch).logits_NV for m in (model, world.model)]
    assert torch.equal(*pair)
