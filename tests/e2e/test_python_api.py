"""``expunge.forget`` and ``expunge.audit`` on a module and row numbers."""

import numpy as np
import pytest
import torch
from torch import nn

import expunge
from expunge.core.errors import ConfigError, DataError, NumericalError, UnsupportedModelError
from expunge.engine.weights import load_tensors, state_digest

SETTINGS = {"schedule": {"epochs": 10, "batch_size": 16, "optimizer": "sgd", "lr": 0.05}}


@pytest.fixture(scope="module")
def data(digits_world):
    """The records of the small world as a user would hand them over."""
    from expunge.core.records import concatenate

    records = concatenate([digits_world.forget, digits_world.retain])
    x, y = np.stack(records["x"]), np.array(records["y"])
    return expunge.from_arrays(x, y)


def forget(world, data, rows, **changes):
    settings = {"method": "random_label", "settings": SETTINGS, "quiet": True, **changes}
    return expunge.forget(world.model, data, rows, **settings)


def accuracy(model, records):
    with torch.no_grad():
        x = torch.as_tensor(np.stack(records["x"]))
        return float((model(x).argmax(1).numpy() == np.array(records["y"])).mean())


@pytest.fixture(scope="module")
def outcome(digits_world, data):
    return forget(digits_world, data, range(40))


def test_the_model_forgets_and_the_one_given_stays(outcome, digits_world):
    assert accuracy(digits_world.model, digits_world.forget) > 0.95
    assert accuracy(outcome.model, digits_world.forget) < 0.95
    assert accuracy(outcome.model, digits_world.retain) > 0.95
    assert state_digest(outcome.model) != state_digest(digits_world.model)


def test_every_way_of_naming_records_is_the_same(outcome, digits_world, data):
    rows = range(40)
    ids = [data.train.ids[row] for row in rows]
    ways = [np.arange(40), torch.arange(40), ids, expunge.Request(ids=tuple(ids))]
    for way in ways:
        again = forget(digits_world, data, way)
        assert again.sets.digest() == outcome.sets.digest()
        assert state_digest(again.model) == state_digest(outcome.model)


def test_findings_about_every_model(outcome, digits_world, data):
    findings = expunge.audit(
        outcome.model,
        data,
        outcome.sets,
        before=digits_world.model,
        references=[digits_world.fresh()],
        audits=["unlearning_gap"],
        quiet=True,
    )
    ua = {f.subject: f.value for f in findings if f.metric == "ua"}
    wrong = 1 - accuracy(outcome.model, digits_world.forget)
    assert ua["after"] == pytest.approx(100 * wrong)
    assert ua["before"] < ua["after"] < ua["reference"]
    assert {f.model for f in findings if f.subject == "after"} == {state_digest(outcome.model)}


def test_saving_writes_safetensors(outcome, tmp_path):
    path = outcome.save(tmp_path / "m.safetensors")
    saved = load_tensors(path)
    assert all(torch.equal(saved[k], v) for k, v in outcome.model.state_dict().items())


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], "the forget set is empty"),
        ([200], "row 200 does not exist; the training data have rows 0 to 199"),
        ([-1], "row -1 does not exist"),
        ([1.0], "1.0 is neither a row number nor a record id"),
        ([True, False], "flatnonzero"),
        (np.ones(200, bool), "flatnonzero"),
        (torch.ones(200, dtype=torch.bool), "flatnonzero"),
        (["nobody"], "1 unknown record ids"),
        ([3, 3], "more than once"),
    ],
)
def test_wrong_rows_are_refused(rows, expected, digits_world, data):
    with pytest.raises(DataError, match=expected):
        forget(digits_world, data, rows)


def test_unknown_parts_are_refused(digits_world, data, outcome):
    with pytest.raises(ConfigError, match="did you mean 'random_label'"):
        forget(digits_world, data, [0], method="random_labels")
    with pytest.raises(ConfigError, match="unknown setting 'schedul'"):
        forget(digits_world, data, [0], settings={"schedul": {}})
    with pytest.raises(ConfigError, match="did you mean 'mia'"):
        expunge.audit(outcome.model, data, outcome.sets, audits=["mai"])


def test_a_method_that_needs_what_is_absent_is_refused(digits_world, data):
    with pytest.raises(ConfigError, match="it needs the model from before training"):
        forget(digits_world, data, [0], method="retrain", settings={})


def test_weights_that_are_not_numbers_are_refused(digits_world, data):
    spoilt = digits_world.fresh()
    with torch.no_grad():
        spoilt[0].weight[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="NaN"):
        expunge.forget(spoilt, data, [0], method="random_label", settings=SETTINGS, quiet=True)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (nn.Linear(64, 3), r"the model yields \(16, 3\) for 16 records"),
        (nn.Linear(63, 10), r"the model cannot read inputs of shape \(16, 64\)"),
    ],
)
def test_a_model_of_another_shape_is_refused(model, expected, data):
    with pytest.raises(UnsupportedModelError, match=expected):
        expunge.forget(model, data, [0], method="random_label", settings=SETTINGS, quiet=True)


def test_a_language_model_needs_its_tokenizer(questions_world):
    from expunge.data.dataset import Dataset

    data = Dataset("causal_lm", questions_world.retain)
    with pytest.raises(DataError, match="needs its tokenizer"):
        expunge.forget(questions_world.model, data, [0])
