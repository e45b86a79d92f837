import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expunge.core.errors import IntegrityError
from expunge.report.losses import losses_of, read_scored

FORGET = {"record_set": "forget"}


@pytest.fixture
def write(write_scores):
    def write_after(folder, *readings):
        path = folder / "scores" / "after.parquet"
        write_scores(path, readings)
        return path

    return write_after


def read(folder):
    return read_scored(folder, ["after"])["after"]


def test_loss_is_per_target_and_a_record_that_two_audits_read_counts_once(tmp_path, write):
    write(
        tmp_path,
        (FORGET, [("a", 4, 6.0, [0] * 4), ("b", 1, 3.0, [0])]),
        ({**FORGET, "limit": 1}, [("a", 4, 6.0, [0] * 4)]),
        ({"record_set": "test"}, [("c", 2, 1.0, [0, 0])]),
    )
    losses = losses_of(read_scored(tmp_path, ["after"]))["after"]
    assert losses["forget"].tolist() == [1.5, 3.0]
    assert losses["test"].tolist() == [0.5]


@pytest.mark.parametrize("other", [{"view": "paraphrase"}, {"treatment": "quantize:8"}])
def test_other_views_and_treated_models_are_left_out(tmp_path, other, write):
    wrong = [("a", 2, 99.0, [5, 5]), ("z", 1, 99.0, [5])]
    right = [("a", 4, 6.0, [0] * 4)]
    write(tmp_path, ({**FORGET, **other}, wrong), (FORGET, right), ({**FORGET, **other}, wrong))
    found = read(tmp_path)["forget"]
    assert found.ids == ("a",)
    assert found.loss_R.tolist() == [1.5]
    assert found.exact_R.tolist() == [True]


def test_a_record_is_exact_when_all_its_targets_come_first(tmp_path, write):
    rows = [("z", 2, 1.0, [0, 0]), ("a", 3, 1.0, [0, 0, 2]), ("m", 1, 1.0, [1])]
    write(tmp_path, (FORGET, rows))
    found = read(tmp_path)["forget"]
    assert found.ids == ("z", "a", "m")
    assert found.exact_R.tolist() == [True, False, False]


def test_tables_from_before_there_were_treatments_are_read(tmp_path, write):
    path = write(tmp_path, (FORGET, [("a", 4, 6.0, [0] * 4)]))
    table = pq.read_table(path)
    facts = {"readings": [{"record_set": "forget", "view": "answer", "limit": 0, "rows": 1}]}
    pq.write_table(table.replace_schema_metadata({b"expunge": json.dumps(facts)}), path)
    assert read(tmp_path)["forget"].ids == ("a",)


def test_what_the_audits_write_is_read(tmp_path):
    from expunge.audit.evidence import Subject
    from expunge.audit.readings import Reading
    from expunge.audit.score_table import write_scores
    from expunge.audit.scores import Scores

    def scores(shift):
        logprob_N = np.array([-0.5, -1.0, -0.25], dtype=np.float32) - np.float32(shift)
        zero_N = np.zeros(3, dtype=np.float32)
        ranks_N = np.array([0, 3, 0], dtype=np.int32)
        return Scores(("a", "b"), np.array([0, 2, 3]), logprob_N, ranks_N, zero_N, zero_N)

    found = {
        Reading("forget", treatment="quantize:8"): scores(4),
        Reading("forget"): scores(0),
        Reading("holdout", view="paraphrase"): scores(4),
        Reading("empty"): Scores((), np.array([0]), *[np.empty(0, t) for t in "fiff"]),
    }
    write_scores(tmp_path / "scores" / "after.parquet", Subject("after", "digest", found))
    sets = read(tmp_path)
    assert sets.keys() == {"forget", "empty"}
    assert sets["forget"].loss_R.tolist() == [0.75, 0.25]
    assert sets["forget"].exact_R.tolist() == [False, True]
    assert sets["empty"].ids == ()


def test_a_run_that_scored_nothing_has_no_losses(tmp_path):
    assert read_scored(tmp_path, ["before", "after"]) == {}


def test_another_table_is_refused(tmp_path, write):
    path = write(tmp_path, (FORGET, [("a", 1, 1.0, [0])]))
    pq.write_table(pa.table({"id": ["a"]}), path)
    with pytest.raises(IntegrityError, match="not a whole score table"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (None, "does not say what was read"),
        ({}, "readings"),
        ({"readings": [{"record_set": "forget", "view": "answer", "rows": 2}]}, "1 rows and says"),
    ],
)
def test_a_table_that_does_not_say_what_its_rows_are_is_refused(tmp_path, facts, message, write):
    path = write(tmp_path, (FORGET, [("a", 1, 1.0, [0])]))
    said = None if facts is None else {b"expunge": json.dumps(facts)}
    pq.write_table(pq.read_table(path).replace_schema_metadata(said), path)
    with pytest.raises(IntegrityError, match=f"not a whole score table .*{message}"):
        read(tmp_path)


def test_ranks_that_do_not_fit_the_targets_are_refused(tmp_path, write):
    write(tmp_path, (FORGET, [("a", 3, 1.0, [0])]))
    with pytest.raises(IntegrityError, match="1 ranks for 3 targets"):
        read(tmp_path)
