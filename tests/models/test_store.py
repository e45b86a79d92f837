import json
from pathlib import Path

import pytest
import torch
from torch import nn

from expunge.core import files
from expunge.core.errors import (
    ConfigError,
    DataError,
    IntegrityError,
    NumericalError,
    StorageError,
    UnsupportedModelError,
)
from expunge.data.arrays import from_arrays
from expunge.data.source import load_source
from expunge.engine.tasks.classifier import Classifier
from expunge.engine.weights import load_tensors, save_tensors, state_digest
from expunge.models.source import Loaded, load_model_source
from expunge.models.store import load_saved, save_model

TABLE = from_arrays([[0.0, 1.0], [2.0, 5.0]], [0, 1])


@pytest.fixture
def mlp() -> Loaded:
    return load_model_source("mlp", {"hidden": [3], "normalize": True}, TABLE, 0)


@pytest.fixture(scope="module")
def gpt() -> Loaded:
    return load_model_source("tiny_gpt", {}, load_source("country_facts", {}, 0), 0)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_plain_module_comes_back(mlp: Loaded, tmp_path: Path) -> None:
    save_model(mlp, tmp_path / "m", {"data": "abc"})
    back = load_saved(tmp_path / "m")
    assert state_digest(back.model) == state_digest(mlp.model)
    assert back.task.fingerprint() == mlp.task.fingerprint()
    assert (back.source, back.settings, back.facts) == ("mlp", mlp.settings, mlp.facts)
    assert not back.model.training
    assert json.loads((tmp_path / "m/architecture.json").read_text())["lineage"] == {"data": "abc"}


def test_a_language_model_comes_back(gpt: Loaded, tmp_path: Path) -> None:
    save_model(gpt, tmp_path / "m")
    back = load_saved(tmp_path / "m")
    assert state_digest(back.model) == state_digest(gpt.model)
    assert back.task.fingerprint() == gpt.task.fingerprint()
    assert back.task.refusals == ("i don't know that",)


def test_a_saved_language_model_opens_with_transformers_alone(gpt: Loaded, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    save_model(gpt, tmp_path / "m")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    text = "<capital>france<sep>paris"
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    assert ids.tolist() == [gpt.tokenizer(text)["input_ids"]]
    torch.testing.assert_close(model.eval()(ids).logits, gpt.model(ids).logits, rtol=0, atol=0)


def test_the_same_model_gives_the_same_bytes_anywhere(
    gpt: Loaded, mlp: Loaded, tmp_path: Path
) -> None:
    for loaded in (gpt, mlp):
        save_model(loaded, tmp_path / "one")
        save_model(load_saved(tmp_path / "one"), tmp_path / "two")
        assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_saving_again_replaces_the_folder(mlp: Loaded, gpt: Loaded, tmp_path: Path) -> None:
    save_model(gpt, tmp_path / "m")
    save_model(mlp, tmp_path / "m")
    assert sorted(contents(tmp_path / "m")) == ["architecture.json", "model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("moment", ["open", "write", "rename"])
def test_a_failed_save_leaves_the_old_model(
    mlp: Loaded, tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(mlp, tmp_path / "m")
    before = contents(tmp_path / "m")
    nn.init.zeros_(mlp.model[-1].weight)

    def full_disk(operation: str, path: Path) -> None:
        if (operation, path) == (moment, tmp_path / "m"):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "fault_hook", full_disk)
    with pytest.raises(StorageError, match="No space left on device; free space"):
        save_model(mlp, tmp_path / "m")
    assert contents(tmp_path / "m") == before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_what_a_killed_save_left_is_no_obstacle(mlp: Loaded, tmp_path: Path) -> None:
    (tmp_path / "m.partial" / "deep").mkdir(parents=True)
    (tmp_path / "m.replaced").mkdir()
    save_model(mlp, tmp_path / "m")
    save_model(mlp, tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_bad_weights_are_refused(mlp: Loaded, tmp_path: Path) -> None:
    save_model(mlp, tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    whole = weights.read_bytes()
    # Copies: the originals are views of the file that is about to be overwritten.
    tensors = {name: tensor.clone() for name, tensor in load_tensors(weights).items()}

    weights.write_bytes(whole[:-4])
    with pytest.raises(IntegrityError, match="not a whole safetensors file"):
        load_saved(tmp_path / "m")
    torch.save(tensors, weights)
    with pytest.raises(IntegrityError, match="is a pickle"):
        load_saved(tmp_path / "m")
    save_tensors({**tensors, "2.weight": torch.full((3, 2), float("nan"))}, weights)
    with pytest.raises(NumericalError, match=r"NaN or infinity \(2\.weight\)"):
        load_saved(tmp_path / "m")
    save_tensors({**tensors, "2.weight": torch.zeros(4, 2)}, weights)
    with pytest.raises(DataError, match=r"2\.weight has shape \(4, 2\), the model \(3, 2\)"):
        load_saved(tmp_path / "m")
    weights.unlink()
    with pytest.raises(StorageError, match="there is no file"):
        load_saved(tmp_path / "m")


def test_a_torn_or_altered_architecture_is_refused(mlp: Loaded, tmp_path: Path) -> None:
    save_model(mlp, tmp_path / "m")
    note = tmp_path / "m" / "architecture.json"
    record = json.loads(note.read_text())
    note.write_text(json.dumps({**record, "settings": {"hiden": [3]}}))
    with pytest.raises(ConfigError, match="unknown setting 'hiden'"):
        load_saved(tmp_path / "m")
    del record["facts"]
    note.write_text(json.dumps(record))
    with pytest.raises(IntegrityError, match="lacks 'facts'"):
        load_saved(tmp_path / "m")
    note.write_text("{")
    with pytest.raises(IntegrityError, match="not valid JSON"):
        load_saved(tmp_path / "m")


def test_a_module_built_in_python_says_how_to_load_it(tmp_path: Path) -> None:
    own = Loaded(nn.Linear(2, 2), Classifier(2))
    save_model(own, tmp_path / "m")
    with pytest.raises(UnsupportedModelError, match="load_into"):
        load_saved(tmp_path / "m")
