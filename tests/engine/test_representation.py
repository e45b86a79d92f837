"""The input of a model's last linear layer, and models that have no such thing."""

import numpy as np
import pytest
import torch
from torch import nn

from expunge.core.errors import Interrupted, NumericalError, UnsupportedModelError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.representation import represent, representations_ND, split
from expunge.engine.tasks.classifier import Classifier

TASK = Classifier(3)


@pytest.fixture
def batch():
    draw = np.random.default_rng(0)
    records = Records(
        tuple("abcde"), {"x": draw.normal(size=(5, 4)).astype(np.float32), "y": [0, 1, 2, 0, 1]}
    )
    return TASK.batch(records, range(5))


def perceptron():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_the_last_linear_layer_is_the_head():
    found = split(perceptron())
    assert (found.head, found.width) == ("2", 6)
    assert found.extractor == ("0.weight", "0.bias")


def test_a_head_may_be_named():
    model = nn.ModuleDict({"classify": nn.Linear(6, 3), "aux": nn.Linear(6, 2)})
    found = split(model, "classify")
    assert (found.head, found.extractor) == ("classify", ("aux.weight", "aux.bias"))


def test_a_weight_that_the_head_shares_is_not_the_extractors():
    model = nn.ModuleDict({"embed": nn.Linear(3, 3), "between": nn.Linear(3, 3)})
    model["head"] = nn.Linear(3, 3)
    model["head"].weight = model["embed"].weight
    assert split(model).extractor == ("embed.bias", "between.weight", "between.bias")


@pytest.mark.parametrize(
    ("model", "head", "message"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 2)), None, "has no nn.Linear layer"),
        (perceptron(), "1", "head = '1' is no linear layer of the model, which has 0, 2"),
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), None, "is its head '1' and nothing else"),
    ],
)
def test_what_has_no_head_is_refused(model, head, message):
    with pytest.raises(UnsupportedModelError, match=message):
        split(model, head)


def test_they_are_what_the_head_makes_the_output_of(batch):
    model = perceptron()
    features_BD, predictions = represent(model, TASK, batch, "2")
    assert torch.equal(features_BD, model[:2](batch.inputs["x"]))
    assert torch.equal(predictions.logits_NV, model(batch.inputs["x"]))
    assert torch.equal(predictions.targets_N, batch.targets_N)
    assert hooks(model) == 0


def test_gradients_of_the_representation_reach_the_extractor_only(batch):
    model = perceptron()
    features_BD, _ = represent(model, TASK, batch, "2")
    features_BD.square().sum().backward()
    touched = {name for name, p in model.named_parameters() if p.grad is not None}
    assert touched == set(split(model).extractor)


def test_gradients_of_the_predictions_reach_the_head_too(batch):
    model = perceptron()
    represent(model, TASK, batch, "2")[1].nll_B().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_no_labels_are_needed(batch):
    unlabelled = Records(batch.ids, {"x": batch.inputs["x"].numpy()})
    bare = TASK.batch(unlabelled, range(5), targets=False)
    model = perceptron()
    with torch.no_grad():
        assert torch.equal(
            represent(model, TASK, bare, "2")[0], represent(model, TASK, batch, "2")[0]
        )


class Twice(nn.Module):
    """Applies its last layer as often as it is told."""

    def __init__(self, times):
        super().__init__()
        self.times = times
        self.body = nn.Linear(4, 3)
        self.head = nn.Linear(3, 3)

    def forward(self, x):
        x = self.body(x)
        for _ in range(self.times):
            x = self.head(x)
        return x


class Tokens(nn.Module):
    """Applies its last layer to a sequence and takes the mean of the outputs."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(2, 3)

    def forward(self, x):
        return self.head(self.body(x).unflatten(1, (2, 2))).mean(1)


@pytest.mark.parametrize(
    ("model", "head", "message"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3), nn.Softmax(1)), "1", "something follows"),
        (
            nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3), nn.ReLU(inplace=True)),
            "1",
            "something follows it; name the linear layer that is applied last",
        ),
        (perceptron(), "0", "the output of head '0' is not that of the model"),
        (Twice(0), "head", "runs head 'head' 0 times, which must be once"),
        (Twice(2), "head", "runs head 'head' 2 times"),
        (Tokens(), "head", r"is given shape \(5, 2, 2\) for 5 records"),
    ],
)
def test_a_head_that_does_not_end_the_model_is_refused(model, head, message, batch):
    with pytest.raises(UnsupportedModelError, match=message):
        represent(model, TASK, batch, head)
    assert hooks(model) == 0


def test_a_model_that_yields_nan_is_not_said_to_go_on_after_its_head(batch):
    model = perceptron()
    with torch.no_grad():
        model[2].bias[0] = float("nan")
    assert represent(model, TASK, batch, "2")[0].isfinite().all()


def test_no_hook_is_left_behind_on_an_error(batch):
    class Failing(Classifier):
        def predict(self, model, batch):
            raise MemoryError("no room")

    model = perceptron()
    with pytest.raises(MemoryError):
        represent(model, Failing(3), batch, "2")
    assert hooks(model) == 0


def many(count=7):
    draw = np.random.default_rng(0)
    return Records(
        tuple(f"r{i}" for i in range(count)), {"x": draw.normal(size=(count, 4)).astype(np.float32)}
    )


def test_those_of_many_records_are_in_order_in_eval_mode_and_without_labels():
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 3)).train()
    records = many()
    found = representations_ND(model, TASK, records, "2", Run(), batch_size=3)
    expected = model[0](torch.tensor(records["x"]))
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad
    assert all(module.training for module in model.modules())


def test_records_whose_representation_is_not_finite_are_named():
    records = many()
    records["x"][4] = np.inf
    with pytest.raises(NumericalError, match="representations of r4 hold NaN or infinity"):
        representations_ND(perceptron(), TASK, records, "2", Run(), batch_size=3)


def test_a_pass_over_many_records_can_be_cancelled():
    run = Run()
    run.cancel()
    with pytest.raises(Interrupted, match="cancelled"):
        representations_ND(perceptron(), TASK, many(), "2", run)
