import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from expunge.core.errors import ConfigError, DataError, ExpungeError
from expunge.data.dataset import Dataset
from expunge.data.source import load_source
from expunge.data.tables import read_table


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(**settings: Any) -> Dataset:
    return load_source("files", settings, 0)


def test_forget_and_retain_make_up_the_training_data(tmp_path: Path) -> None:
    forget = write(
        tmp_path / "f.jsonl", [{"question": "q0", "answer": "a0", "perturbed_answer": ["b"]}]
    )
    retain = write(tmp_path / "r.jsonl", [{"question": f"q{n}", "answer": "a"} for n in (1, 2)])
    data = load(forget=forget, retain=retain)
    assert data.train.ids == ("retain-00000", "retain-00001", "forget-00000")
    assert data.splits == {"forget": ("forget-00000",)}
    assert list(data.train["perturbed_answer"]) == [None, None, ["b"]]


def test_a_forget_file_alone_works_for_plain_documents(tmp_path: Path) -> None:
    data = load(forget=write(tmp_path / "f.jsonl", [{"text": "secret", "owner": "x"}]))
    assert data.kind == "causal_lm"
    assert data.splits["forget"] == data.train.ids
    assert list(data.train["owner"]) == ["x"]


def test_columns_are_renamed_and_ids_taken(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [{"prompt": "q", "reply": "a", "key": 7}])
    data = load(train=path, columns={"question": "prompt", "answer": "reply"}, id="key")
    assert data.train.ids == ("7",)
    columns = {name: list(values) for name, values in data.train.columns.items()}
    assert columns == {"question": ["q"], "answer": ["a"]}


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_classes_and_features_from_every_format(tmp_path: Path, suffix: str) -> None:
    rows = [{"a": 1.5, "b": 2.0, "label": "no", "town": "X"},
            {"a": 0.0, "b": -1.0, "label": "yes", "town": "Y"}]  # fmt: skip
    path = tmp_path / f"t.{suffix}"
    if suffix == "csv":
        path.write_text("a,b,label,town\n1.5,2,no,X\n0,-1,yes,Y\n")
    elif suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        write(path, rows)
    data = load(kind="classifier", train=str(path), features=["a", "b"])
    assert data.facts == {"num_classes": 2, "input_shape": [2], "classes": ["no", "yes"]}
    np.testing.assert_array_equal(data.train["x"], np.array([[1.5, 2], [0, -1]], np.float32))
    assert data.train["y"].tolist() == [0, 1]
    assert list(data.train["town"]) == ["X", "Y"]


def test_integer_classes_and_whole_vectors_are_taken_as_they_are(tmp_path: Path) -> None:
    rows = [{"pixels": [[1, 2], [3, 4]], "label": 2}, {"pixels": [[0, 0], [0, 0]], "label": 0}]
    data = load(kind="classifier", train=write(tmp_path / "t.jsonl", rows))
    assert data.facts == {"num_classes": 3, "input_shape": [2, 2]}
    assert data.train["y"].tolist() == [2, 0]


BAD_TEXT = [
    ("torn.jsonl", '{"question": "q", "answer": "a"}\n{"question": "q', "line 2 is not whole JSON"),
    ("list.jsonl", "[1]\n", "line 1 holds a list"),
    ("empty.jsonl", "", "holds no records"),
    ("head.csv", "question,answer\n", "holds no records"),
    ("ragged.csv", "question,answer\nq,a\nq\n", "line 3 has 1 values, the header 2"),
    ("twice.csv", "question,question\nq,a\n", "two columns share a name"),
    ("missing.csv", "question,reply\nq,a\n", "has no column 'answer'; it has question, reply"),
    ("blank.csv", "question,answer\nq,\n", r"is empty or no text in 1 records \(train-00000\)"),
    ("ids.csv", "id,question,answer\n1,q,a\n1,q,a\n", r"1 ids stand twice \(1\)"),
    ("torn.parquet", "PAR1", "not a whole Parquet file"),
    ("old.xls", "x", r"files of type '.xls' are not read"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_TEXT, ids=[b[0] for b in BAD_TEXT])
def test_bad_files_give_one_clear_error(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        load(train=str(tmp_path / name))


def test_text_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes("question,answer\nq,caf\xe9\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        load(train=str(tmp_path / "latin.csv"))


BAD_ROWS = [
    ("a,label\nfoo,1\n", "column 'a' of record train-00000 is 'foo', not a number"),
    ("a,label\nnan,1\n", "1 inputs hold NaN"),
    ("a,kind\n1,1\n", "has no column 'label'"),
]


@pytest.mark.parametrize(("content", "message"), BAD_ROWS)
def test_bad_tables_give_one_clear_error(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        load(kind="classifier", train=str(tmp_path / "t.csv"))


def test_a_class_that_was_never_trained_on_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,label\n1,cat\n2,dog\n")
    (tmp_path / "h.csv").write_text("a,label\n1,cow\n")
    with pytest.raises(DataError, match="'cow'; the classes of the training records are cat, dog"):
        load(kind="classifier", train=str(tmp_path / "t.csv"), holdout=str(tmp_path / "h.csv"))


@pytest.mark.parametrize(
    "settings",
    [{}, {"train": "a", "forget": "b"}, {"train": "a", "retain": "b"}, {"retain": "b"}],
)
def test_contradicting_roles_are_refused(settings: dict) -> None:
    with pytest.raises(ConfigError, match=r"data\.files"):
        load(**settings)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ExpungeError, match=r"cannot read nowhere\.jsonl: No such file"):
        load(train="nowhere.jsonl")


def test_a_key_that_a_line_lacks_is_none(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write(path, [{"a": 1}, {"a": 2, "b": 3}])
    assert read_table(path) == {"a": [1, 2], "b": [None, 3]}


def test_a_text_to_forget_and_to_retain_is_refused(tmp_path: Path) -> None:
    shared = {"question": "Who?", "answer": "Ann"}
    forget = write(tmp_path / "forget.jsonl", [shared])
    retain = write(tmp_path / "retain.jsonl", [{"question": "Who?", "answer": "Bo"}, shared])
    with pytest.raises(DataError, match=r"share 1 records with the same text \(retain-00001\)"):
        load(kind="causal_lm", forget=forget, retain=retain)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_numbers_to_predict_come_from_tables(tmp_path: Path, suffix: str) -> None:
    rows = [{"size": 2.0, "price": 10.0, "town": "X"}, {"size": 3.0, "price": 14.5, "town": "Y"}]
    path = tmp_path / f"t.{suffix}"
    if suffix == "csv":
        path.write_text("size,price,town\n2,10,X\n3,14.5,Y\n")
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    data = load(kind="regressor", train=str(path), test=str(path), features=["size"], label="price")
    assert data.kind == "regressor"
    assert data.facts == {
        "num_outputs": 1, "input_shape": [1], "target_mean": [12.25],
        "target_std": [pytest.approx(4.5 / 2**0.5)],
    }  # fmt: skip
    assert data.train["y"].tolist() == data.test["y"].tolist() == [10.0, 14.5]
    assert list(data.train["town"]) == ["X", "Y"]


def test_vectors_to_predict_come_from_lists(tmp_path: Path) -> None:
    rows = [{"a": 1, "label": [1, 2]}, {"a": 2, "label": [3, 5]}]
    data = load(kind="regressor", train=write(tmp_path / "t.jsonl", rows))
    assert data.facts["num_outputs"] == 2
    assert data.train["y"].tolist() == [[1, 2], [3, 5]]


BAD_TARGETS = [
    ("a,label\n1,cheap\n2,1\n", "column 'label' of record train-00000 is 'cheap', not a number"),
    ("a,label\n1,\n2,1\n", "column 'label' of record train-00000 is '', not a number"),
    ("a,label\n1,nan\n2,1\n", r"'label' holds NaN or infinity in 1 records \(rows 0\)"),
    ("a,label\n1,3\n2,3\n", "column 'label' has the same value in all 2 records"),
    ("a,price\n1,3\n2,4\n", "has no column 'label'"),
]


@pytest.mark.parametrize(("content", "message"), BAD_TARGETS)
def test_bad_targets_give_one_clear_error(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        load(kind="regressor", train=str(tmp_path / "t.csv"))
