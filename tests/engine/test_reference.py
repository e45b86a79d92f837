"""Reference likelihoods are computed once per model, task and records."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from expunge.core.errors import NumericalError
from expunge.core.run import Run
from expunge.engine.reference import reference_nll


class Counted(nn.Module):
    """Counts forward passes."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.inner(x)


def test_values_are_sums_over_target_positions_by_id(questions_world):
    world = questions_world
    values = reference_nll(world.model, world.task, world.forget, Run(), batch_size=2).values
    for row, name in enumerate(world.forget.ids):
        batch = world.task.batch(world.forget, [row])
        with torch.no_grad():
            logprobs = torch.log_softmax(world.task.predict(world.model, batch).logits_NV, -1)
        expected = -logprobs.numpy()[np.arange(len(batch.targets_N)), batch.targets_N].sum()
        assert values[name] == pytest.approx(float(expected), abs=1e-5)


def test_a_second_call_does_no_forward_pass(digits_world, tmp_path):
    model = Counted(digits_world.model)
    first = reference_nll(model, digits_world.task, digits_world.forget, Run(folder=tmp_path))
    calls = model.calls
    assert calls == 2  # 40 records, 32 at a time
    again = reference_nll(model, digits_world.task, digits_world.forget, Run(folder=tmp_path))
    assert (model.calls, again.values) == (calls, first.values)


def test_another_model_task_or_record_is_scored_anew(digits_world, tmp_path):
    world = digits_world
    run = Run(folder=tmp_path)
    first = reference_nll(world.model, world.task, world.forget, run).values
    changed = copy.deepcopy(world.model)
    with torch.no_grad():
        changed[2].bias[0] += 1.0
    assert reference_nll(changed, world.task, world.forget, run).values != first
    relabelled = world.forget.replace(y=(world.forget["y"] + 1) % 10)
    assert reference_nll(world.model, world.task, relabelled, run).values != first
    assert len(list(tmp_path.glob("reference-nll-*.json"))) == 3


def test_scoring_is_in_eval_mode_and_leaves_the_mode(digits_world):
    noisy = nn.Sequential(*copy.deepcopy(digits_world.model), nn.Dropout(0.9)).train()
    values = reference_nll(noisy, digits_world.task, digits_world.forget, Run()).values
    plain = reference_nll(digits_world.model, digits_world.task, digits_world.forget, Run()).values
    assert values == pytest.approx(plain, rel=1e-6)
    assert noisy[3].training


def test_batches_ask_by_id_in_their_own_order_and_type(digits_world):
    reference = reference_nll(digits_world.model, digits_world.task, digits_world.forget, Run())
    ids = digits_world.forget.ids[5:2:-1]
    values_B = reference.of(ids, torch.zeros(3, dtype=torch.float64))
    assert values_B.dtype == torch.float64
    assert values_B.tolist() == [reference.values[i] for i in ids]


def test_a_likelihood_that_is_no_number_names_the_record(digits_world):
    x = digits_world.forget["x"].copy()
    x[3, 0] = np.nan
    with pytest.raises(NumericalError, match=r"1 records .*\(digit-3\); check their inputs"):
        reference_nll(
            digits_world.model, digits_world.task, digits_world.forget.replace(x=x), Run()
        )
