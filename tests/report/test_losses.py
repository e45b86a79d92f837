import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expunge.core.errors import IntegrityError
from expunge.report.losses import read_losses


def write(folder, **columns):
    path = folder / "scores" / "after.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table(columns), path)


def test_loss_is_per_target_of_plain_answers_and_counts_a_record_once(tmp_path):
    write(
        tmp_path,
        record_set=["forget", "forget", "forget", "test"],
        view=["answer", "paraphrase", "answer", "answer"],
        id=["a", "a", "a", "b"],
        n=[4, 4, 4, 2],
        nll=[6.0, 9.0, 6.0, 1.0],
    )
    losses = read_losses(tmp_path, ["after"])["after"]
    assert losses["forget"].tolist() == [1.5]
    assert losses["test"].tolist() == [0.5]


def test_records_keep_their_order(tmp_path):
    write(
        tmp_path,
        record_set=["forget"] * 3,
        view=["answer"] * 3,
        id=["z", "a", "m"],
        n=[1, 1, 1],
        nll=[3.0, 1.0, 2.0],
    )
    np.testing.assert_array_equal(
        read_losses(tmp_path, ["after"])["after"]["forget"], [3.0, 1.0, 2.0]
    )


def test_a_run_that_scored_nothing_has_no_losses(tmp_path):
    assert read_losses(tmp_path, ["before", "after"]) == {}


def test_another_table_is_refused(tmp_path):
    write(tmp_path, id=["a"])
    with pytest.raises(IntegrityError, match=r"not a whole score table .*record_set"):
        read_losses(tmp_path, ["after"])
