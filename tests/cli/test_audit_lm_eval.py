"""``expunge audit lm-eval`` on tiny models in folders and a task in a YAML file."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from harness_tasks import DOCUMENTS, hits, write_task
from refusals import refused
from tiny_llama import llama_config, word_tokenizer
from typer.testing import CliRunner

from expunge.cli.main import app
from expunge.core.finding import Finding

WORDS = " ".join(
    [*(d["question"] for d in DOCUMENTS), *(c for d in DOCUMENTS for c in d["choices"])]
)
SEEDS = {"before": 5, "after": 0, "first": 1, "second": 6}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of models by name, and the accuracy of each, computed by hand."""
    import torch
    from transformers import LlamaForCausalLM

    tokenizer = word_tokenizer(sorted(set(WORDS.split())))
    folders, shares = {}, {}
    for name, seed in SEEDS.items():
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = LlamaForCausalLM(llama_config(tokenizer))
        model.lm_head.weight.data *= 20  # so that no two choices are near
        folders[name] = tmp_path_factory.mktemp("models") / name
        model.save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
        shares[name] = np.mean(hits(model, tokenizer))
    return folders, shares


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """The folder of the task ``books``."""
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return write_task(tmp_path / "tasks")


def told(*arguments):
    result = CliRunner().invoke(
        app, ["audit", "lm-eval", *map(str, arguments)], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return result.stdout


def finding(**changed):
    whole = {"audit": "mia", "metric": "auc", "title": "AUC", "subject": "after", "n": 7}
    return Finding(**{**whole, "value": 0.25, "direction": "lower", **changed})


def write_findings(path, *findings):
    path.write_text(json.dumps([one.to_json() for one in findings]))
    return path


def test_every_model_is_compared_and_every_file_written(models, tasks, tmp_path):
    from lm_eval.utils import make_table

    folders, shares = models
    out, export = tmp_path / "new" / "findings.json", tmp_path / "results.json"
    arguments = ["--before", folders["before"], "--after", folders["after"]]
    arguments += ["--reference", folders["first"], "--reference", folders["second"]]
    arguments += ["--task", "books", "--tasks-folder", tasks, "--out", out, "--export", export]
    shown = told(*arguments)
    findings = [Finding.from_json(one) for one in json.loads(out.read_text())]
    assert [one.value for one in findings] == pytest.approx(list(shares.values()))
    assert [(one.subject, one.seed) for one in findings] == [
        ("before", None),
        ("after", None),
        ("reference", 0),
        ("reference", 1),
    ]
    after, references = shares["after"], [shares["first"], shares["second"]]
    assert findings[1].reference.gap == pytest.approx(after - np.mean(references))
    assert findings[1].reference.noise_floor == pytest.approx(max(references) - min(references))
    half = 1.959964 * np.sqrt(after * (1 - after) / (len(DOCUMENTS) - 1))
    assert shown.splitlines()[0].split("  ") == [
        "books.acc",
        f"{shares['before']:.3f} -> {after:.3f} (retrained {np.mean(references):.3f})",
        "n 5",
        f"95% {after - half:.3f} to {after + half:.3f}".replace("% -", "% \N{MINUS SIGN}"),
    ]
    rows = make_table(json.loads(export.read_text())).splitlines()[2:]
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    assert [(row[0], row[4], float(row[6])) for row in cells] == [
        (f"expunge_lm_eval_{name}", "books.acc", pytest.approx(shares[model], abs=1e-4))
        for name, model in (
            ("after", "after"),
            ("before", "before"),
            ("reference_seed0", "first"),
            ("reference_seed1", "second"),
        )
    ]
    first = out.read_bytes(), export.read_bytes()
    assert told(*arguments) == shown
    assert (out.read_bytes(), export.read_bytes()) == first


def test_one_model_alone_on_the_first_documents(models, tasks, tmp_path):
    folders, _ = models
    write_task(tasks, "more", fewshot_split="test")
    asked = ["--task", "books", "--task", "more", "--tasks-folder", tasks]
    out = tmp_path / "findings.json"
    shown = told("--after", folders["after"], *asked, "--limit", 2, "--few-shot", 1, "--out", out)
    lines = [line.split() for line in shown.splitlines() if not line.startswith("note: ")]
    assert [line[0] for line in lines] == ["books.acc", "more.acc"]
    assert all(line[2:4] == ["n", "2"] for line in lines)
    assert "->" not in shown
    assert "retrained" not in shown
    found = [Finding.from_json(one) for one in json.loads(out.read_text())]
    assert all(one.title.endswith("1 example)") for one in found)
    notes = [line for line in shown.splitlines() if line.startswith("note: ")]
    assert notes == [f"note: {note}" for note in dict.fromkeys(one.note for one in found) if note]


def test_findings_of_a_run_are_exported_alone(tmp_path):
    from lm_eval.utils import make_table

    found = write_findings(tmp_path / "findings.json", finding(), finding(metric="f1", value=None))
    export = tmp_path / "new" / "results.json"
    assert told("--findings", found, "--export", export) == f"{export}\n"
    results = json.loads(export.read_text())
    rows = [row.split("|") for row in make_table(results).splitlines()[2:]]
    assert [[row[i].strip() for i in (1, 5, 7)] for row in rows] == [
        ["expunge_mia_after", "auc", "0.25"],
        ["", "f1", "N/A"],
    ]
    kept = results["configs"]["expunge_mia_after"]["metadata"]["findings"]
    assert [Finding.from_json(one) for one in kept] == [finding(), finding(metric="f1", value=None)]


def test_notes_and_names_of_tasks_are_cleaned():
    from expunge.cli.lm_eval import _lines

    odd = dataclasses.replace(finding(), metric="a\x1b[2J", note="one\x07\nnote: two")
    first, last = _lines([odd])
    assert first.startswith("a[U+001B][2J  0.25")
    assert last == "note: one[U+0007] note: two"


def test_an_export_needs_no_torch(tmp_path):
    found = write_findings(tmp_path / "findings.json", finding())
    arguments = ["audit", "lm-eval", "--findings", str(found), "--export", str(tmp_path / "r.json")]
    code = (
        "import sys\n"
        "from expunge.cli.main import app\n"
        f"app({arguments!r}, standalone_mode=False)\n"
        "print([name for name in ('torch', 'lm_eval') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_unknown_tasks_and_wrong_settings_end_with_one_message(
    models, tasks, tmp_path, monkeypatch, capsys
):
    def said(*more):
        arguments = ["audit", "lm-eval", "--after", models[0]["after"], "--task", "books"]
        return refused(monkeypatch, capsys, *arguments, *more)

    folder = ["--tasks-folder", tasks]
    assert "no task 'boks'; did you mean 'books'" in said(*folder, "--task", "boks")
    assert "is no folder of YAML tasks" in said("--tasks-folder", tmp_path / "absent")
    assert "limit = 0" in said(*folder, "--limit", 0)
    assert "num_fewshot = -1" in said(*folder, "--few-shot", -1)
    assert "device = 'moon' is not usable" in said(*folder, "--device", "moon")
    (tasks / "documents.json").unlink()
    assert "data of 'books' are not on this machine" in said(*folder)


@pytest.mark.parametrize("role", ["--before", "--after", "--reference"])
def test_a_model_that_is_absent_ends_with_one_message(
    models, tasks, tmp_path, monkeypatch, capsys, role
):
    absent, out = tmp_path / "absent", tmp_path / "findings.json"
    arguments = ["--task", "books", "--tasks-folder", tasks, "--out", out, role, absent]
    if role != "--after":
        arguments += ["--after", models[0]["after"]]
    message = refused(monkeypatch, capsys, "audit", "lm-eval", *arguments)
    assert f"{absent} holds no config.json" in message
    assert not out.exists()


def test_a_missing_library_is_told_before_models_are_loaded(tasks, monkeypatch, capsys):
    for name in ("lm_eval", "lm_eval.tasks"):
        monkeypatch.setitem(sys.modules, name, None)
    arguments = ["--after", "/absent", "--task", "books", "--tasks-folder", tasks]
    message = refused(monkeypatch, capsys, "audit", "lm-eval", *arguments)
    assert "pip install 'expunge[lm-eval]'" in message


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give --after MODEL and --task NAME, or --findings FILE and --export FILE"),
        (["--after", "m"], "give --after MODEL and --task NAME"),
        (["--task", "t"], "give --after MODEL and --task NAME"),
        (["--findings", "f.json"], "--findings FILE goes with --export FILE alone"),
        (
            ["--findings", "f", "--export", "e", "--after", "m", "--task", "t", "--limit", "0"],
            "leave out --after, --task, --limit",
        ),
        (["--findings", "f.json", "--export", "e.json"], "cannot read f.json"),
        (["--findings", "f.json", "--export", "./f.json"], "are the same file"),
        (["--after", "m", "--out", "x", "--export", "y/../x"], "are the same file"),
        (["--after", "m", "--out", "."], "--out . is a folder"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(
    tmp_path, monkeypatch, capsys, arguments, said
):
    monkeypatch.chdir(tmp_path)
    assert said in refused(monkeypatch, capsys, "audit", "lm-eval", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_files_that_hold_no_findings_are_refused(tmp_path, monkeypatch, capsys):
    found = tmp_path / "findings.json"
    arguments = ["audit", "lm-eval", "--findings", found, "--export", tmp_path / "results.json"]
    found.write_text('{"findings": []}')
    assert "holds no findings" in refused(monkeypatch, capsys, *arguments)
    write_findings(found, finding(), finding())
    assert "two findings are expunge_mia_after.auc" in refused(monkeypatch, capsys, *arguments)
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize("arguments", [["lm-eval", "--limit", "few"], ["lm-eval", "--nonsense"]])
def test_wrong_usage_names_the_command(arguments):
    result = CliRunner().invoke(app, ["audit", *arguments], prog_name="expunge")
    assert result.exit_code == 2
    assert "Usage: expunge audit lm-eval [OPTIONS]" in result.output


def test_the_help_of_audit_names_the_command():
    runner = CliRunner()
    shown = runner.invoke(app, ["audit", "--help"], prog_name="expunge", terminal_width=200).stdout
    assert "expunge audit lm-eval" in shown
    shown = runner.invoke(app, ["audit", "lm-eval", "--help"], prog_name="expunge").stdout
    assert shown.startswith("Usage: expunge audit lm-eval [OPTIONS]")
