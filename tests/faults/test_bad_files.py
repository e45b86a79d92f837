"""Model folders and record files that cannot be used: one message, exit code 2."""

import json
import pickle
import shutil

import pytest
from command_line import Command
from refusals import refused

RECORDS = [
    {"question": "who rules mars?", "answer": "nobody"},
    {"question": "who rules io?", "answer": "the volcano"},
]


@pytest.fixture
def model(make_llama, tmp_path):
    """A folder that transformers wrote."""
    task, fresh = make_llama
    fresh().save_pretrained(tmp_path / "model")
    task.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def refuse(tmp_path, monkeypatch, capsys):
    """Call ``expunge forget``, check that it refuses and writes nothing, and return why."""

    def call(model, forget, *more):
        out = tmp_path / "run"
        arguments = ["--model", model, "--forget", forget, "--out", out, *more]
        message = refused(monkeypatch, capsys, "forget", *arguments)
        assert not out.exists()
        return message

    return call


@pytest.fixture
def records(tmp_path):
    return lines(tmp_path / "forget.jsonl", RECORDS)


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def change_weights(model, change):
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    change(weights)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def test_absent_model_folder(refuse, records, tmp_path):
    assert "holds no config.json" in refuse(tmp_path / "absent", records)


def test_folder_without_weights(refuse, records, model):
    (model / "model.safetensors").unlink()
    assert "holds no .safetensors file" in refuse(model, records)


def test_pickled_weights_are_never_opened(refuse, records, model, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    assert "pickled weights" in refuse(model, records)
    assert not (tmp_path / "exploded").exists()


def test_a_pickle_under_the_name_of_safetensors(refuse, records, model):
    (model / "model.safetensors").write_bytes(pickle.dumps({"weights": [1.0] * 100}))
    assert "is not whole" in refuse(model, records)


def test_truncated_weights(refuse, records, model):
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "is not whole" in refuse(model, records)


def test_weights_that_are_not_numbers(refuse, records, model):
    def spoil(weights):
        weights["model.norm.weight"][0] = float("nan")

    change_weights(model, spoil)
    assert "1 tensors hold NaN or infinity (model.norm.weight)" in refuse(model, records)


def test_weights_of_another_shape(refuse, records, model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    assert "do not fit config.json" in refuse(model, records)


def test_a_missing_tensor(refuse, records, model):
    change_weights(model, lambda weights: weights.pop("model.norm.weight"))
    assert "1 tensors are missing" in refuse(model, records)


def test_a_config_that_is_not_json(refuse, records, model):
    (model / "config.json").write_text("{")
    assert "cannot load the model" in refuse(model, records)


def test_a_folder_without_tokenizer(refuse, records, model):
    for file in model.glob("tokenizer*"):
        file.unlink()
    assert "cannot load the model" in refuse(model, records)


def test_a_file_in_the_place_of_the_model(refuse, records):
    assert "holds no config.json" in refuse(records, records)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "holds no records"),
        ('{"question": "who?", "answer": "no', "line 1"),
        ('["who?", "nobody"]\n', "line 1"),
        ('{"question": "who?"}\n', "has no column 'answer'"),
        (
            '{"question": "who?", "answer": ""}\n',
            "is empty or no text in 1 records",
        ),
        ('{"question": "who?", "answer": 3}\n', "is empty or no text in 1 records"),
    ],
)
def test_records_that_cannot_be_used(content, expected, refuse, model, tmp_path):
    (tmp_path / "forget.jsonl").write_text(content)
    assert expected in refuse(model, tmp_path / "forget.jsonl")


def test_absent_records(refuse, model, tmp_path):
    assert "cannot read" in refuse(model, tmp_path / "absent.jsonl")


def test_records_of_an_unknown_format(refuse, model, tmp_path):
    (tmp_path / "forget.xls").write_text("x")
    assert "files of type '.xls' are not read" in refuse(model, tmp_path / "forget.xls")


def test_a_method_that_needs_what_is_absent(refuse, records, model):
    assert "it needs retain records and there are none" in refuse(model, records)


def test_an_id_to_forget_and_to_retain(refuse, model, tmp_path):
    forget = lines(tmp_path / "forget.jsonl", [{"id": "a", **RECORDS[0]}])
    retain = lines(tmp_path / "retain.jsonl", [{"id": "a", **RECORDS[1]}])
    assert "1 ids stand twice (a)" in refuse(model, forget, "--retain", retain)


def test_a_text_to_forget_and_to_retain(refuse, model, tmp_path):
    forget = lines(tmp_path / "forget.jsonl", RECORDS[:2])
    retain = lines(tmp_path / "retain.jsonl", RECORDS[1:])
    assert "share 1 records with the same text" in refuse(model, forget, "--retain", retain)


def test_a_record_trained_on_and_held_out(model, tmp_path, monkeypatch, capsys):
    one = lines(tmp_path / "forget.jsonl", [{"id": "a", **RECORDS[0]}])
    other = shutil.copy(one, tmp_path / "holdout.jsonl")
    message = refused(
        monkeypatch, capsys, "audit", "--before", model, "--after", model,
        "--forget", one, "--holdout", other, "--out", tmp_path / "run",
    )  # fmt: skip
    assert "1 ids are in train and in holdout (a)" in message


def test_a_wrong_model_after_forgetting_is_found_before_scoring(
    records, model, tmp_path, monkeypatch, capsys
):
    arguments = ["--before", model, "--forget", records, "--out", tmp_path / "run"]
    absent = tmp_path / "absent"
    for wrong in (["--after", absent], ["--after", model, "--reference", absent]):
        message = refused(monkeypatch, capsys, "audit", *arguments, *wrong)
        assert "holds no config.json" in message
        assert not (tmp_path / "run").exists()


def test_no_library_adds_words_of_its_own(records, model, tmp_path):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    arguments = ["--model", model, "--forget", records, "--out", tmp_path / "run"]
    ended = Command(["forget", *arguments], tmp_path / "cache", tmp_path).wait()
    assert ended.code == 2
    assert ended.out == ""
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
