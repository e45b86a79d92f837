"""``expunge forget`` and ``expunge audit`` on a transformers folder and JSON lines."""

import json

import pytest
from command_line import Command

from expunge.engine.weights import state_digest


@pytest.fixture(scope="module")
def mine(questions_world, tmp_path_factory):
    """A folder with a trained model and what it was trained on."""
    folder = tmp_path_factory.mktemp("mine")
    questions_world.model.save_pretrained(folder / "model")
    questions_world.fresh().save_pretrained(folder / "untrained")
    for name in ("model", "untrained"):
        questions_world.task.tokenizer.save_pretrained(folder / name)
    for name in ("forget", "retain"):
        records = getattr(questions_world, name)
        rows = [
            {"question": q, "answer": a}
            for q, a in zip(records["question"], records["answer"], strict=True)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)
    return folder


@pytest.fixture(scope="module")
def forgotten(mine):
    template = "model.template={prompt: '{question}', answer: ' {answer}'}"
    ended = Command(
        [
            "forget", "--model", "model", "--forget", "forget.jsonl", "--retain", "retain.jsonl",
            "--out", "forgotten", "--set", template, "--set", "machine.threads=1",
            "--set", "forget.schedule.epochs=8", "--set", "forget.schedule.batch_size=3",
            "--set", "forget.schedule.lr=3e-3", "--set", "forget.beta=0.5",
        ],
        mine / "cache",
        mine,
    ).wait()  # fmt: skip
    assert ended.code == 0, ended.err
    return mine / "forgotten"


def mean_nll(world, model, records):
    import torch

    with torch.no_grad():
        batch = world.task.batch(records, range(len(records)))
        return float(world.task.predict(model, batch).nll_B().mean())


def test_the_new_model_opens_in_transformers_and_has_forgotten(forgotten, questions_world):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    world = questions_world
    model = AutoModelForCausalLM.from_pretrained(forgotten / "models/after").eval()
    tokenizer = AutoTokenizer.from_pretrained(forgotten / "models/after")
    assert tokenizer.get_vocab() == world.task.tokenizer.get_vocab()
    digest = json.loads((forgotten / "digest.json").read_text())["outputs"]["after"]["model"]
    assert state_digest(model) == digest
    forget, retain = (
        mean_nll(world, model, records) - mean_nll(world, world.model, records)
        for records in (world.forget, world.retain)
    )
    assert forget > 1.0
    assert retain < 0.5 * forget


def test_without_audits_there_are_no_findings_and_still_a_report(forgotten):
    assert json.loads((forgotten / "findings.json").read_text()) == []
    assert (forgotten / "report.html").is_file()
    assert (forgotten / "MODEL_CARD.md").is_file()


def test_a_model_changed_elsewhere_is_audited(mine, forgotten):
    ended = Command(
        [
            "audit", "--before", "model", "--after", forgotten / "models/after",
            "--reference", "untrained", "--forget", "forget.jsonl", "--retain", "retain.jsonl",
            "--holdout", "retain-again.jsonl", "--audit", "mia", "--out", "audited",
        ],
        mine / "cache",
        mine,
    )  # fmt: skip
    assert ended.wait().code == 2  # the held-out file does not exist
    ended = Command(
        [
            "audit", "--before", "model", "--after", forgotten / "models/after",
            "--reference", "untrained", "--forget", "forget.jsonl", "--retain", "retain.jsonl",
            "--audit", "tofu", "--out", "audited", "--set", "machine.threads=1",
        ],
        mine / "cache",
        mine,
    ).wait()  # fmt: skip
    assert ended.code == 0, ended.err
    findings = json.loads((mine / "audited/findings.json").read_text())
    assert {one["subject"] for one in findings} == {"before", "after", "reference"}
    models = json.loads((mine / "audited/models.json").read_text())
    assert models["before"]["digest"] != models["after"]["digest"]
    assert models["after"]["path"] is None  # an audit writes no model
    assert (mine / "audited/report.html").is_file()
