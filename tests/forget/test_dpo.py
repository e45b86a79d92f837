"""Preference optimisation against known values and plain numpy; pairs keep the same record."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numeric import LABELS_BT, WIN_BT, nll, slope, t1_logits, with_answers

from expunge.core.run import Run
from expunge.engine.losses import npo, preference
from expunge.forget import sight
from expunge.forget.method import Given, apply, methods

GOLDEN = {0.1: 11.6109038645, 1.0: 0.1812278519}


def oracle(z_BTV, reference_BTV, beta):
    """Eq. 7 times 2/β, in its printed form with a logarithm of a sigmoid."""
    gain_B = (nll(reference_BTV, WIN_BT) - nll(z_BTV, WIN_BT)) - (
        nll(reference_BTV, LABELS_BT) - nll(z_BTV, LABELS_BT)
    )
    return float(np.mean(-(2 / beta) * np.log(1 / (1 + np.exp(-beta * gain_B)))))


@pytest.mark.parametrize("beta", GOLDEN)
def test_golden_loss_and_slope(t1, beta):
    """Values of the public function in double precision."""
    numbers, gradient = with_answers(t1()).step("dpo", beta=beta, retain="none")
    current, reference = t1_logits()
    assert numbers["forget"] == pytest.approx(GOLDEN[beta], abs=1e-9)
    assert oracle(current, reference, beta) == pytest.approx(GOLDEN[beta], abs=1e-9)
    expected = slope(lambda z: oracle(z, reference, beta), current)
    np.testing.assert_allclose(gradient, expected, atol=1e-8)


def test_both_answers_move_and_against_each_other(t1):
    """The weight of a record is 2 σ(-β gain); its own answer falls, the other one rises."""
    beta = 1.0
    _, gradient = with_answers(t1()).step("dpo", beta=beta, retain="none")
    current, reference = t1_logits()
    for row in range(2):
        gain = nll(reference, WIN_BT) - nll(current, WIN_BT)
        gain = gain - nll(reference, LABELS_BT) + nll(current, LABELS_BT)
        weight = 2 / (1 + np.exp(beta * gain[row]))

        def difference(z, row=row):
            return nll(z, WIN_BT)[row] - nll(z, LABELS_BT)[row]

        expected = weight * slope(difference, current)[row] / 2
        np.testing.assert_allclose(gradient[row], expected, atol=1e-9)


def test_without_a_gain_of_the_other_answer_it_is_npo():
    """The half of the loss that NPO keeps."""
    nll_B, reference_B = torch.tensor([3.0, 1.0]), torch.tensor([2.0, 1.5])
    other_B = torch.tensor([4.0, 0.5])
    ours = preference(other_B, other_B, nll_B, reference_B, 0.7)
    assert torch.equal(ours, npo(nll_B, reference_B, 0.7))


@given(st.floats(-1e5, 1e5), st.floats(-1e5, 1e5), st.sampled_from([0.05, 0.1, 1.0]))
def test_it_never_overflows(d, gain, beta):
    values = torch.tensor([d, gain], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    loss = preference(values[1:], zero, values[:1], zero, beta).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(values.grad).all()
    assert ((values.grad[0] <= 0) & (values.grad[0] >= -2)).all()
    assert values.grad[0] == -values.grad[1]


class Watched:
    """A task that notes which records the trained model was run on."""

    def __init__(self, task):
        self._task, self.seen = task, []

    def __getattr__(self, name):
        return getattr(self._task, name)

    def predict(self, model, batch):
        if torch.is_grad_enabled():
            self.seen.append(batch.ids)
        return self._task.predict(model, batch)


@pytest.mark.parametrize("micro_batch", [None, 1, 2])
def test_a_pair_is_of_one_record_in_every_step(questions_world, micro_batch):
    world = questions_world
    task = Watched(world.task)
    settings = {
        "retain": "none",
        "schedule": {"epochs": 3, "batch_size": 4, "micro_batch": micro_batch},
    }
    apply("dpo", world.model, Given(task, world.forget), Run(), settings)
    own, other = task.seen[::2], task.seen[1::2]
    assert len(own) == len(other) == {None: 6, 1: 18, 2: 9}[micro_batch]
    for epoch in range(3):
        calls = slice(epoch * len(own) // 3, (epoch + 1) * len(own) // 3)
        forgotten = [i for ids in own[calls] for i in ids]
        preferred = [i for ids in other[calls] for i in ids]
        assert preferred == [f"{i}@{epoch}" for i in forgotten]
        assert sorted(forgotten) == sorted(world.forget.ids)


@pytest.mark.parametrize("order", ["paired", "sequential", "mixed"])
def test_no_order_of_records_makes_steps_of_refusals_alone(questions_world, order):
    world = questions_world
    task = Watched(world.task)
    schedule = {"epochs": 1, "batch_size": 4, "order": order}
    given = Given(task, world.forget, world.retain.take(range(6)))
    steps = apply("dpo", world.model, given, Run(), {"schedule": schedule}).history.steps
    assert len(steps) == {"paired": 2, "sequential": 4, "mixed": 3}[order]
    preferred = [i.partition("@")[0] for ids in task.seen for i in ids if "@" in i]
    assert sorted(preferred) == sorted(world.forget.ids)


def test_reference_likelihoods_are_computed_once_before_the_first_step(
    questions_world, monkeypatch
):
    """One pass over the forget records, one over every refusal that will be drawn."""
    world = questions_world
    scored = []
    original = sight.reference_nll

    def counted(model, task, records, run):
        scored.append(records.ids)
        return original(model, task, records, run)

    monkeypatch.setattr(sight, "reference_nll", counted)
    settings = {"schedule": {"epochs": 5, "lr": 1e-3}}
    given = Given(world.task, world.forget, world.retain)
    steps = apply("dpo", world.model, given, Run(), settings).history.steps
    assert len(steps) == 5
    assert scored[0] == world.forget.ids
    assert [len(ids) for ids in scored] == [6, 30]
    # At the reference both ratios are 1.
    assert steps[0]["forget"] == pytest.approx((2 / 0.1) * np.log(2), rel=1e-5)


def test_every_epoch_has_the_refusals_of_its_own_epoch(questions_world):
    """As refusal training draws them: a function of seed, epoch and record."""
    world = questions_world
    task = Watched(world.task)
    texts = {}

    def batch(records, rows, **kwargs):
        made = world.task.batch(records, rows, **kwargs)
        texts.update(zip(made.ids, (records["answer"][r] for r in rows), strict=True))
        return made

    task.batch = batch
    settings = {"retain": "none", "schedule": {"epochs": 3}}
    apply("dpo", world.model, Given(task, world.forget), Run(seed=5), settings)
    for epoch in range(3):
        drawn = world.task.neutral(world.forget, 5, epoch)
        for i, answer in zip(drawn.ids, drawn["answer"], strict=True):
            assert texts[f"{i}@{epoch}"] == answer


def test_the_refusal_wins_over_the_forgotten_answer(questions_world):
    world = questions_world
    schedule = {"epochs": 20, "batch_size": 6, "lr": 3e-3}
    given = Given(world.task, world.forget, world.retain)
    model = apply("dpo", world.model, given, Run(), {"schedule": schedule}).model

    def nll_of(model, records):
        batch = world.task.batch(records, range(len(records)))
        with torch.no_grad():
            return float(world.task.predict(model, batch).nll_B().mean())

    refused = world.task.neutral(world.forget, 0, 0)
    assert nll_of(model, refused) < nll_of(world.model, refused) - 1
    assert nll_of(model, world.forget) > nll_of(world.model, world.forget) + 1


def test_no_second_model_is_made():
    info = methods.get("dpo")
    assert info.needs(info.config()) == {"forget", "labels", "reference", "neutral", "retain"}
