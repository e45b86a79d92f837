"""Score tables: exact round trip, deterministic bytes, no text, clear errors."""

import dataclasses

import numpy as np
import pyarrow.parquet as pq
import pytest

from expunge.audit.collecting import collect
from expunge.audit.readings import Reading
from expunge.audit.score_table import read_scores, to_table, write_scores
from expunge.core.errors import IntegrityError, StorageError
from expunge.core.run import Run
from expunge.core.sets import Sets
from expunge.data.dataset import Dataset

READINGS = (
    Reading("forget", max_new_tokens=4, measures=("rouge_l",)),
    Reading("forget", "perturbed:0"),
    Reading("holdout"),
    Reading("retain", limit=1),
)


@pytest.fixture(scope="module")
def subject(language_model, people):
    model, task = language_model
    dataset = Dataset("causal_lm", people)
    sets = Sets(forget=("train-0", "train-1"), retain=("train-2", "train-3"))
    return collect(model, task, dataset, sets, READINGS, Run(), role="reference", seed=3)


def test_round_trip_is_exact(subject, tmp_path):
    write_scores(tmp_path / "scores.parquet", subject)
    again = read_scores(tmp_path / "scores.parquet")
    assert (again.role, again.seed, again.model) == ("reference", 3, subject.model)
    assert tuple(again.scores) == READINGS
    assert next(iter(again.scores)).max_new_tokens == 4
    for reading, scores in subject.scores.items():
        other = again.scores[reading]
        assert other.ids == scores.ids
        for field in dataclasses.fields(scores):
            if field.name != "ids":
                expected = getattr(scores, field.name)
                found = getattr(other, field.name)
                if field.name == "measured":
                    assert found.keys() == expected.keys()
                    found, expected = (np.array([*x.values()]) for x in (found, expected))
                np.testing.assert_array_equal(found, expected)
    assert subject.scores[Reading("forget")].rouge_R is not None
    assert len(subject.scores[Reading("holdout")]) == 0


def test_equal_scores_give_equal_bytes(subject, tmp_path):
    write_scores(tmp_path / "a.parquet", subject)
    write_scores(tmp_path / "b.parquet", read_scores(tmp_path / "a.parquet"))
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_the_table_holds_ids_and_numbers_only(subject, people, tmp_path):
    write_scores(tmp_path / "scores.parquet", subject)
    table = pq.read_table(tmp_path / "scores.parquet")
    texts = {
        value
        for name in table.column_names
        for value in table[name].to_pylist()
        if isinstance(value, str)
    }
    assert texts == {"forget", "retain", "answer", "perturbed:0", *people.ids} - {"train-3"}
    metadata = b"".join(table.schema.metadata.values()).decode()
    for column in ("question", "answer", "paraphrased_answer"):
        for text in people[column]:
            assert text is None or text not in metadata


def test_nll_is_the_sum_of_the_targets(subject):
    table = to_table(subject).to_pydict()
    for n, nll, logprob in zip(table["n"], table["nll"], table["logprob"], strict=True):
        assert n == len(logprob)
        assert nll == pytest.approx(-sum(logprob), abs=1e-9)


def test_missing_torn_and_foreign_files(subject, tmp_path):
    path = tmp_path / "scores.parquet"
    with pytest.raises(StorageError, match="no score table"):
        read_scores(path)
    write_scores(path, subject)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(IntegrityError, match="not a whole Parquet file"):
        read_scores(path)
    pq.write_table(to_table(subject).select(["id", "n"]), path)
    with pytest.raises(IntegrityError, match="no score table"):
        read_scores(path)
    pq.write_table(to_table(subject).slice(1), path)
    with pytest.raises(IntegrityError, match="lost rows"):
        read_scores(path)
