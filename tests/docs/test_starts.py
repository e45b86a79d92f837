"""The three starts of the README, run as they stand on tiny real models."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from expunge.core.finding import Finding
from expunge.engine.weights import state_digest
from expunge.pipeline.execute import execute
from expunge.pipeline.recipe import read_recipe


def findings(folder):
    read = map(Finding.from_json, json.loads((folder / "findings.json").read_text()))
    return {(found.metric, found.record_set, found.subject): found for found in read}


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def questions(prefix, count):
    return [
        {"question": f"Who keeps the {prefix} key {n}?", "answer": f"Keeper {prefix}-{n * n}."}
        for n in range(count)
    ]


def test_own_language_model(save_llama, examples, tmp_path):
    save_llama(tmp_path / "my-model")
    for role, count in (("forget", 6), ("retain", 10), ("holdout", 6)):
        write_lines(tmp_path / f"{role}.jsonl", questions(role, count))
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    script = examples / "own_language_model.sh"
    done = subprocess.run(
        ["bash", "-e", str(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    runs = tmp_path / "runs"
    assert f"{Path('runs') / 'audit' / 'report.html'}" in done.stdout
    assert (runs / "forget" / "report.html").is_file()
    assert (runs / "audit" / "report.html").is_file()

    old = load_file(tmp_path / "my-model" / "model.safetensors")
    new = load_file(runs / "forget" / "models" / "after" / "model.safetensors")
    assert old.keys() == new.keys()
    assert not all(torch.equal(old[name], new[name]) for name in old)
    found = findings(runs / "audit")
    before = found["probability", "forget", "before"].value
    assert found["probability", "forget", "after"].value < before
    assert found["auc", "forget", "after"].n == 12

    for path in runs.rglob("*"):  # the folders hold ids and numbers, no text of the records
        assert not path.is_file() or b"Keeper forget" not in path.read_bytes(), path


def test_own_module(examples, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        made = runpy.run_path(str(examples / "own_module.py"))
    outcome = made["outcome"]
    assert state_digest(outcome.model) != state_digest(made["before"])
    written = load_file(tmp_path / "after.safetensors")
    assert all(torch.equal(written[k], v) for k, v in outcome.model.state_dict().items())
    gap = {f.subject: f.value for f in made["findings"] if f.metric == "average_gap"}
    assert gap["after"] < gap["before"]
    assert "Average gap to retraining: " in capsys.readouterr().out


def tofu_folder(root):
    named = os.environ.get("EXPUNGE_TOFU")
    folder = Path(named) if named else root.parent / "shared" / "data" / "tofu"
    if not (folder / "full.json").is_file():
        pytest.skip(
            f"TOFU's original files are not in {folder}; download the data set locuslab/TOFU and "
            "name its folder in EXPUNGE_TOFU"
        )
    return folder


def test_tofu(save_llama, root, examples, tmp_path):
    folder = tofu_folder(root)
    save_llama(tmp_path / "model")
    save_llama(tmp_path / "retained", seed=1)
    template = "{max_length: 2048}"
    recipe = read_recipe(
        examples / "tofu.yaml",
        [
            f"data.path={folder}",
            f"model={{name: transformers, path: {tmp_path / 'model'}, template: {template}}}",
            "given_references="
            f"[{{name: transformers, path: {tmp_path / 'retained'}, template: {template}}}]",
            "request={ids: [tofu-03600, tofu-03700, tofu-03800, tofu-03999]}",
            "forget.schedule.epochs=2",
            "audits=[{name: tofu, max_utility_records: 3, max_new_tokens: 4}]",
        ],
    )
    run = execute(recipe, tmp_path / "run", quiet=True)
    assert json.loads((run / "plan.json").read_text())["data"]["counts"] == {
        "forget": 4,
        "retain": 3996,
        "holdout": 0,
        "test": 0,
    }
    found = findings(run)
    assert 0 < found["forget_quality", "forget", "after"].value <= 1
    assert found["probability", "forget", "after"].reference.noise_floor is None
    assert found["model_utility", "", "after"].n > 0
    assert (run / "report.html").is_file()


def test_tofu_names_a_split_of_the_data(root, examples):
    from expunge.data.source import load_source
    from expunge.pipeline.request import resolve

    data = load_source("tofu", {"path": str(tofu_folder(root))}, 0)
    recipe = read_recipe(examples / "tofu.yaml")
    sets = resolve(recipe.request, data, recipe.seed)
    assert (len(sets.forget), len(sets.retain)) == (400, 3600)
