"""Measures of whole outputs: right numbers, kept exactly, refused where they do not belong."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from expunge.audit.collecting import collect
from expunge.audit.evidence import Subject
from expunge.audit.outputs import (
    LABEL,
    PREDICTION,
    PROBABILITIES,
    label_R,
    measured,
    prediction_RD,
    probabilities_RV,
)
from expunge.audit.readings import Reading
from expunge.audit.score_table import read_scores, to_table, write_scores
from expunge.core.errors import DataError, NumericalError, UnsupportedModelError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.core.sets import Sets
from expunge.data.dataset import Dataset
from expunge.engine.tasks.regressor import Regressor

READING = Reading("forget", measures=(LABEL, PROBABILITIES))


def collected(world, cache=None, batch_size=32, model=None):
    sets = Sets(forget=world.forget.ids)
    return collect(
        model or world.model,
        world.task,
        Dataset("classifier", world.forget),
        sets,
        (READING,),
        Run(),
        role="after",
        batch_size=batch_size,
        cache=cache,
    ).scores[READING]


def test_probabilities_agree_with_the_scores_and_with_plain_torch(digits_world):
    scores = collected(digits_world)
    found = scores.measured[PROBABILITIES]
    x = torch.from_numpy(np.asarray(digits_world.forget["x"]))
    with torch.no_grad():
        expected = digits_world.model(x).double().softmax(1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-12)
    label = scores.measured[LABEL].astype(int)
    np.testing.assert_array_equal(label, digits_world.forget["y"])
    true = found[np.arange(40), label]
    np.testing.assert_allclose(true, np.exp(scores.logprob_N), atol=1e-6)


def test_rows_of_numbers_survive_the_disk_bit_by_bit(digits_world, tmp_path):
    first = collected(digits_world, tmp_path)
    [file] = tmp_path.iterdir()
    again = read_scores(file).scores[READING]
    for name in (LABEL, PROBABILITIES):
        np.testing.assert_array_equal(again.measured[name], first.measured[name])
    assert again.measured[PROBABILITIES].shape == (40, 10)
    recalled = collected(digits_world, tmp_path)
    np.testing.assert_array_equal(recalled.measured[PROBABILITIES], first.measured[PROBABILITIES])
    assert len(list(tmp_path.iterdir())) == 1


def test_a_row_of_one_number_and_a_set_without_records_keep_their_shape(make_scores, tmp_path):
    some, none = make_scores([-1.0, -2.0, -3.0]), make_scores([])
    row = {"one": np.array([[1.0], [2.0], [3.0]]), "plain": np.array([7.0, 8.0, 9.0])}
    scores = {
        Reading("forget", measures=("one", "plain")): dataclasses.replace(some, measured=row),
        Reading("test", measures=("wide",)): dataclasses.replace(
            none, measured={"wide": np.empty((0, 4))}
        ),
    }
    write_scores(tmp_path / "s.parquet", Subject("after", "m", scores))
    again = read_scores(tmp_path / "s.parquet").scores
    np.testing.assert_array_equal(again[Reading("forget")].measured["one"], row["one"])
    np.testing.assert_array_equal(again[Reading("forget")].measured["plain"], row["plain"])
    assert again[Reading("test")].measured["wide"].shape == (0, 4)


def test_tables_without_rows_of_numbers_are_what_they_were(make_scores):
    scores = dataclasses.replace(make_scores([-1.0]), measured={"zlib": np.array([3.0])})
    table = to_table(Subject("after", "m", {Reading("forget", measures=("zlib",)): scores}))
    assert b"widths" not in b"".join(table.schema.metadata.values())
    assert table["measured"].to_pylist() == [[3.0]]


def test_batch_size_changes_nothing(digits_world):
    one, other = (collected(digits_world, batch_size=size) for size in (1, 7))
    np.testing.assert_array_equal(one.measured[PROBABILITIES], other.measured[PROBABILITIES])


def test_a_regressors_outputs_are_in_target_units():
    model = torch.nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 10.0]]))
        model.bias.copy_(torch.tensor([5.0, 0.0]))
    records = Records(
        ("a", "b"), {"x": np.eye(2, dtype=np.float32), "y": np.zeros((2, 2), dtype=np.float32)}
    )
    found = prediction_RD(model, Regressor(2), records, Run())
    np.testing.assert_allclose(found, [[6, 0], [5, 10]])
    assert prediction_RD(model, Regressor(2), records.take([]), Run()).shape == (0, 1)


def test_measures_of_the_wrong_kind_are_refused(digits_world):
    with pytest.raises(UnsupportedModelError, match="'prediction' is of a regressor"):
        prediction_RD(digits_world.model, digits_world.task, digits_world.forget, Run())
    for measure in (probabilities_RV, label_R):
        with pytest.raises(UnsupportedModelError, match="is of a classifier"):
            measure(digits_world.model, Regressor(), digits_world.forget, Run())


def test_outputs_that_are_not_finite_are_refused(digits_world):
    broken = copy.deepcopy(digits_world.model)
    with torch.no_grad():
        next(broken.parameters())[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="not finite"):
        probabilities_RV(broken, digits_world.task, digits_world.forget, Run())


def test_what_was_not_measured_is_named(make_scores):
    with pytest.raises(DataError, match=f"'{PREDICTION}' was not taken"):
        measured(make_scores([-1.0]), PREDICTION)
