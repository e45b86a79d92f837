"""The comparison of classifiers' and regressors' methods: its rows, fixtures and seeds."""

import dataclasses
import json

import pytest

from expunge.core.errors import ConfigError
from expunge.core.run import Run
from expunge.forget.method import methods, parse_config
from expunge.workloads import vision_fixtures
from expunge.workloads.comparison import Job
from expunge.workloads.fixture import Fixture
from expunge.workloads.vision_arms import ARMS
from expunge.workloads.vision_fixtures import FIXTURES, Selected
from expunge.workloads.workload import run_workload

# Methods for classifiers or regressors that the table leaves out, and why.
NOT_COMPARED = {
    "retrain": "it is what the others are compared with",
    **dict.fromkeys(
        (
            *("ceu", "grad_diff", "npo", "pdu", "rmu", "satimp", "simnpo"),
            *("task_vector", "undial", "wagle", "wga"),
        ),
        "a language model's method at a language model's learning rate; see the bench lm",
    ),
}


def test_every_method_for_pictures_and_numbers_has_a_row():
    compared = {arm.method for arm in ARMS}
    able = {info.name for info in methods if info.kinds & {"classifier", "regressor"}}
    assert able - compared == NOT_COMPARED.keys()
    assert len({arm.label for arm in ARMS}) == len(ARMS)


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.label)
def test_every_row_has_settings_that_its_method_takes(arm):
    for name in arm.only or FIXTURES:
        job = Job(name, FIXTURES[name], arm, 0, 2)
        parse_config(methods.get(arm.method), job.settings())


def test_every_row_works_on_the_kind_of_its_fixtures():
    numbers = {"price_quarter", "angle_band"}
    for arm in ARMS:
        kinds = methods.get(arm.method).kinds
        for name in arm.only or FIXTURES:
            assert ("regressor" if name in numbers else "classifier") in kinds, (arm.label, name)


SMALL = {
    "data": ("digits", {"num_holdout": 0, "num_test": 300}),
    "model": ("mlp", {"hidden": [16]}),
    "training": {"epochs": 3, "batch_size": 64, "lr": 3e-3},
}


@pytest.fixture
def small(monkeypatch, tmp_path, in_process):
    """A tenth of the digits, and the digits that are hardest to forget, in seconds."""
    for name in ("resnet_random_10", "resnet_worst_10"):
        whole = FIXTURES[name]
        smaller = dataclasses.replace(whole, **SMALL)
        if isinstance(whole, Selected):
            smaller = dataclasses.replace(smaller, by="low_loss", count=40)
        monkeypatch.setitem(vision_fixtures.FIXTURES, name, smaller)
    return tmp_path / "bench"


def test_every_seed_has_data_a_request_and_references_of_its_own(small):
    settings = {
        "fixtures": ["resnet_random_10", "resnet_worst_10"],
        "arms": ["finetune", "ssd"],
        "seeds": 2,
    }
    page = run_workload("vision", settings, small, Run())
    results = json.loads((small / "results.json").read_text())
    assert [row["label"] for row in results["rows"]] == ["finetune", "ssd"] * 2
    assert len(results["standards"]["resnet_random_10"]) == 2 * 3
    forgotten = [
        json.loads((small / f"resnet_{kind}-{draw}" / "sets.json").read_text())["forget"]
        for kind in ("random_10", "worst_10")
        for draw in (0, 1)
    ]
    assert len({tuple(ids) for ids in forgotten}) == 4
    assert [len(ids) for ids in forgotten] == [150, 150, 40, 40]
    assert "original (2)" in page.read_text()
    gap = results["rows"][0]["numbers"]["gap"]
    assert len(gap) == 2
    assert all(value >= 0 for value in gap)
    floor = [
        own["gap"]
        for name, own in results["standards"]["resnet_random_10"].items()
        if name.startswith("reference")
    ]
    assert len(floor) == 4
    assert all(value is not None for value in floor)


@pytest.mark.parametrize(
    ("name", "data", "model"),
    [
        ("vit_random_10", SMALL["data"], SMALL["model"]),
        (
            "resnet_poison",
            ("digits", {"num_holdout": 0, "corrupt": {"kind": "poison", "count": 40}}),
            ("mlp", {}),
        ),
        ("price_quarter", ("diamonds", {"num_train": 400, "num_test": 200}), ("mlp", {})),
    ],
)
def test_every_column_is_filled(name, data, model, monkeypatch, tmp_path, in_process):
    training = {"epochs": 2, "batch_size": 64, "lr": 3e-3}
    smaller = dataclasses.replace(FIXTURES[name], data=data, model=model, training=training)
    monkeypatch.setitem(vision_fixtures.FIXTURES, name, smaller)
    settings = {"fixtures": [name], "arms": ["finetune"], "seeds": 1}
    run_workload("vision", settings, tmp_path, Run())
    [row] = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert not row["refused"]
    assert all(value is not None for own in row["numbers"].values() for value in own)


def test_fewer_than_two_references_are_refused(small):
    with pytest.raises(ConfigError, match="references = 1"):
        run_workload("vision", {"references": 1}, small, Run())


def test_a_fixture_that_is_not_redrawn_is_the_same_for_all_seeds():
    fixed = Fixture(title="t", data=("digits", {}), model=("mlp", {}), request={}, training={})
    assert fixed.at(3) is fixed
    assert dataclasses.replace(fixed, redrawn=True).at(3).draw == 3
