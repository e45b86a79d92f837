import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from expunge.audit.scores import score
from expunge.core.errors import ConfigError, DataError, UnsupportedModelError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.tasks.regressor import Regressor

RECORDS = Records(("a", "b", "c"), {"x": np.eye(3, dtype=np.float32), "y": [1.0, -2.0, 0.5]})


def linear(size=1):
    layer = nn.Linear(3, size)
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        layer.bias.copy_(torch.arange(1.0, size + 1))
    return layer


def losses(task, model, records=RECORDS):
    return task.predict(model, task.batch(records, range(len(records)))).nll_B().tolist()


def test_losses_of_plain_numbers() -> None:
    assert losses(Regressor(), linear()) == pytest.approx([0.0, 3.0, 0.5])
    assert losses(Regressor(loss="mse"), linear()) == pytest.approx([0.0, 9.0, 0.25])


def test_a_vectors_loss_is_the_mean_over_its_components() -> None:
    vectors = RECORDS.replace(y=[[1.0, 2.0], [0.0, 0.0], [3.0, 2.0]])
    assert losses(Regressor(2), linear(2), vectors) == pytest.approx([0.0, 1.5, 1.0])


@given(st.floats(-5, 5), st.floats(-5, 5), st.lists(st.floats(0.01, 0.99), min_size=1, unique=True))
def test_quantile_loss_equals_the_pinball_of_scikit_learn(target, output, quantiles) -> None:
    from sklearn.metrics import mean_pinball_loss

    task = Regressor(loss="quantile", quantiles=sorted(quantiles))
    found = task._loss_B(torch.full((1, len(quantiles)), output), torch.tensor([[target]]))
    wanted = np.mean([mean_pinball_loss([target], [output], alpha=q) for q in quantiles])
    assert float(found) == pytest.approx(wanted, abs=1e-5)


def test_scores_hold_minus_the_loss() -> None:
    scores = score(linear(), Regressor(), RECORDS, Run())
    assert scores.loss_R.tolist() == pytest.approx([0.0, 3.0, 0.5])


def test_a_model_of_transformers_style_is_read() -> None:
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = linear()

        def forward(self, x):
            return type("Output", (), {"logits": self.inner(x)})()

    assert losses(Regressor(), Wrapped()) == pytest.approx([0.0, 3.0, 0.5])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_outputs": 0}, "at least 1 output"),
        ({"loss": "huber"}, "unknown; choose l1, mse, quantile"),
        ({"loss": "quantile"}, "needs quantiles"),
        ({"quantiles": (0.5,)}, "no other takes them"),
        ({"loss": "quantile", "quantiles": (0.5, 0.1)}, "rising order"),
        ({"loss": "quantile", "quantiles": (0.5, 1.0)}, "between 0 and 1"),
        ({"loss": "quantile", "quantiles": (0.5,), "num_outputs": 2}, "of one number"),
    ],
)
def test_settings_that_do_not_fit_are_refused(arguments, message) -> None:
    with pytest.raises(ConfigError, match=message):
        Regressor(**arguments)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([1.0, float("nan"), 2.0], r"NaN or infinite \(b\)"),
        (["x", 1.0, 2.0], "give 1 numbers a record"),
        ([[1.0, 2.0]] * 3, "give 1 numbers a record"),
    ],
)
def test_targets_that_are_no_numbers_are_refused(targets, message) -> None:
    with pytest.raises(DataError, match=message):
        Regressor().batch(RECORDS.replace(y=targets), range(3))


def test_a_classifiers_output_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"regressor with 1 outputs must yield.*\(3, 1"):
        losses(Regressor(), linear(2))


def test_batch_norm_in_train_mode_refuses_a_batch_of_one() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1)).train()
    task = Regressor()
    with pytest.raises(UnsupportedModelError, match="batch norm in train mode"):
        task.predict(model, task.batch(RECORDS, [0]))
    assert task.predict(model.eval(), task.batch(RECORDS, [0])).num_rows == 1


def test_distributions_of_a_regressor_are_refused() -> None:
    from expunge.engine.losses import divergence

    task, model = Regressor(), linear()
    found = task.predict(model, task.batch(RECORDS, [0]))
    with pytest.raises(ConfigError, match="no distribution"):
        divergence(found, found)
