import json
import pickle

import numpy as np
import pytest
from PIL import Image

from expunge.core.errors import DataError, StorageError
from expunge.core.records import Records
from expunge.data.arrays import from_arrays
from expunge.data.dataset import Dataset
from expunge.data.example_records import read_examples

TABLE = from_arrays(np.ones((4, 3)), [0, 1, 0, 1])
PICTURES = from_arrays(np.ones((4, 3, 4, 6)), [0, 1, 0, 1])
TEXTS = Dataset("causal_lm", Records(("a",), {"question": ["q"], "answer": ["a"]}))


def test_one_array_or_several(tmp_path):
    np.save(tmp_path / "one.npy", np.array([1.0, 2, 3]))
    np.save(tmp_path / "two.npy", np.zeros((2, 3)))
    one, two = (read_examples(tmp_path / f"{name}.npy", TABLE) for name in ("one", "two"))
    assert one.ids == ("example-00000",)
    assert one["x"].tolist() == [[1, 2, 3]]
    assert len(two) == 2


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_a_picture_is_scaled_to_the_training_pictures(tmp_path, mode, channels):
    Image.new(mode, (60, 40), 255 if mode == "L" else (255, 0, 0)).save(tmp_path / "p.png")
    data = from_arrays(np.ones((4, channels, 4, 6)), [0, 1, 0, 1])
    x = read_examples(tmp_path / "p.png", data)["x"]
    assert x.shape == (1, channels, 4, 6)
    assert (x[0, 0] == 1).all()
    assert (x[0, 1:] == 0).all()


def test_texts_come_from_a_table(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"question": "q1", "answer": "a1", "note": "n"}) + "\n")
    found = read_examples(path, TEXTS)
    assert {name: list(values) for name, values in found.columns.items()} == {
        "question": ["q1"], "answer": ["a1"]
    }  # fmt: skip
    path.write_text(json.dumps({"text": "q1"}) + "\n")
    with pytest.raises(DataError, match="has no column 'question', 'answer'"):
        read_examples(path, TEXTS)


def test_files_that_hold_no_example(tmp_path):
    with pytest.raises(StorageError, match=r"cannot read .*absent\.npy"):
        read_examples(tmp_path / "absent.npy", TABLE)
    with pytest.raises(StorageError, match=r"cannot read .*absent\.png"):
        read_examples(tmp_path / "absent.png", PICTURES)
    (tmp_path / "torn.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match="no whole picture"):
        read_examples(tmp_path / "torn.png", PICTURES)
    with pytest.raises(DataError, match=r"inputs of the data have shape \(3,\)"):
        read_examples(tmp_path / "torn.png", TABLE)
    np.save(tmp_path / "other.npy", np.zeros((2, 5)))
    with pytest.raises(DataError, match=r"shape \(2, 5\); inputs of the data have shape \(3,\)"):
        read_examples(tmp_path / "other.npy", TABLE)
    np.save(tmp_path / "nan.npy", np.full(3, np.nan))
    with pytest.raises(DataError, match="NaN or infinity"):
        read_examples(tmp_path / "nan.npy", TABLE)


def test_nothing_is_ever_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("it was unpickled",))

    (tmp_path / "trap.npy").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DataError, match=r"no \.npy array of numbers"):
        read_examples(tmp_path / "trap.npy", TABLE)
    np.save(tmp_path / "object.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"no \.npy array of numbers"):
        read_examples(tmp_path / "object.npy", TABLE)
