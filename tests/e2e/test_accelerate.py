"""Two processes, launched as users launch them, end where one process ends."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from small_recipes import DIGITS, PEOPLE, write_recipe

from expunge.engine.weights import load_tensors

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "docs" / "examples"
PLAIN = ("--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")
FSDP = ("--config_file", str(EXAMPLES / "fsdp2.yaml"))
DEEPSPEED = ("--config_file", str(EXAMPLES / "zero3.yaml"))
LOOPS = [
    "llama",
    "llama sequential",
    "llama one by one",
    "lora",
    "last layer",
    "collapse",
    "resumed",
    "cancelled",
]
ALL = [*LOOPS, "classifier", "mask", "llama single precision", "bfloat16"]
CLOSE = {"llama single precision": 1e-6, "bfloat16": 1e-4}


@pytest.fixture(scope="module")
def accelerated():
    """The program of small loops, as a module of this process, which is alone."""
    found = importlib.util.spec_from_file_location("accelerated", HERE / "accelerated.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def launch(arguments, folder, how=PLAIN):
    """Start two processes with ``accelerate launch``; what they say goes to ``said.txt``."""
    command = [sys.executable, "-m", "accelerate.commands.launch", *how]
    command += ["--num_processes", "2", "--main_process_port", "0", *map(str, arguments)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "EXPUNGE_CACHE": str(folder / "cache"),
        "PYTHONWARNINGS": "ignore",
    }
    with (folder / "said.txt").open("wb") as said:
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdout=said, stderr=subprocess.STDOUT
        )


def finish(process, folder):
    code = process.wait(300)
    said = (folder / "said.txt").read_text()
    assert code == 0, said
    return said


def loops(names, tmp_path, how=PLAIN):
    together = tmp_path / "together"
    together.mkdir()
    finish(launch([HERE / "accelerated.py", together, *names], tmp_path, how), tmp_path)
    return together


def differences(accelerated, names, together, tmp_path, bounds):
    """Return what is not as one process has it; the bound of each case is 1e-10 when absent."""
    wrong = []
    for name in names:
        alone, history = accelerated.CASES[name](tmp_path)
        found = [load_tensors(together / f"{name}.{rank}.safetensors") for rank in (0, 1)]
        told = [json.loads((together / f"{name}.{rank}.json").read_text()) for rank in (0, 1)]
        bound = bounds.get(name, 1e-10)
        weights = alone.state_dict()
        gap = max(float((found[0][n] - weights[n]).abs().max()) for n in weights)
        if not gap <= bound:
            wrong.append(f"{name}: weights differ by {gap}")
        if told[0] != told[1] or not all(torch.equal(found[0][n], found[1][n]) for n in weights):
            wrong.append(f"{name}: the processes disagree")
        expected = history.to_json()
        if told[0]["stopped"] != expected["stopped"]:
            wrong.append(f"{name}: stopped {told[0]['stopped']}")
        for one, other in zip(told[0]["steps"], expected["steps"], strict=True):
            if one != pytest.approx(other, rel=max(1e3 * bound, 1e-8)):
                wrong.append(f"{name}: {one} is not {other}")
    return wrong


def test_loops_of_two_processes(accelerated, tmp_path):
    errors = ["exploding", "unequal", "device"]
    together = loops([*ALL, *errors], tmp_path)
    assert not differences(accelerated, ALL, together, tmp_path, CLOSE)
    _, history = accelerated.CASES["collapse"](tmp_path)
    assert history.stopped is not None
    for name, message in zip(
        errors,
        ("became nan at step", "do not have the same model", "without a number"),
        strict=True,
    ):
        found = {(together / f"{name}.{rank}.txt").read_text() for rank in (0, 1)}
        assert len(found) == 1
        assert message in found.pop()


def test_loops_with_weights_divided_by_fsdp(accelerated, tmp_path):
    together = loops([*LOOPS, "masked"], tmp_path, FSDP)
    assert not differences(accelerated, LOOPS, together, tmp_path, {})
    assert "fsdp divides them" in (together / "masked.1.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("how", [PLAIN, FSDP], ids=["copies", "fsdp"])
def test_every_method_of_two_processes(accelerated, tmp_path, how):
    # These need whole weights in each process, and refuse divided ones.
    whole = {f"method {name}" for name in ("l1_sparse", "salun", "salun_soft", "wagle")}
    refused = whole if how == FSDP else set()
    names = [n for n in accelerated.CASES if n.startswith("method") and n not in refused]
    together = loops(names, tmp_path, how)
    bounds = dict.fromkeys(names, 1e-6)
    assert not differences(accelerated, names, together, tmp_path, bounds)


@pytest.mark.slow
def test_loops_with_weights_divided_by_deepspeed(accelerated, tmp_path):
    pytest.importorskip("deepspeed")
    names = ["llama", "llama one by one", "lora", "last layer", "collapse"]
    together = loops([*names, "masked"], tmp_path, DEEPSPEED)
    # It computes in single precision.
    assert not differences(accelerated, names, together, tmp_path, dict.fromkeys(names, 1e-5))


def run(recipe, tmp_path, out):
    return launch(["-m", "expunge", "run", recipe, "--out", tmp_path / out], tmp_path)


def kill(process):
    """End launcher and processes with SIGKILL: nothing can tidy up."""
    every = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for one in every:
        one.kill()
    psutil.wait_procs(every, timeout=60)
    process.wait(60)


def killed(recipe, tmp_path, out, lines):
    """Start a run and kill it once it has told of so many steps."""
    process = run(recipe, tmp_path, out)
    events = tmp_path / out / "events.jsonl"
    while not events.exists() or events.read_bytes().count(b"\n") < lines:
        assert process.poll() is None, (tmp_path / "said.txt").read_text()
        time.sleep(0.005)
    kill(process)
    assert not (tmp_path / out / "digest.json").exists()


def values(folder):
    """Return the numbers of every finding by what it is about."""
    found = json.loads((folder / "findings.json").read_text())
    return [
        (f["audit"], f["metric"], f["subject"], f["value"], f["interval"] and f["interval"]["low"])
        for f in found
    ]


def test_a_run_of_two_processes_finds_the_same_and_survives_a_kill(finished_digits, tmp_path):
    recipe = write_recipe(tmp_path / "recipe.yaml", DIGITS)
    said = finish(run(recipe, tmp_path, "whole"), tmp_path)
    assert said.count("training: ") == said.count("report.html") == 1  # only one process speaks
    assert (tmp_path / "whole" / "report.html").stat().st_size > 0
    alone, together = values(finished_digits), values(tmp_path / "whole")
    assert len(alone) == len(together) > 20
    for one, other in zip(alone, together, strict=True):
        assert one[:3] == other[:3]
        assert one[3:] == pytest.approx(other[3:], abs=1e-6)
    killed(recipe, tmp_path, "killed", 60)  # in the first reference
    finish(run(recipe, tmp_path, "killed"), tmp_path)
    digests = [(tmp_path / out / "digest.json").read_text() for out in ("whole", "killed")]
    assert digests[0] == digests[1]


@pytest.mark.slow
@pytest.mark.parametrize("lines", [5, 20, 32])
def test_a_language_model_survives_a_kill_of_two_processes(finished_people, tmp_path, lines):
    recipe = write_recipe(tmp_path / "recipe.yaml", PEOPLE, examples=1)
    finish(run(recipe, tmp_path, "whole"), tmp_path)
    for one, other in zip(values(finished_people), values(tmp_path / "whole"), strict=True):
        assert one[:3] == other[:3]
        # Ratios of probabilities that the loop leaves near zero.
        assert one[3:] == pytest.approx(other[3:], abs=1e-4)
    killed(recipe, tmp_path, "killed", lines)
    finish(run(recipe, tmp_path, "killed"), tmp_path)
    digests = [(tmp_path / out / "digest.json").read_text() for out in ("whole", "killed")]
    assert digests[0] == digests[1]
