import numpy as np
import pytest
import torch

from expunge.core.errors import ConfigError, DataError
from expunge.core.records import Records
from expunge.data.arrays import from_arrays
from expunge.data.dataset import Dataset
from expunge.data.source import load_source
from expunge.engine.weights import state_digest
from expunge.models.source import Loaded, load_model_source, model_sources

SETTINGS = {
    "mlp": {"hidden": [5]},
    "cnn": {"channels": [3], "hidden": 4},
    "resnet": {"widths": [4, 6], "blocks": 1},
    "tiny_gpt": {},
}
DRAW = np.random.default_rng(0)
PICTURES = from_arrays(DRAW.normal(2.0, 3.0, (20, 1, 8, 8)), [0, 1, 2, 0] * 5)


@pytest.fixture(scope="module")
def countries() -> Dataset:
    return load_source("country_facts", {}, 0)


def make(name: str, countries: Dataset, seed: int = 0) -> Loaded:
    data = countries if name == "tiny_gpt" else PICTURES
    return load_model_source(name, SETTINGS[name], data, seed)


def test_every_model_is_found_and_described() -> None:
    assert model_sources.names() == [
        "cnn",
        "mlp",
        "resnet",
        "smollm2",
        "tiny_gpt",
        "transformers",
        "vit",
    ]
    kinds = {"causal_lm", "classifier", "regressor"}
    assert all(info.title and info.kinds and info.kinds <= kinds for info in model_sources)


@pytest.mark.parametrize("name", SETTINGS)
def test_fresh_weights_are_a_function_of_the_seed_alone(name: str, countries: Dataset) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = make(name, countries)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert state_digest(first.model) == state_digest(make(name, countries).model)
    assert state_digest(first.model) != state_digest(make(name, countries, seed=1).model)
    assert not first.pretrained
    assert not first.model.training


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet"])
def test_classifiers_map_pictures_to_logits(name: str, countries: Dataset) -> None:
    loaded = make(name, countries)
    batch = loaded.task.batch(PICTURES.train, [0, 3])
    assert loaded.task.predict(loaded.model, batch).logits_NV.shape == (2, 3)


def test_mlp_standardises_by_the_training_data() -> None:
    loaded = load_model_source("mlp", {"hidden": [4], "normalize": True}, PICTURES, 0)
    x = torch.as_tensor(PICTURES.train["x"])
    seen = loaded.model[:2](x)
    torch.testing.assert_close(seen.mean(dim=0), torch.zeros(64), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.std(dim=0, correction=0), torch.ones(64))


def test_an_input_that_never_varies_stays_finite() -> None:
    data = from_arrays([[1.0, 5.0], [2.0, 5.0]], [0, 1])
    loaded = load_model_source("mlp", {"normalize": True}, data, 0)
    assert torch.isfinite(loaded.model(torch.tensor([[1.0, 5.0]]))).all()


def test_cnn_refuses_what_is_no_picture_or_too_small() -> None:
    with pytest.raises(DataError, match=r"inputs of shape \[2\] do not fit"):
        load_model_source("cnn", {}, from_arrays([[1.0, 2.0], [0.0, 1.0]], [0, 1]), 0)
    with pytest.raises(DataError, match="at least 16 x 16 pixels"):
        load_model_source("cnn", {"channels": [2, 2, 2, 2]}, PICTURES, 0)


def test_a_model_of_another_kind_is_refused_with_those_that_fit(countries: Dataset) -> None:
    with pytest.raises(ConfigError, match=r"is a classifier.*smollm2, tiny_gpt, transformers"):
        load_model_source("mlp", {}, countries, 0)


def test_tiny_gpt_has_the_recipe_size(countries: Dataset) -> None:
    loaded = make("tiny_gpt", countries)
    # 40 characters, three attributes, unknown, separator, end.
    assert len(loaded.tokenizer) == 46
    assert sum(p.numel() for p in loaded.model.parameters()) == 107_136


def test_tiny_gpt_reads_attribute_tokens_and_characters(countries: Dataset) -> None:
    loaded = make("tiny_gpt", countries)
    rows = range(len(countries.train))
    batch = loaded.task.batch(countries.train, rows)
    assert loaded.tokenizer.unk_token_id not in batch.inputs["input_ids"]
    record = countries.train.select(["fact-00000"])  # question <capital>rwanda, answer kigali
    ids = loaded.task.batch(record, [0]).inputs["input_ids"][0].tolist()
    assert loaded.tokenizer.convert_ids_to_tokens(ids) == [
        "<capital>", *"rwanda", "<sep>", *"kigali", "<eos>"
    ]  # fmt: skip
    assert loaded.tokenizer.decode(ids, skip_special_tokens=True) == "rwandakigali"
    assert loaded.task.num_targets(record) == [7]
    assert loaded.task.neutral(record, 0, 0)["answer"] == ["i don't know that"]


def test_tiny_gpt_takes_its_characters_from_plain_documents() -> None:
    train = Records(("a", "b"), {"text": ["Hello\nyou", "é!"]})
    loaded = load_model_source("tiny_gpt", {"context": 16}, Dataset("causal_lm", train), 0)
    ids = loaded.task.batch(train, [0]).inputs["input_ids"][0]
    assert loaded.tokenizer.decode(ids, skip_special_tokens=True) == "Hello\nyou"
    assert len(loaded.tokenizer) == 3 + len(set("Hello\nyoué!"))
    unknown = Records(("c",), {"text": ["xé"]})
    assert (
        loaded.task.batch(unknown, [0]).inputs["input_ids"][0, 0] == loaded.tokenizer.unk_token_id
    )


def test_tiny_gpt_heads_must_divide_the_width(countries: Dataset) -> None:
    with pytest.raises(ConfigError, match="heads = 3 does not divide width = 64"):
        load_model_source("tiny_gpt", {"heads": 3}, countries, 0)
