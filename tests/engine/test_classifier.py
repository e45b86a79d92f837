import numpy as np
import pytest
import torch
from torch import nn

from expunge.core.errors import ConfigError, DataError, UnsupportedModelError
from expunge.core.records import Records
from expunge.engine.task import Task, tasks
from expunge.engine.tasks.classifier import Classifier


def table(labels, inputs=None):
    size = len(labels)
    x = np.arange(size * 2.0).reshape(size, 2) if inputs is None else inputs
    return Records(tuple(f"r{i}" for i in range(size)), {"x": x, "y": labels})


@pytest.fixture
def linear():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(2, 3)


def test_registered_and_satisfies_the_contract():
    made = tasks.get("classifier").make(3)
    assert isinstance(made, Classifier)
    assert isinstance(made, Task)


def test_each_record_is_one_position(linear):
    task, records = Classifier(3), table([2, 0, 1, 1])
    batch = task.batch(records, [3, 0])
    assert batch.ids == ("r3", "r0")
    assert batch.inputs["x"].tolist() == [[6, 7], [0, 1]]
    assert batch.targets_N.tolist() == [1, 2]
    assert batch.counts_B.tolist() == [1, 1]
    assert task.num_targets(records) == task.lengths(records) == [1] * 4


def test_losses_equal_numpy_whatever_the_batch(linear):
    task, records = Classifier(3), table([2, 0, 1, 1])
    weight, bias = (p.detach().double().numpy() for p in (linear.weight, linear.bias))
    logits_NV = records["x"] @ weight.T + bias
    oracle = np.log(np.exp(logits_NV).sum(1)) - logits_NV[range(4), records["y"]]
    for rows in ([0, 1, 2, 3], [3, 1], [2]):
        nll_B = task.predict(linear, task.batch(records, rows)).nll_B()
        np.testing.assert_allclose(nll_B.detach().numpy(), oracle[rows], atol=1e-5)


@pytest.mark.parametrize("inputs", [np.uint8, np.int64, np.float16, np.float32, np.float64, bool])
@pytest.mark.parametrize("weights", [torch.float32, torch.float64, torch.bfloat16])
def test_inputs_of_any_numeric_type_suit_weights_of_any_type(linear, inputs, weights):
    records = table([0, 1], np.array([[1, 0], [0, 1]], dtype=inputs))
    predictions = Classifier(3).predict(linear.to(weights), Classifier(3).batch(records, [0, 1]))
    assert predictions.logits_NV.dtype == weights
    expected = (linear.weight.T + linear.bias).detach()
    torch.testing.assert_close(predictions.logits_NV.detach(), expected, rtol=0.01, atol=0.01)


def test_other_columns_and_lazy_labels(linear):
    records = Records(("a", "b"), {"pixels": torch.ones(2, 2), "class": torch.tensor([2, 1])})
    task = Classifier(3, inputs="pixels", labels="class")
    assert task.batch(records, [0, 1]).targets_N.tolist() == [2, 1]


def test_labels_are_not_read_unless_asked_for():
    unlabelled = Records(("a",), {"x": np.zeros((1, 2))})
    assert Classifier(3).batch(unlabelled, [0], targets=False).targets_N.numel() == 0
    with pytest.raises(DataError, match="no column 'y'"):
        Classifier(3).batch(unlabelled, [0])


@pytest.mark.parametrize("label", [-1, 3, 1.5, float("nan"), float("inf")])
def test_labels_out_of_range_are_named(label):
    with pytest.raises(DataError, match=r"'y': 2 labels are no integers in 0\.\.2 \(r1 = .*r2 = "):
        Classifier(3).batch(table([0, label, label]), [0, 1, 2])


@pytest.mark.parametrize("label", ["cat", None, [1, 2]])
def test_labels_must_be_numbers(label):
    with pytest.raises(DataError, match=r"column 'y': .*; map labels to 0\.\.2"):
        Classifier(3).batch(table([0, label]), [0, 1])


@pytest.mark.parametrize("inputs", [[[1.0, 2.0], [1.0]], ["a", "b"], [None, None]])
def test_inputs_must_be_numbers_of_one_shape(inputs):
    with pytest.raises(DataError, match=r"column 'x': .*; give numeric arrays of one shape"):
        Classifier(3).batch(table([0, 1], inputs), [0, 1])


class Wrong(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        return self.output


@pytest.mark.parametrize(
    ("output", "told"),
    [
        (torch.zeros(2, 4), r"\(2, 4\)"),
        (torch.zeros(3, 2), r"\(3, 2\)"),
        (torch.zeros(2), r"\(2,\)"),
        ((torch.zeros(2, 3),), "tuple"),
    ],
)
def test_logits_of_another_shape_are_refused(output, told):
    task = Classifier(3)
    with pytest.raises(UnsupportedModelError, match=rf"yields {told} for 2 records.*\(2, 3\)"):
        task.predict(Wrong(output), task.batch(table([0, 1]), [0, 1]))


def test_two_classes_at_least():
    with pytest.raises(ConfigError, match="num_classes = 1"):
        Classifier(1)


def test_neutral_labels_differ_and_depend_on_record_epoch_and_seed():
    task = Classifier(4)
    true = np.arange(400) % 4
    records = table(true)
    drawn = np.array(task.neutral(records, seed=0, epoch=0)["y"])
    assert (drawn != true).all()
    # 400 draws over 3 other classes: 133 each, with a standard deviation of 9.4.
    counts = np.bincount((drawn - true) % 4, minlength=4)
    assert counts[0] == 0
    assert (abs(counts[1:] - 400 / 3) < 45).all()
    backwards = task.neutral(records.take(range(399, -1, -1)), seed=0, epoch=0)
    assert list(backwards["y"]) == drawn[::-1].tolist()
    assert (np.array(task.neutral(records, seed=0, epoch=1)["y"]) != drawn).any()
    assert (np.array(task.neutral(records, seed=1, epoch=0)["y"]) != drawn).any()
    np.testing.assert_array_equal(records["y"], true)


def test_fingerprint_changes_with_every_argument():
    made = [Classifier(3), Classifier(4), Classifier(3, inputs="a"), Classifier(3, labels="a")]
    assert len({tuple(task.fingerprint().items()) for task in made}) == 4
