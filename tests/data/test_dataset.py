import pytest

from expunge.core.errors import ConfigError, DataError
from expunge.core.records import Records
from expunge.data.dataset import Dataset, number_ids
from expunge.data.source import load_source, sources

TRAIN = Records(("a", "b"), {"question": ["?", "?"], "answer": ["1", "2"]})


def test_roles_are_found_by_name_and_unknown_ones_named() -> None:
    probe = Records(("p",), {"question": ["?"], "answer": ["3"]})
    data = Dataset("causal_lm", TRAIN, probes={"world_facts": probe})
    assert data.records("train") is TRAIN
    assert data.records("world_facts") is probe
    assert len(data.records("holdout")) == 0
    with pytest.raises(DataError, match="did you mean 'world_facts'"):
        data.records("world_fact")


def test_held_out_records_are_never_trained_on() -> None:
    with pytest.raises(DataError, match=r"1 ids are in train and in holdout \(b\)"):
        Dataset("causal_lm", TRAIN, holdout=TRAIN.take([1]))


def test_a_split_names_training_records_only() -> None:
    with pytest.raises(DataError, match=r"split 'forget' names 1 ids .* \(zzz\)"):
        Dataset("causal_lm", TRAIN, splits={"forget": ("a", "zzz")})


def test_digest_depends_on_contents_not_on_order() -> None:
    data = Dataset("causal_lm", TRAIN, splits={"s": ("a", "b")})
    swapped = Dataset("causal_lm", TRAIN.take([1, 0]), splits={"s": ("b", "a")})
    assert data.digest() == swapped.digest()
    changed = Dataset("causal_lm", TRAIN.replace(answer=["1", "3"]), splits={"s": ("a", "b")})
    assert data.digest() != changed.digest()
    assert data.digest() != Dataset("causal_lm", TRAIN, splits={"s": ("a",)}).digest()


def test_ids_are_neutral() -> None:
    assert number_ids("train", 2) == ("train-00000", "train-00001")


def test_every_source_is_found_and_described() -> None:
    assert sources.names() == [
        "cancer", "country_facts", "diamonds", "digits", "fashion_mnist", "files", "images",
        "mnist", "people", "rotated_fashion", "tofu",
    ]  # fmt: skip
    kinds = {"any", "causal_lm", "classifier", "regressor"}
    assert all(info.title and info.kind in kinds for info in sources)


def test_a_wrong_setting_is_named_with_its_source() -> None:
    with pytest.raises(ConfigError, match=r"data\.digits: unknown setting 'num_hold'"):
        load_source("digits", {"num_hold": 3}, 0)
    with pytest.raises(ConfigError, match="did you mean 'digits'"):
        load_source("digit", {}, 0)
