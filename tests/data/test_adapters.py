import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from expunge.core.errors import DataError
from expunge.data.adapters import from_hf, from_torch


class Counting(TensorDataset):
    reads = 0

    def __getitem__(self, row: int) -> tuple:
        self.reads += 1
        return super().__getitem__(row)


def test_torch_inputs_are_read_when_used() -> None:
    pairs = Counting(torch.arange(6.0).reshape(3, 2), torch.tensor([0, 1, 1]))
    unseen = TensorDataset(torch.zeros(1, 2), torch.tensor([0]))
    data = from_torch(pairs, holdout=unseen)
    assert data.train["y"] == [0, 1, 1]
    assert data.facts == {"num_classes": 2, "input_shape": [2]}
    before = pairs.reads
    picked = data.train.take([2])
    assert pairs.reads == before
    np.testing.assert_array_equal(picked["x"][0], [4.0, 5.0])
    assert pairs.reads == before + 1
    assert data.holdout.ids == ("holdout-00000",)
    assert data.digest() == from_torch(pairs, holdout=unseen).digest()


def test_own_ids_are_kept() -> None:
    pairs = TensorDataset(torch.zeros(2, 1), torch.tensor([0, 1]))
    assert from_torch(pairs, ids=["u", "v"]).train.ids == ("u", "v")


def test_hf_columns_are_mapped() -> None:
    rows = datasets.Dataset.from_dict({"prompt": ["p"], "reply": ["r"], "who": ["w"]})
    data = from_hf(rows, {"question": "prompt", "answer": "reply", "author": "who"})
    assert dict(data.train.columns) == {"question": ["p"], "answer": ["r"], "author": ["w"]}
    with pytest.raises(DataError, match="train has no column 'text'; it has prompt, reply, who"):
        from_hf(rows, {"text": "text"})


def test_hf_classifier_columns_become_arrays() -> None:
    rows = datasets.Dataset.from_dict({"v": [[1.0, 2.0], [3.0, 4.0]], "c": [1, 0], "g": ["a", "b"]})
    data = from_hf(rows, {"x": "v", "y": "c", "group": "g"}, kind="classifier")
    assert data.train["x"].dtype == np.float32
    assert data.facts == {"num_classes": 2, "input_shape": [2]}
    assert data.train["group"] == ["a", "b"]
