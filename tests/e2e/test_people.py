"""The main job on a language model: examples, purge, and no other trace of forgotten text."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
from small_recipes import PEOPLE
from typer.testing import CliRunner

from expunge.cli.main import app
from expunge.data.source import load_source


def forgotten_texts(folder):
    """Return every four words in a row of the records to forget (shorter texts whole)."""
    settings = {k: v for k, v in PEOPLE["data"].items() if k != "name"}
    train = load_source("people", settings, 0).train
    records = train.select(json.loads((folder / "sets.json").read_text())["forget"])
    texts = set()
    for column in records.columns.values():
        for value in column:
            values = value if isinstance(value, list) else [value]
            for words in (text.split() for text in values if isinstance(text, str)):
                windows = range(max(1, len(words) - 3))
                texts |= {" ".join(words[start : start + 4]) for start in windows}
    return {text for text in texts if len(text) > 3}


def content(path):
    """Return the bytes of a file, and for a table what its columns hold."""
    raw = path.read_bytes()
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        raw += repr(table.schema.metadata).encode() + json.dumps(table.to_pydict()).encode()
    return raw


def traces(folder):
    """Return the files that hold a forgotten text, plain or escaped."""
    texts = forgotten_texts(folder)
    assert len(texts) >= 20
    needles = {form for t in texts for form in (t.encode(), json.dumps(t)[1:-1].encode())}
    found = set()
    for path in folder.rglob("*"):
        if path.is_file():
            held = content(path)
            if any(needle in held for needle in needles):
                found.add(path.relative_to(folder).as_posix())
    return found


def test_only_the_page_of_examples_holds_forgotten_text(finished_people):
    assert traces(finished_people) == {"examples.html"}


def test_purge_removes_the_page_and_the_link_to_it(finished_people, tmp_path):
    folder = shutil.copytree(finished_people, tmp_path / "run")
    assert "examples.html" in (folder / "report.html").read_text()
    result = CliRunner().invoke(app, ["purge", str(folder)], catch_exceptions=False)
    assert result.stdout.strip() == f"removed {folder / 'examples.html'}"
    assert traces(folder) == set()
    assert "examples.html" not in (folder / "report.html").read_text()
    again = CliRunner().invoke(app, ["purge", str(folder)], catch_exceptions=False)
    assert again.stdout.strip() == f"{folder} holds no text of records"


def test_both_audits_speak_about_every_model(finished_people):
    findings = json.loads((finished_people / "findings.json").read_text())
    for audit in ("tofu", "mia"):
        subjects = {one["subject"] for one in findings if one["audit"] == audit}
        assert subjects == {"before", "after", "reference"}
    metrics = {one["metric"] for one in findings}
    assert {"forget_quality", "model_utility", "truth_ratio", "auc"} <= metrics


@pytest.mark.parametrize("subject", ["before", "after"])
def test_models_open_in_transformers(subject, finished_people):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = finished_people / "models" / subject
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = model(**tokenizer("Who?", return_tensors="pt")).logits
    assert logits.shape == (1, 4, len(tokenizer))
    assert torch.isfinite(logits).all()
