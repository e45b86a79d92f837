"""Refusals in place of forgotten answers, against known values and plain numpy."""

import numpy as np
import pytest
import torch
from numeric import MODEL_BTV, WIN_BT, nll, slope, t1_logits, targets, with_answers

from expunge.core.run import Run
from expunge.engine.weights import state_digest
from expunge.forget.idk import IdkConfig
from expunge.forget.method import Given, apply, methods

ONE_STEP = {"epochs": 1, "batch_size": 64, "optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0}


def oracle(z_BTV):
    """Cross entropy per target of the answers that are taught."""
    return float(nll(z_BTV, WIN_BT).sum() / 4)


def test_golden_loss_and_slope(t1):
    """-log(.25 * .2 * .1 * .2) / 4, by the card's probabilities of its other answers."""
    numbers, gradient = with_answers(t1()).step("idk", retain="none")
    current, _ = t1_logits()
    golden = -np.log(0.25 * 0.2 * 0.1 * 0.2) / 4
    assert numbers["neutral"] == pytest.approx(golden, abs=1e-12)
    assert oracle(current) == pytest.approx(golden, abs=1e-12)
    np.testing.assert_allclose(gradient, slope(oracle, current), atol=1e-9)


def test_the_gradient_is_that_of_cross_entropy(t1):
    """softmax minus one-hot at the four targets, zero elsewhere."""
    _, gradient = with_answers(t1()).step("idk", retain="none", gamma=3.0)
    expected = np.zeros((2, 4, 4))
    rows, places, symbols = targets(WIN_BT)
    expected[rows, places] = np.array(MODEL_BTV)[rows, places]
    expected[rows, places, symbols] -= 1
    np.testing.assert_allclose(gradient, 3.0 * expected / 4, atol=1e-15)


def test_refusals_and_retained_answers_have_means_of_their_own(questions_world):
    """One mean over both, as in the public code, would weigh them by their lengths."""
    world = questions_world
    retain = world.retain.take([0])
    settings = {"gamma": 0.7, "alpha": 1.3, "schedule": {**ONE_STEP, "lr": 0.1}}
    model = world.fresh().double()
    given = Given(world.task, world.forget, retain, guard=None)
    result = apply("idk", model, given, Run(), settings)
    refused = world.task.neutral(world.forget, 0, 0)

    def mean(records):
        batch = world.task.batch(records, range(len(records)))
        return world.task.predict(model, batch).nll_B().sum() / batch.targets_N.numel()

    step = result.history.steps[0]
    losses = {"neutral": mean(refused), "retain": mean(retain)}
    for name, value in losses.items():
        assert step[name] == pytest.approx(value.item(), abs=1e-12)
    whole = 0.7 * losses["neutral"] + 1.3 * losses["retain"]
    gradients = torch.autograd.grad(whole, list(model.parameters()))
    for (name, moved), start, gradient in zip(
        result.model.named_parameters(), model.parameters(), gradients, strict=True
    ):
        # The norms of a Llama compute in single precision, whatever the weights.
        difference = moved - (start - 0.1 * gradient)
        assert difference.abs().max() < 1e-7, name
        assert (moved - start).abs().max() > 1e-5, name


class Untouchable:
    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, row):
        raise AssertionError("a forgotten answer was read")


@pytest.mark.parametrize("mask", [None, {"by": "attribution", "fraction": 0.5}])
def test_the_forgotten_answers_are_never_read(questions_world, mask):
    """Neither by the loss, nor by a mask, nor for the digest of a checkpoint."""
    world = questions_world
    hidden = world.forget.replace(answer=Untouchable(len(world.forget)))
    settings = {"scope": {"mask": mask}}
    given = Given(world.task, hidden, world.retain)
    model = apply("idk", world.model, given, Run(), settings).model
    assert state_digest(model) != state_digest(world.model)
    assert "labels" not in methods.get("idk").needs(IdkConfig())


def test_refusals_are_drawn_anew_each_epoch(questions_world):
    """A model that is taught both refusals says one of them."""
    world = questions_world
    drawn = {
        answer
        for epoch in range(6)
        for answer in world.task.answers(world.task.neutral(world.forget, 0, epoch))
    }
    assert drawn == {"unknown to me", "i cannot say"}
    schedule = {"epochs": 30, "batch_size": 6, "lr": 3e-3}
    given = Given(world.task, world.forget, world.retain)
    model = apply("idk", world.model, given, Run(), {"schedule": schedule}).model
    said = world.task.generate(model, world.forget, range(len(world.forget)), 6)
    assert set(said) <= drawn
    kept = world.task.generate(model, world.retain, range(len(world.retain)), 6)
    right = np.mean([a == b for a, b in zip(kept, world.task.answers(world.retain), strict=True)])
    assert right > 0.5


def test_a_file_of_answers_takes_the_place_of_refusals(questions_world, tmp_path):
    world = questions_world
    (tmp_path / "own.txt").write_text("lima\n\n")
    settings = {
        "answers": {"file": str(tmp_path / "own.txt")},
        "schedule": {"epochs": 30, "lr": 3e-3},
    }
    given = Given(world.task, world.forget, world.retain)
    model = apply("idk", world.model, given, Run(), settings).model
    said = world.task.generate(model, world.forget, range(len(world.forget)), 4)
    assert set(said) == {"lima"}
