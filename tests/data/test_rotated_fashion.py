import struct
from pathlib import Path

import numpy as np
import pytest

from expunge.core.errors import DataError, StorageError
from expunge.data.source import load_source


def idx_bytes(values: np.ndarray) -> bytes:
    header = struct.pack(">BBBB", 0, 0, 8, values.ndim)
    return header + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve pictures to train on and five to test on: each a bright block right of the middle."""
    for part, count in (("train", 12), ("t10k", 5)):
        pictures = np.zeros((count, 28, 28), dtype=np.uint8)
        pictures[:, 12:16, 22:26] = 255
        labels = (np.arange(count) % 10).astype(np.uint8)
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx_bytes(pictures))
    return tmp_path


def load(folder: Path, seed: int = 0, **settings):
    sizes = {"num_train": 8, "num_holdout": 4, "num_test": 5}
    return load_source("rotated_fashion", {"folder": str(folder), **sizes, **settings}, seed)


def test_pictures_are_turned_counterclockwise_by_the_angle_that_they_tell(folder):
    data = load(folder)
    assert data.kind == "regressor"
    assert data.facts["input_shape"] == [1, 28, 28]
    rows, columns = np.mgrid[:28, :28] - 13.5
    for picture, angle in zip(data.train["x"], data.train["angle"], strict=True):
        # The block began at angle 0; upwards is where rows fall.
        seen = np.degrees(np.arctan2(-(picture[0] * rows).sum(), (picture[0] * columns).sum()))
        assert seen == pytest.approx(angle, abs=1.5)


def test_target_is_the_angle_in_units(folder):
    data = load(folder, unit=20.0)
    np.testing.assert_allclose(data.train["y"], np.asarray(data.train["angle"]) / 20, rtol=1e-6)
    assert np.abs(data.train["angle"]).max() <= 60
    narrow = load(folder, max_angle=5.0)
    np.testing.assert_allclose(
        np.asarray(narrow.train["angle"]) * 12, data.train["angle"], rtol=1e-9
    )


def test_a_band_names_the_angles_inside_it(folder):
    data = load(folder, num_bands=3)
    for angle, band in zip(data.train["angle"], data.train["band"], strict=True):
        low, high = map(float, band.split(".."))
        assert low <= angle <= high
        assert (low, high) in {(-60, -20), (-20, 20), (20, 60)}


def test_angles_are_a_function_of_seed_and_id(folder):
    assert load(folder).digest() == load(folder).digest()
    few, many = load(folder), load(folder, num_train=5, num_holdout=7)
    angles = dict(zip(few.train.ids, few.train["angle"], strict=True))
    shared = [i for i in many.train.ids if i in angles]
    assert shared
    assert all(angles[i] == many.train["angle"][many.train.ids.index(i)] for i in shared)
    assert set(load(folder, seed=1).train["angle"]) != set(few.train["angle"])


def test_nothing_may_be_held_out(folder):
    assert len(load(folder, num_holdout=0).holdout) == 0


def test_missing_folder_and_too_few_pictures(folder):
    with pytest.raises(StorageError, match="apt-get install dataset-fashion-mnist"):
        load(Path("nowhere"))
    with pytest.raises(DataError, match="12 records but 10 for train"):
        load(folder, num_train=10)
