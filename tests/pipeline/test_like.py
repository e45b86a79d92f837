"""Everything like these examples: the page and the file of ids, and what they lead to."""

import json

import numpy as np
import pytest
import torch
from small_recipes import DIGITS, PEOPLE

from expunge.core.errors import ConfigError, DataError, UnsupportedModelError
from expunge.core.run import Run
from expunge.data.source import load_source
from expunge.pipeline import like
from expunge.pipeline.execute import plan_lines
from expunge.pipeline.like import find_like, representations
from expunge.pipeline.recipe import make_recipe


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))


def recipe(base=DIGITS, **changes):
    return make_recipe({**base, **changes})


def found_in(folder):
    rows = json.loads((folder / "neighbours.json").read_text())
    return [row["id"] for row in rows], np.array([row["distance"] for row in rows])


@pytest.fixture
def data():
    return load_source("digits", {}, 0)


def test_neighbours_are_nearest_in_the_features_of_the_trained_model(tmp_path, data, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        like, "_trained", lambda *given, make=like._trained: seen.setdefault("m", make(*given))
    )
    one = data.train.ids[5]
    find_like(recipe(), tmp_path / "out", ids=[one], count=7, quiet=True)
    ids, distances = found_in(tmp_path / "out")
    # The network by hand: what its hidden layer of 16 gives, before the last linear layer.
    layers = seen["m"].model
    with torch.no_grad():
        x = torch.from_numpy(np.asarray(data.train["x"])).flatten(1)
        hidden = torch.relu(layers[1](x)).double()
    cosine = torch.nn.functional.cosine_similarity(hidden, hidden[5:6])
    nearest = np.argsort(1 - cosine.numpy(), kind="stable")[:8]
    assert ids == [data.train.ids[row] for row in nearest]
    np.testing.assert_allclose(distances, 1 - cosine.numpy()[nearest], atol=1e-6)
    assert ids[0] == one
    assert distances[0] == 0


def test_the_model_is_the_one_that_the_run_trains(tmp_path, finished_digits, monkeypatch):
    from expunge.engine.weights import state_digest

    seen = {}
    monkeypatch.setattr(
        like, "_trained", lambda *given, make=like._trained: seen.setdefault("m", make(*given))
    )
    find_like(recipe(), tmp_path / "out", ids=["digits-00000"], quiet=True)
    models = json.loads((finished_digits / "models.json").read_text())
    assert state_digest(seen["m"].model) == models["before"]["digest"]


def test_a_model_that_was_trained_once_is_kept(tmp_path, monkeypatch):
    find_like(recipe(), tmp_path / "a", ids=["digits-00000"], quiet=True)
    monkeypatch.setattr("expunge.pipeline.references.learn", lambda *_, **__: pytest.fail("again"))
    find_like(recipe(), tmp_path / "b", ids=["digits-00000"], quiet=True)
    names = ("neighbours.html", "neighbours.json")
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == sorted(names)
    for name in names[1:]:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_page_shows_pictures_with_their_classes(tmp_path):
    page = find_like(recipe(), tmp_path / "out", ids=["digits-00000"], count=3, quiet=True)
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 4
    assert '<dd dir="auto">0</dd>' in text


def test_within_a_radius(tmp_path):
    find_like(recipe(), tmp_path / "a", ids=["digits-00000"], count=9, quiet=True)
    ids, distances = found_in(tmp_path / "a")
    radius = float((distances[5] + distances[6]) / 2)
    find_like(recipe(), tmp_path / "b", ids=["digits-00000"], radius=radius, quiet=True)
    assert found_in(tmp_path / "b")[0] == ids[:6]


def test_an_example_of_ones_own_leads_to_training_records_only(tmp_path, data):
    np.save(tmp_path / "mine.npy", data.test["x"][3])
    find_like(recipe(), tmp_path / "out", examples=tmp_path / "mine.npy", count=5, quiet=True)
    ids, distances = found_in(tmp_path / "out")
    assert len(ids) == 5
    assert set(ids) <= set(data.train.ids)
    assert (np.diff(distances) >= 0).all()


def test_the_file_is_what_a_request_takes(tmp_path):
    find_like(recipe(), tmp_path / "out", ids=["digits-00000", "digits-00001"], count=4, quiet=True)
    request = {"file": str(tmp_path / "out" / "neighbours.json")}
    told = "\n".join(plan_lines(recipe(request=request), tmp_path / "run"))
    assert "6 forget, 1071 retain" in told


def test_texts_are_told_apart_by_the_mean_over_their_answers(tmp_path):
    page = find_like(recipe(PEOPLE), tmp_path / "out", ids=["people-00001"], count=2, quiet=True)
    data = load_source(*like.split_part(PEOPLE["data"], "data"), 0)
    ids, _ = found_in(tmp_path / "out")
    text = page.read_text()
    for record_id in ids:
        assert data.train["answer"][data.train.ids.index(record_id)] in text
    assert "perturbed" not in text


def test_features_of_a_text_do_not_depend_on_the_batch():
    data = load_source(*like.split_part(PEOPLE["data"], "data"), 0)
    loaded = like._trained(make_recipe({**PEOPLE, "train": None, "references": 0}), data, Run())
    one, many = (representations(loaded, data.train, Run(), size) for size in (1, 8))
    assert one.shape == (8, 16)
    np.testing.assert_allclose(one, many, atol=1e-6)


def test_rows_of_a_table_are_shown_by_their_numbers(tmp_path):
    rows = "".join(f"{i},{i % 3},{i % 2}\n" for i in range(12))
    (tmp_path / "t.csv").write_text("a,b,label\n" + rows)
    source = {"name": "files", "kind": "classifier", "train": str(tmp_path / "t.csv")}
    page = find_like(
        recipe(data=source), tmp_path / "out", ids=["train-00007"], count=2, quiet=True
    )
    assert '<dt dir="auto">x0</dt><dd dir="auto">7.0' in page.read_text()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"ids": ["digits-99999"]}, DataError, r"request like: 1 unknown record ids"),
        ({"ids": ["digits-00000"], "count": 0}, ConfigError, "count = 0: ask for at least 1"),
        ({"ids": ["digits-00000"], "count": 5000}, DataError, "count = 5000 but there are 1076"),
        ({"ids": ["digits-00000"], "count": 2, "radius": 1.0}, ConfigError, "either a count"),
        ({}, ConfigError, "either ids of training records"),
    ],
)
def test_bad_questions_write_nothing(tmp_path, settings, error, message):
    with pytest.raises(error, match=message):
        find_like(recipe(), tmp_path / "out", quiet=True, **settings)
    assert not (tmp_path / "out" / "neighbours.html").exists()


def test_a_model_without_a_representation_is_refused(tmp_path):
    with pytest.raises(UnsupportedModelError, match="no representation"):
        find_like(
            recipe(model={"name": "mlp", "hidden": []}),
            tmp_path / "out", ids=["digits-00000"], quiet=True,
        )  # fmt: skip
