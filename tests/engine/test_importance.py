"""Importances of weights against known values and plain numpy, and what a pass leaves behind."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from expunge.core.errors import (
    ConfigError,
    DataError,
    IntegrityError,
    Interrupted,
    NumericalError,
)
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.core.streams import stream
from expunge.engine.importance import Estimator, measure_importance, require_comparable
from expunge.engine.tasks.classifier import Classifier
from expunge.engine.unlabelled import without_labels

X = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
Y = [0, 0, 1]
ALONE = [[0.107443, 0.261482], [0.107443, 0.261482]]  # the public routine, batches of one record
TOGETHER = 0.005932  # the same with one batch of three


class Counting(Classifier):
    """Counts forward passes, and may act after one of them."""

    def __init__(self, num_classes, at=None, do=None):
        super().__init__(num_classes)
        self.calls, self.at, self.do = 0, at, do

    def predict(self, model, batch):
        self.calls += 1
        if self.calls == self.at:
            self.do()
        return super().predict(model, batch)


def toy():
    model = nn.Linear(2, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
    return model, Records(tuple("abc"), {"x": np.array(X), "y": Y})


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)
        )


def many(count=23):
    draw = np.random.default_rng(0)
    return Records(
        tuple(f"r{i}" for i in range(count)),
        {"x": draw.normal(size=(count, 4)).astype(np.float32), "y": draw.integers(3, size=count)},
    )


def measured(model, task, records, estimator, run=None, **options):
    """Importances of every parameter, read while the run's folder is there."""
    run = run or Run()
    found = measure_importance(model, task, records, estimator, run, **options)
    return {name: found.of(name, p) for name, p in model.named_parameters() if name in found.files}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def oracle(weight, x, y, order, size):
    """Weighted mean over batches of the squared gradient of the mean cross entropy."""
    total = np.zeros_like(weight)
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        logits = x[rows] @ weight.T
        shares = np.exp(logits - logits.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        shares[np.arange(len(rows)), y[rows]] -= 1
        total += len(rows) / len(order) * (shares.T @ x[rows] / len(rows)) ** 2
    return total


@pytest.mark.parametrize(("size", "expected"), [(1, ALONE), (3, [[TOGETHER] * 2] * 2)])
def test_golden_importances(size, expected):
    """Card of corrective unlearning, section 10; size decides by a factor of 18 to 44."""
    model, records = toy()
    found = measured(model, Classifier(2), records, Estimator(size))
    np.testing.assert_allclose(found["weight"], expected, atol=5e-7)


@given(size=st.integers(1, 12), count=st.integers(1, 11), seed=st.integers(0, 3))
def test_a_smaller_last_batch_weighs_by_its_size(size, count, seed):
    draw = np.random.default_rng(seed)
    x, y = draw.normal(size=(count, 2)), draw.integers(2, size=count)
    model, _ = toy()
    records = Records(tuple(map(str, range(count))), {"x": x, "y": y})
    found = measured(model, Classifier(2), records, Estimator(size), Run(seed))
    order = stream(seed, "importance").permutation(count)
    expected = oracle(np.eye(2), x, y, order, size)
    np.testing.assert_allclose(found["weight"], expected, atol=1e-12)


def test_without_labels_it_is_the_absolute_gradient_of_the_squared_output():
    """Gradient of mean |W x|² is 2 W mean(x x'), by hand; nothing has labels."""
    model, records = toy()
    task, bare = Classifier(2), without_labels(Classifier(2), records)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0], [0.5, 1.0]]))
    found = measured(model, task, bare, Estimator(3, label_free=True))
    x, weight = np.array(X), model.weight.detach().numpy()
    expected = np.abs(2 * weight @ (x.T @ x) / 3)
    np.testing.assert_allclose(found["weight"], expected, atol=1e-12)


def test_passes_change_memory_and_not_a_bit(tmp_path):
    model, records, task, run = network(), many(), Counting(3), Run(folder=tmp_path)
    whole = measured(model, Classifier(3), records, Estimator(4))
    assert same(measured(model, task, records, Estimator(4), run, passes=3), whole)
    assert task.calls == 3 * 6
    assert len(list(tmp_path.glob("importance-*.safetensors"))) == 3


def test_more_passes_than_parameters_are_as_many():
    model, records = toy()
    found = measured(model, Classifier(2), records, Estimator(3), passes=9)
    np.testing.assert_allclose(found["weight"], TOGETHER, atol=5e-7)


def test_one_gradient_is_alive_at_a_time():
    """The memory of a pass beside weights and importances is that of the largest parameter."""
    model, alive = network(), []
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(p.grad is not None for p in parameters))
        )
    measure_importance(model, Classifier(3), many(), Estimator(8), Run())
    assert alive == [1] * (3 * len(parameters))


def test_a_pass_changes_nothing_about_the_model():
    """Weights, statistics, modes, flags, gradients, hooks; dropout and batch norm are in eval."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
    model[0].weight.requires_grad_(False)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (measured(model, Classifier(3), many(), Estimator(8)) for _ in range(2))
    assert same(first, second)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * 5
    assert all(p.grad is None for p in model.parameters())
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_frozen_parameters_have_none():
    model = network()
    model[0].weight.requires_grad_(False)
    found = measure_importance(model, Classifier(3), many(), Estimator(8), Run())
    assert set(found.files) == {n for n, _ in model.named_parameters()} - {"0.weight"}


def test_flags_and_gradients_are_restored_on_an_error():
    model = network()
    task = Counting(3, 2, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        measure_importance(model, task, many(), Estimator(8), Run())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_cancelled_pass_goes_on_with_the_same_bits(tmp_path, at):
    model, records = network(), many()
    whole = measured(model, Classifier(3), records, Estimator(4))
    run = Run(folder=tmp_path)
    with pytest.raises(Interrupted, match="cancelled"):
        measure_importance(model, Counting(3, at, run.cancel), records, Estimator(4), run)
    task = Counting(3)
    assert same(measured(model, task, records, Estimator(4), Run(folder=tmp_path)), whole)
    assert task.calls == 6 - at


def test_a_killed_pass_goes_on_from_its_last_checkpoint(tmp_path):
    model, records = network(), many()
    run = Run(folder=tmp_path, checkpoint_every=2)
    with pytest.raises(ZeroDivisionError):
        measure_importance(model, Counting(3, 6, lambda: 1 / 0), records, Estimator(4), run)
    task = Counting(3)
    found = measured(model, task, records, Estimator(4), run)
    assert task.calls == 2  # batches five and six
    assert same(found, measured(model, Classifier(3), records, Estimator(4)))


def test_a_finished_pass_is_not_repeated(tmp_path):
    model, records, run = network(), many(), Run(folder=tmp_path)
    first, task = measured(model, Classifier(3), records, Estimator(4), run), Counting(3)
    assert same(measured(model, task, records, Estimator(4), run), first)
    assert task.calls == 0
    assert not list(tmp_path.rglob("state-*"))


def test_importances_of_another_model_are_refused(tmp_path):
    run = Run(folder=tmp_path)
    measure_importance(network(), Classifier(3), many(), Estimator(4), run)
    other = network()
    with torch.no_grad():
        other[0].bias.add_(1)
    with pytest.raises(ConfigError, match=r"of another model, of other data or settings.*--out"):
        measure_importance(other, Classifier(3), many(), Estimator(4), run)


def test_damaged_importances_are_refused(tmp_path):
    model, run = network(), Run(folder=tmp_path)
    measure_importance(model, Classifier(3), many(), Estimator(4), run)
    path = tmp_path / "importance-0.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(IntegrityError, match="is not what was written"):
        measure_importance(model, Classifier(3), many(), Estimator(4), run)
    head = tmp_path / "importance-0.json"
    head.write_text(json.dumps([]))
    with pytest.raises(ConfigError, match="delete this one"):
        measure_importance(model, Classifier(3), many(), Estimator(4), run)


def test_no_record_is_refused():
    with pytest.raises(DataError, match="forget set: there is no record"):
        measure_importance(
            network(), Classifier(3), many().take([]), Estimator(4), Run(), label="forget set"
        )


def test_a_model_that_is_frozen_is_refused():
    with pytest.raises(ConfigError, match="no parameter of the model needs a gradient"):
        measure_importance(
            network().requires_grad_(False), Classifier(3), many(), Estimator(4), Run()
        )


def test_gradients_that_are_not_finite_are_refused():
    model = network()
    with torch.no_grad():
        model[0].weight.fill_(float("inf"))
    with pytest.raises(NumericalError, match=r"gradients of .* parameters are NaN or infinite"):
        measure_importance(model, Classifier(3), many(), Estimator(4), Run())


@pytest.mark.parametrize("other", [Estimator(5), Estimator(4, label_free=True)])
def test_squares_on_different_scales_are_not_compared(other):
    model, records = network(), many()
    one, two = (
        measure_importance(model, Classifier(3), records, estimator, Run())
        for estimator in (Estimator(4), other)
    )
    with pytest.raises(ConfigError, match="with the same batch size and loss"):
        require_comparable(one, two, list(one.files))


def test_importances_of_other_parameters_are_refused():
    model, records = network(), many()
    found = measure_importance(model, Classifier(3), records, Estimator(4), Run())
    with pytest.raises(DataError, match=r"differ in 1 parameters \(extra\)"):
        require_comparable(found, found, [*found.files, "extra"])
