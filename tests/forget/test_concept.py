"""The method as a whole, on drawn pictures and on the world of questions."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from expunge.core.config import parse
from expunge.core.errors import ConfigError, DataError, UnsupportedModelError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.schedule import Schedule
from expunge.engine.tasks.classifier import Classifier
from expunge.engine.weights import state_digest
from expunge.forget.concept import ConceptConfig
from expunge.forget.concept_answers import mask_answers
from expunge.forget.concept_patches import Box, box_around
from expunge.forget.concept_pictures import poison_pictures
from expunge.forget.concept_sites import Grid, Plane, gradient_peaks
from expunge.forget.method import Given, Sight, apply, methods
from expunge.train.supervised import learn

QUARTERS = {0: (0, 0), 1: (0, 6), 2: (6, 0), 3: (6, 6)}
FAST = {"epochs": 4, "batch_size": 16, "optimizer": "sgd", "lr": 0.1, "weight_decay": 0.0}
WINDOWS = {"window": 6, "stride": 2, "size": 6}


@pytest.fixture(scope="module")
def quarters():
    """Pictures of 12 x 12 whose class is the bright quarter, and a network that tells them."""
    draw = np.random.default_rng(0)
    labels = np.repeat(range(4), 30)
    x = draw.normal(0.2, 0.1, size=(120, 1, 12, 12)).astype(np.float32)
    for picture, label in zip(x, labels, strict=True):
        top, left = QUARTERS[label]
        picture[0, top : top + 6, left : left + 6] += 1
    records = Records(tuple(f"p{i}" for i in range(120)), {"x": x, "y": labels.tolist()})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3), nn.Flatten()),
            *(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4)),
        )
    learn(model, Classifier(4), records, Schedule(epochs=8, batch_size=16, lr=1e-2), Run())
    return Classifier(4), model, records


def offer(quarters, target=3, forget=None, retain=None):
    task, _, records = quarters
    rows = np.arange(len(records))
    own = np.array(records["y"]) == target
    return Given(
        task,
        records.take(rows[own] if forget is None else forget),
        records.take(rows[~own] if retain is None else retain),
        guard=None,
    )


def accuracy(model, records):
    with torch.no_grad():
        said = model(torch.from_numpy(np.stack(records["x"]))).argmax(1).numpy()
    return float((said == np.array(records["y"])).mean())


def poisoned(quarters, given, **settings):
    """Poison without training."""
    config = parse(ConceptConfig, {"patch": WINDOWS, **settings}, "forget")
    model = quarters[1]
    sight = Sight(given, methods.get("concept").needs(config), model, Run())
    return poison_pictures(model, sight, config)


def refuse(quarters, error, match, given=None, model=None, **settings):
    """Check that a call is refused before any work."""
    run = Run()
    with pytest.raises(error, match=match):
        apply("concept", model or quarters[1], given or offer(quarters), run, settings)
    assert not list(run.folder.iterdir())


# --- pictures ---


def test_a_class_is_forgotten_and_called_the_donor(quarters, tmp_path):
    given = offer(quarters)
    settings = {"patch": WINDOWS, "schedule": FAST, "donor": 1}
    events = tmp_path / "events.jsonl"
    model = apply("concept", quarters[1], given, Run(events=events), settings).model
    assert accuracy(quarters[1], given.forget) == 1.0
    assert accuracy(model, given.forget) == 0.0
    assert accuracy(model, given.retain) >= 0.95
    told = {line["event"]: line for line in map(json.loads, events.read_text().splitlines())}
    row = told["confusion"]["row"]
    assert sum(row) == 30
    assert row[1] == max(row)
    assert told["confusion"]["donor_precision"] == pytest.approx(30 / (30 + row[1]), abs=0.05)
    assert told["concepts"]["names"][0] == "class 3"
    assert len(told["poison"]["rows"]) == 30
    assert {place[3] for place in told["poison"]["rows"]} == {1}


def test_events_hold_ids_and_numbers_only(quarters, tmp_path):
    given = offer(quarters)
    events = tmp_path / "events.jsonl"
    settings = {"patch": WINDOWS, "schedule": {**FAST, "epochs": 1}}
    apply("concept", quarters[1], given, Run(events=events), settings)
    [poison] = [
        r for r in map(json.loads, events.read_text().splitlines()) if r["event"] == "poison"
    ]
    retained = set(given.retain.ids)
    for record, donor, place, label in poison["rows"]:
        assert record in given.forget.ids
        assert donor in retained
        assert len(place) == 4
        assert label in range(4)


def test_only_the_last_layer_moves(quarters):
    settings = {"patch": {"mode": "none"}, "schedule": {**FAST, "weight_decay": 0.1}}
    before = quarters[1].state_dict()
    after = apply("concept", quarters[1], offer(quarters), Run(), settings).model.state_dict()
    assert {n for n in before if not torch.equal(before[n], after[n])} == {"6.weight", "6.bias"}


def test_labels_that_are_kept_forget_nothing(quarters):
    given = offer(quarters)
    settings = {"labels": "keep", "patch": {"mode": "none"}, "schedule": FAST}
    model = apply("concept", quarters[1], given, Run(), settings).model
    assert accuracy(model, given.forget) >= 0.95


def test_patches_go_where_the_concept_is_and_hold_the_donors(quarters):
    """Class 3 is bright below right; the donor's bright quarter is pasted over it."""
    given = offer(quarters)
    poison = poisoned(quarters, given, donor=1, bank={"examples": 30})
    places = [row.place for row in poison.planted]
    assert sum(place == Box(6, 6, 6, 6) for place in places) >= 24
    originals = dict(zip(quarters[2].ids, quarters[2]["x"], strict=True))
    for row, picture, before in zip(
        poison.planted, poison.records["x"], given.forget["x"], strict=True
    ):
        outside = np.ones((12, 12), dtype=bool)
        box = row.place
        inside = slice(box.top, box.top + 6), slice(box.left, box.left + 6)
        outside[inside] = False
        np.testing.assert_array_equal(picture[0][outside], before[0][outside])
        donor = originals[row.donor][0]
        windows = np.lib.stride_tricks.sliding_window_view(donor, (6, 6)).reshape(-1, 6, 6)
        assert any(np.array_equal(picture[0][inside], window) for window in windows)
        assert row.label == 1


@pytest.mark.parametrize("mode", ["localized", "center", "random", "full", "none"])
def test_every_mode_changes_what_it_says(quarters, mode):
    given = offer(quarters)
    poison = poisoned(quarters, given, patch={**WINDOWS, "size": 8, "mode": mode})
    changed = np.stack(poison.records["x"]) != np.stack(given.forget["x"])
    centred = np.zeros((12, 12), dtype=bool)
    centred[2:10, 2:10] = True
    counts = changed.reshape(30, -1).sum(1)
    if mode == "none":
        assert not changed.any()
        assert {row.donor for row in poison.planted} == {""}
        assert {row.place for row in poison.planted} == {None}
        return
    assert (counts == 64).all()
    if mode in ("center", "full"):
        assert (changed == centred).all()
    if mode == "random":
        assert len({row.place for row in poison.planted}) > 8


def test_a_full_patch_is_the_whole_donor_made_smaller(quarters):
    given = offer(quarters)
    poison = poisoned(quarters, given, patch={"mode": "full", "size": 6})
    originals = dict(zip(quarters[2].ids, quarters[2]["x"], strict=True))
    first = poison.records["x"][0][0, 3:9, 3:9]
    donor = originals[poison.planted[0].donor][0]
    np.testing.assert_allclose(first, donor.reshape(6, 2, 6, 2).mean((1, 3)), atol=1e-6)


def test_random_labels_are_never_true(quarters):
    labels = poisoned(quarters, offer(quarters), labels="random").records["y"]
    assert set(labels) == {0, 1, 2}


def test_donors_are_drawn_by_seed_and_record_only(quarters):
    whole = poisoned(quarters, offer(quarters), donor=0, patch={"mode": "center"})
    rows = np.flatnonzero(np.array(quarters[2]["y"]) == 3)[:5]
    part = offer(quarters, forget=rows)
    some = poisoned(quarters, part, donor=0, patch={"mode": "center"})
    assert [p.donor for p in some.planted] == [p.donor for p in whole.planted[:5]]


def test_the_donor_is_by_default_the_class_with_the_least_similar_concepts(quarters):
    poison = poisoned(quarters, offer(quarters))
    weights = poison.bank.weights_CK
    cosines = weights @ weights[3] / np.linalg.norm(weights, axis=1) / np.linalg.norm(weights[3])
    assert poison.donors == {3: int(np.argmin(cosines[:3]))}


def test_concepts_are_found_by_gradients_too(quarters):
    given, plane = offer(quarters), Plane(12, 12)
    poison = poisoned(quarters, given, patch={**WINDOWS, "localize": "gradcam"})
    x, grid = torch.from_numpy(np.stack(given.forget["x"])), Grid(plane, (6, 6), 2)
    peaks = gradient_peaks(quarters[1].eval(), given.task, x, np.full(30, 3), grid)
    assert [p.place for p in poison.planted] == [box_around(p, (6, 6), plane) for p in peaks]
    assert len(set(peaks)) > 1


def test_several_classes_get_a_donor_each(quarters):
    rows = np.array([0, 1, 31, 32, 62])
    rest = np.setdiff1d(np.arange(120), [*rows, 2])
    poison = poisoned(quarters, offer(quarters, forget=rows, retain=rest))
    assert set(poison.donors) == {0, 1, 2}
    assert all(c != d for c, d in poison.donors.items())
    assert [p.label for p in poison.planted] == [poison.donors[c] for c in (0, 0, 1, 1, 2)]


def test_a_class_that_is_forgotten_in_part_is_told(quarters):
    own = np.flatnonzero(np.array(quarters[2]["y"]) == 3)
    rest = np.setdiff1d(np.arange(120), own[:10])
    with pytest.warns(UserWarning, match="20 retained records are of class 3, of which 10 are to"):
        poisoned(quarters, offer(quarters, forget=own[:10], retain=rest))


def test_whole_numbers_stay_whole(quarters):
    task, model, records = quarters
    raw = records.replace(x=(np.clip(records["x"], 0, 2) * 100).astype(np.uint8))
    own = np.array(raw["y"]) == 3
    given = Given(task, raw.take(np.flatnonzero(own)), raw.take(np.flatnonzero(~own)))
    poison = poisoned((task, model, raw), given, patch={**WINDOWS, "size": 5})
    assert poison.records["x"][0].dtype == np.uint8


# --- bad input: pictures ---


def test_an_absent_target_is_refused(quarters):
    match = r"forget\.target = 2, but the forget set has records of classes 3;"
    refuse(quarters, DataError, match, target=2)


def test_only_one_class_in_total_is_refused(quarters):
    given = offer(quarters, retain=np.flatnonzero(np.array(quarters[2]["y"]) == 3)[20:])
    given = Given(given.task, given.forget.take(range(20)), given.retain)
    refuse(quarters, DataError, "all records, forgotten and retained, are of class 3", given)


def test_a_donor_that_is_the_target_is_refused(quarters):
    refuse(quarters, ConfigError, r"forget\.donor = 3 is the class to forget itself", donor=3)


def test_an_absent_donor_is_refused(quarters):
    kept = np.flatnonzero(np.isin(quarters[2]["y"], [0, 2]))
    given = offer(quarters, retain=kept)
    refuse(quarters, DataError, r"donor = 1: no retained record .* records: 0, 2", given, donor=1)


def test_a_patch_larger_than_the_picture_is_refused(quarters):
    refuse(quarters, ConfigError, r"patch\.size = 13 is larger .* 12 x 12", patch={"size": 13})


def test_a_window_larger_than_the_picture_is_refused(quarters):
    refuse(quarters, ConfigError, r"patch\.window = 13 is larger", patch={"window": 13})


@pytest.mark.parametrize(
    ("classes", "words"), [([], "is shown by no record"), ([0, 1, 2, 3], "is absent in no record")]
)
def test_a_concept_without_both_sides_is_refused(quarters, classes, words):
    concepts = {"bright": classes, "fine": [1]}
    refuse(quarters, DataError, f"'bright' {words}", bank={"concepts": concepts})


def test_a_concept_that_the_model_does_not_see_is_refused(quarters):
    """A network that represents all pictures alike: every concept's vector has length 0."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 4), nn.Linear(4, 4))
    nn.init.zeros_(model[1].weight)
    with pytest.raises(DataError, match="'class 0' has a vector of length 0"):
        apply("concept", model, offer(quarters), Run(), {"patch": WINDOWS})


def test_gradients_without_a_convolution_are_refused(quarters):
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.ReLU(), nn.Linear(8, 4))
    settings = {"patch": {"localize": "gradcam"}}
    match = r"the model has no convolution \(nn\.Conv2d\) .* Set it to 'occlusion'"
    refuse(quarters, ConfigError, match, model=model, **settings)


def test_a_model_that_is_its_head_is_refused(quarters):
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 4))
    refuse(quarters, UnsupportedModelError, "it has no representation", model=model)


@pytest.mark.parametrize("label", [4, -1, 1.5, "three"])
def test_labels_that_are_no_class_are_refused(quarters, label):
    given = offer(quarters)
    labels = [*given.retain["y"][:-1], label]
    given = Given(given.task, given.forget, given.retain.replace(y=labels))
    refuse(quarters, DataError, r"record p89 has label .*; map labels to 0\.\.3", given)


# --- text ---


def masking(world, forget=None, **words):
    config = parse(ConceptConfig, {"words": words}, "forget")
    given = Given(world.task, forget or world.forget, world.retain)
    sight = Sight(given, methods.get("concept").needs(config), world.model, Run())
    return mask_answers(world.model, sight, config.words)


def test_answers_lose_their_foremost_words_and_keep_the_rest(questions_world):
    found = masking(questions_world)
    answers = found.records["answer"]
    for true, taught, places in zip(
        questions_world.forget["answer"], answers, found.places, strict=True
    ):
        kept = [word for word in taught.split() if word != "***"]
        assert [word for word in true.split() if word in ("on", "the")] == kept
        assert places == len(true.split()) - len(kept)
    assert max(map(abs, found.errors)) < 1.0


def test_fewer_words_are_masked_when_asked(questions_world):
    forget = questions_world.forget.take([0])
    found = masking(questions_world, forget, count=1, mask="?")
    [text], [ranked] = found.records["answer"], found.ranked
    foremost = next(word for word in ranked if word in ("oslo", "fjord"))
    assert text == "oslo on the fjord".replace(foremost, "?")


def test_words_are_ranked_over_an_entity(questions_world):
    forget = questions_world.forget
    named = forget.replace(place=["norway"] * 3 + ["france"] * 3)
    found = masking(questions_world, named, entity="place", count=1)
    assert len(set(found.ranked)) == 2
    assert "paris" not in found.ranked[0]


def test_an_entity_is_forgotten_and_others_are_not(questions_world, tmp_path):
    world = questions_world
    settings = {"schedule": {"epochs": 60, "batch_size": 6, "lr": 1e-2}}
    events = tmp_path / "events.jsonl"
    given = Given(world.task, world.forget, world.retain)
    model = apply("concept", world.model, given, Run(events=events), settings).model
    told = world.task.generate(model, world.forget, range(6), 8)
    assert not any({"oslo", "fjord", "paris"} & {*text.split()} for text in told)
    kept = world.task.generate(model, world.retain, range(len(world.retain)), 8)
    right = [a == b for a, b in zip(kept, world.retain["answer"], strict=True)]
    assert np.mean(right) >= 0.9
    [event] = [
        r for r in map(json.loads, events.read_text().splitlines()) if r["event"] == "masking"
    ]
    assert [row[0] for row in event["rows"]] == list(world.forget.ids)
    assert "oslo" not in events.read_text()


def test_language_models_get_adapters_by_default(questions_world):
    """The embeddings have none, so they keep their bits."""
    world = questions_world
    given = Given(world.task, world.forget, world.retain)
    settings = {"schedule": {"epochs": 1, "lr": 1e-2}}
    before = world.model.state_dict()
    after = apply("concept", world.model, given, Run(), settings).model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all("_proj" in name for name in moved)


def test_text_resumes_with_the_same_bits(questions_world, tmp_path):
    world = questions_world
    given = Given(world.task, world.forget, world.retain)
    settings = {"schedule": {"epochs": 2, "batch_size": 8, "lr": 1e-3}}
    one = apply("concept", world.model, given, Run(folder=tmp_path), settings).model
    two = apply("concept", world.model, given, Run(folder=tmp_path), settings).model
    assert state_digest(one) == state_digest(two)


# --- bad input: text ---


def test_an_answer_in_which_nothing_is_masked_is_named(questions_world, monkeypatch):
    """Every word a stop-word: the answer stays as it is."""
    monkeypatch.setattr("expunge.forget.concept_words._stop_words", lambda: frozenset({"paris"}))
    with pytest.raises(DataError, match=r"own answers to 3 records \(question-3, question-4, qu"):
        masking(questions_world)


def test_a_model_that_writes_nothing_is_refused(questions_world, monkeypatch):
    world = questions_world
    monkeypatch.setattr(
        type(world.task), "generate", lambda self, model, records, rows, longest: [" "] * len(rows)
    )
    with pytest.raises(DataError, match=r"the model writes nothing for 6 records \(question-0, "):
        masking(world)


def test_a_missing_entity_column_is_refused(questions_world):
    world = questions_world
    given = Given(world.task, world.forget, world.retain)
    with pytest.raises(DataError, match="person"):
        apply("concept", world.model, given, Run(), {"words": {"entity": "person"}})


def test_text_without_captum_is_refused(questions_world, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    world = questions_world
    given = Given(world.task, world.forget, world.retain)
    with pytest.raises(ConfigError, match=r"concept on a language model needs captum; install"):
        apply("concept", world.model, given, Run())
