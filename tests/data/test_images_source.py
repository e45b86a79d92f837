from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from expunge.core.errors import DataError, StorageError
from expunge.data.source import load_source


def paint(path: Path, color: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (10, 6), color).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    paint(tmp_path / "train" / "red" / "1.png", (255, 0, 0))
    paint(tmp_path / "train" / "blue" / "2.png", (0, 0, 255))
    paint(tmp_path / "train" / "blue" / "3.jpg", (0, 0, 255))
    return tmp_path


def test_folders_become_classes_and_pictures_one_shape(folder: Path) -> None:
    data = load_source("images", {"train": str(folder / "train"), "size": 4}, 0)
    assert data.facts == {"num_classes": 2, "input_shape": [3, 4, 4], "classes": ["blue", "red"]}
    assert data.train["y"] == [0, 0, 1]
    assert data.train["file"] == ["blue/2.png", "blue/3.jpg", "red/1.png"]
    expected = np.zeros((3, 4, 4), np.float32)
    expected[0] = 1.0
    np.testing.assert_array_equal(data.train["x"][2], expected)


def test_grey_pictures_have_one_channel_with_the_usual_luma(folder: Path) -> None:
    data = load_source("images", {"train": str(folder / "train"), "size": 4, "color": "grey"}, 0)
    # ITU-R 601: red weighs 0.299 of white.
    np.testing.assert_allclose(data.train["x"][2], np.full((1, 4, 4), 0.299), atol=0.003)


def test_a_broken_picture_is_named(folder: Path) -> None:
    (folder / "train" / "blue" / "2.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"2\.png is no whole picture"):
        load_source("images", {"train": str(folder / "train")}, 0)


def test_missing_and_empty_folders_are_named(folder: Path) -> None:
    with pytest.raises(StorageError, match="'nowhere' is no folder"):
        load_source("images", {"train": "nowhere"}, 0)
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="holds no pictures"):
        load_source("images", {"train": str(folder / "empty")}, 0)
    paint(folder / "test" / "green" / "1.png", (0, 255, 0))
    with pytest.raises(DataError, match="classes green have no folder"):
        load_source("images", {"train": str(folder / "train"), "test": str(folder / "test")}, 0)
