import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from expunge.report.examples import purge
from expunge.report.neighbours import MAX_CHARACTERS, picture_data, write_neighbours

ROWS = [
    {"id": "train-00000", "distance": 0.0, "text": ["Where was Ilvara born?", "In Varnholm."],
     "values": {"author": "Ilvara Tesk"}},
    {"id": "train-00007", "distance": 0.125, "text": ["w" * 1000], "values": {"year": 1950.0}},
]  # fmt: skip


def write(folder, rows=ROWS, examples=1):
    return write_neighbours(
        folder, rows, examples=examples, measured="what the model makes of them"
    )


def test_the_page_warns_and_tells_how_to_go_on(tmp_path, page_of):
    text = write(tmp_path).read_text(encoding="utf-8")
    page = page_of(text)
    told = " ".join("".join(page.text).split())
    assert "This page contains personal data" in told
    assert "Nothing has been forgotten yet" in told
    assert f"request: {{file: {tmp_path / 'neighbours.json'}}}" in told
    assert "1 training record, nearest first" in told
    assert told.index("train-00000 the example") < told.index("train-00007")
    assert "Ilvara Tesk" in told
    assert "0.125" in told


def test_the_page_needs_nothing_else(tmp_path, page_of):
    rows = [{"id": "a", "distance": 0.0, "picture": np.zeros((1, 4, 4)), "values": {"y": "shirt"}}]
    page = page_of(write(tmp_path, rows).read_text(encoding="utf-8"))
    places = [attrs.get("src") or attrs.get("href") or "data:" for _, attrs in page.elements]
    assert all(place.startswith("data:") for place in places)
    (shown,) = page.all("img")
    assert shown["alt"] == "Picture of record a"


def test_ids_and_distances_are_a_file_of_their_own(tmp_path):
    write(tmp_path)
    assert json.loads((tmp_path / "neighbours.json").read_text()) == [
        {"id": "train-00000", "distance": 0.0}, {"id": "train-00007", "distance": 0.125}
    ]  # fmt: skip
    assert "Ilvara" not in (tmp_path / "neighbours.json").read_text()


def test_long_text_is_shortened(tmp_path):
    text = write(tmp_path).read_text(encoding="utf-8")
    assert "w" * (MAX_CHARACTERS - 1) + "…" in text
    assert "w" * MAX_CHARACTERS not in text


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_a_picture_is_shown_as_it_is(channels):
    grid = np.random.default_rng(0).integers(0, 256, (*channels, 5, 4))
    data = picture_data(grid / 255, 0.0, 1.0)
    found = np.asarray(Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))))
    expected = grid.transpose(1, 2, 0) if channels == (3,) else grid.reshape(5, 4)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("low", "high"), [(-2.0, 2.0), (3.0, 3.0)])
def test_other_scales_are_shown_from_black_to_white(low, high, tmp_path, page_of):
    picture = np.array([[low, high]])
    page = write(tmp_path, [{"id": "a", "distance": 0.0, "picture": picture}])
    (shown,) = page_of(page.read_text()).all("img")
    data = base64.b64decode(shown["src"].partition(",")[2])
    found = np.asarray(Image.open(io.BytesIO(data))).ravel().tolist()
    assert found == ([0, 255] if low < high else [0, 0])


def test_foreign_text_becomes_no_markup(payload, tmp_path, check_page, page_of):
    rows = [{"id": payload, "distance": 0.0, "text": [payload], "values": {payload: payload}}]
    text = write(tmp_path, rows).read_text(encoding="utf-8")
    page_of(text)
    check_page(text)


def test_the_same_records_give_the_same_bytes(tmp_path):
    rows = [{"id": "a", "distance": 0.5, "picture": np.arange(16).reshape(4, 4)}]
    first = write(tmp_path, rows).read_bytes()
    assert write(tmp_path, rows).read_bytes() == first


def test_purge_removes_the_page_and_keeps_the_ids(tmp_path):
    page = write(tmp_path)
    assert purge(tmp_path) == [page]
    assert [path.name for path in tmp_path.iterdir()] == ["neighbours.json"]
    assert purge(tmp_path) == []
