"""The examples of a method and of an audit, registered as a package of one's own would be."""

import importlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import expunge
from expunge.audit.audit import audits
from expunge.core.records import concatenate
from expunge.core.sets import Sets
from expunge.data.dataset import Dataset


def conformance(root, examples, tmp_path, selection):
    """Run the conformance suite in a process where a package with an entry point is installed."""
    metadata = tmp_path / "my_method-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-method\nVersion: 1.0\n")
    entry = "[expunge.methods]\nunlikelihood = my_method\n"
    (metadata / "entry_points.txt").write_text(entry)
    clean = {name: v for name, v in os.environ.items() if not name.startswith("PYTEST")}
    places = (str(tmp_path), str(examples), os.environ.get("PYTHONPATH"))
    environment = {
        **clean,
        "PYTHONPATH": os.pathsep.join(place for place in places if place),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "tests/contract", "-q", "-k", selection]
    return subprocess.run(
        [*command, "-p", "no:randomly", "-p", "no:cacheprovider"],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


@pytest.mark.parametrize(
    ("selection", "least"),
    [
        ("unlikelihood and not killed", 40),
        pytest.param("unlikelihood and killed", 1, marks=pytest.mark.slow),
    ],
)
def test_example_method_passes_the_conformance_suite(root, examples, tmp_path, selection, least):
    done = conformance(root, examples, tmp_path, selection)
    assert done.returncode == 0, done.stdout[-3000:]
    passed = next(line for line in done.stdout.splitlines() if " passed" in line)
    assert int(passed.split(" passed")[0].split()[-1]) >= least
    assert "failed" not in passed
    assert "skipped" not in passed


@pytest.fixture
def recall(examples, monkeypatch):
    """Registers the example audit for one test."""
    monkeypatch.syspath_prepend(examples)
    importlib.import_module("my_audit")
    yield
    del sys.modules["my_audit"]
    del audits._parts["recall"]


def first_choices(world, records):
    """Count the records whose every target is the model's first choice, one record at a time."""
    count = 0
    for row in range(len(records)):
        batch = world.task.batch(records, [row])
        with torch.no_grad():
            predictions = world.task.predict(world.model, batch)
        count += bool((predictions.logits_NV.argmax(1) == predictions.targets_N).all())
    return count


def audited(world, kind, forget, settings, **given):
    retain = world.retain
    ids = Sets(forget=forget.ids, retain=retain.ids)
    data = Dataset(kind, concatenate([forget, retain]), facts={"num_classes": 10})
    part = {"name": "recall", **settings}
    (finding,) = expunge.audit(world.model, data, ids, audits=[part], quiet=True, **given)
    return finding


@pytest.mark.usefixtures("recall")
def test_example_audit_on_a_classifier(digits_world):
    flipped = digits_world.forget.take(range(20))
    wrong = np.array([(label + 1) % 10 for label in flipped["y"][:5]])
    flipped = flipped.replace(y=np.concatenate([wrong, flipped["y"][5:]]))
    finding = audited(digits_world, "classifier", flipped, {"max_recall": 0.1})
    assert finding.n == 20
    assert finding.value == first_choices(digits_world, flipped) / 20
    assert 0.5 <= finding.value <= 0.75
    assert finding.interval.low < finding.value < finding.interval.high
    assert finding.verdict == "fail"


@pytest.mark.usefixtures("recall")
def test_example_audit_on_a_language_model(questions_world):
    forget = questions_world.forget
    answers = [*forget["answer"][:2], *(f"{a} lima" for a in forget["answer"][2:])]
    forget = forget.replace(answer=answers)
    finding = audited(
        questions_world,
        "causal_lm",
        forget,
        {},
        tokenizer=questions_world.task.tokenizer,
        template=questions_world.task.template,
    )
    assert finding.value == first_choices(questions_world, forget) / len(forget)
    assert 0 < finding.value < 1
    assert finding.verdict == "not_applicable"
