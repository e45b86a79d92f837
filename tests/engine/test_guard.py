"""The guard's measure equals a plain computation, and its sample is drawn once."""

import copy

import numpy as np
import pytest
from torch import nn

from expunge.engine.guard import Guard, GuardSettings


def numpy_nll(model, records):
    """Mean cross entropy of a Linear-ReLU-Linear network, from its weights alone."""
    w = {name: value.double().numpy() for name, value in model.state_dict().items()}
    hidden = np.maximum(np.asarray(records["x"], float) @ w["0.weight"].T + w["0.bias"], 0)
    logits = hidden @ w["2.weight"].T + w["2.bias"]
    logits -= logits.max(1, keepdims=True)
    logprobs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return -logprobs[np.arange(len(logits)), records["y"]].mean()


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_measure_is_the_mean_loss_per_target(digits_world, batch_size):
    world = digits_world
    guard = Guard.of(GuardSettings(), world.retain, seed=0)
    measured = guard.measure(world.model, world.task, "cpu", batch_size)
    assert measured == pytest.approx(numpy_nll(world.model, guard.records), rel=1e-5)


def test_measure_counts_tokens_not_records(questions_world):
    world = questions_world
    guard = Guard.of(GuardSettings(), world.retain, seed=0)
    batch = world.task.batch(guard.records, range(len(guard.records)))
    nll_B = world.task.predict(world.model, batch).nll_B().detach()
    nll = float(nll_B.sum()) / len(batch.targets_N)
    assert guard.measure(world.model, world.task, "cpu", 4) == pytest.approx(nll, rel=1e-5)


def test_measure_runs_in_eval_mode_and_leaves_the_mode(digits_world):
    model = copy.deepcopy(digits_world.model)
    model = nn.Sequential(*model, nn.Dropout(0.9)).train()
    guard = Guard.of(GuardSettings(), digits_world.retain, seed=0)
    measured = guard.measure(model, digits_world.task, "cpu", 64)
    assert measured == pytest.approx(numpy_nll(model, guard.records), rel=1e-5)
    assert all(module.training for module in model.modules())


def test_the_sample_is_a_function_of_the_seed(digits_world):
    retain = digits_world.retain
    settings = GuardSettings(num_records=20)
    ids = Guard.of(settings, retain, seed=0).records.ids
    assert ids == Guard.of(settings, retain, seed=0).records.ids
    assert ids != Guard.of(settings, retain, seed=1).records.ids
    assert len(set(ids)) == 20
    assert set(ids) <= set(retain.ids)


def test_few_records_are_all_watched(digits_world):
    few = digits_world.retain.take(range(3))
    assert Guard.of(GuardSettings(), few, seed=0).records.ids == few.ids
