import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from expunge.core.errors import DataError, StorageError
from expunge.data.dataset import Dataset
from expunge.data.idx import read_idx
from expunge.data.source import load_source


def idx_bytes(values: np.ndarray) -> bytes:
    """Encode an array by the format's definition: two zeros, type 8, axes, sizes, bytes."""
    header = struct.pack(">BBBB", 0, 0, 8, values.ndim)
    return header + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for part, count in (("train", 12), ("t10k", 5)):
        pictures = draw.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
        zipped = tmp_path / f"{part}-images-idx3-ubyte.gz"
        zipped.write_bytes(gzip.compress(idx_bytes(pictures), mtime=0))
    return tmp_path


def load(folder: Path, **sizes: int) -> Dataset:
    settings = {"num_train": 8, "num_holdout": 4, "num_test": 5, **sizes}
    return load_source("fashion_mnist", {"folder": str(folder), **settings}, 0)


def test_pictures_are_read_plain_and_gzipped(folder: Path) -> None:
    data = load(folder)
    assert (len(data.train), len(data.holdout), len(data.test)) == (8, 4, 5)
    assert data.facts == {"num_classes": 10, "input_shape": [1, 28, 28]}
    raw = read_idx(folder / "t10k-images-idx3-ubyte", 3)
    np.testing.assert_allclose(data.test["x"][:, 0] * 255, raw, atol=1e-4)
    assert data.test.ids[0] == "fashion-t10k-00000"


def test_missing_folder_names_the_package_to_install() -> None:
    with pytest.raises(StorageError, match="apt-get install dataset-fashion-mnist"):
        load(Path("nowhere"))


def test_missing_file_is_named(folder: Path) -> None:
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(StorageError, match="t10k-labels-idx1-ubyte"):
        load(folder)


def test_more_pictures_than_there_are(folder: Path) -> None:
    with pytest.raises(DataError, match="12 records but 10 for train, 4 for holdout"):
        load(folder, num_train=10)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no IDX file"),
        (b"\x89PNG", "no IDX file"),
        (struct.pack(">BBBBI", 0, 0, 8, 1, 3) + b"abc", "1 axes where 3 are due"),
        (struct.pack(">BBBBIII", 0, 0, 8, 3, 1, 2, 2) + b"abc", "19 bytes where 20 are due"),
        (struct.pack(">BBBBI", 0, 0, 8, 3, 1), "bytes where"),
    ],
)
def test_torn_or_foreign_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_idx(tmp_path / "f", 3)


def test_torn_gzip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f.gz").write_bytes(gzip.compress(b"x" * 1000)[:-12])
    with pytest.raises(DataError, match="not a whole gzip file"):
        read_idx(tmp_path / "f", 1)
