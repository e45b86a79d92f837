"""A program, run by the conformance suite: kill every method with SIGKILL, resume it, compare.

Each run is a forked process. It kills itself at one of the moments where a file is opened, written
or renamed, so that torn states are met on purpose. Prints JSON: for each method the digest of an
undisturbed run, and of the run resumed after each kill.
"""

import json
import os
import signal
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import LlamaForCausalLM

from expunge.core import files
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.core.streams import stream
from expunge.engine.tasks.causal_lm import CausalLM, Template
from expunge.engine.tasks.classifier import Classifier
from expunge.engine.tasks.regressor import Regressor
from expunge.engine.weights import state_digest
from expunge.forget.method import Given, apply, methods

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from tiny_llama import llama_config, word_tokenizer

KILLS = 3


def forked(function, *arguments):
    """Run a function in a process of its own; return its result, or the signal that ended it."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        with os.fdopen(write, "w") as pipe:
            json.dump(function(*arguments), pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else json.loads(answer)


def work(name, folder, die_at):
    """Apply a method; return its result's digest and the number of moments at which it might die.

    Args:
        name: The method.
        folder: Where checkpoints lie.
        die_at: The moment at which to die; -1 for never.
    """
    moments = 0

    def count(operation, path):
        nonlocal moments
        if moments == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        moments += 1

    files.fault_hook = count
    info = methods.get(name)
    worlds = {"classifier": classifier, "regressor": regressor, "causal_lm": language}
    task, make, records = next(world for kind, world in worlds.items() if kind in info.kinds)()
    count = len(records)
    forget, retain = records.take(range(count // 3)), records.take(range(count // 3, count))
    settings = {}
    if hasattr(info.config(), "schedule"):
        settings = {"schedule": {"epochs": 3, "batch_size": 4, "lr": 1e-3}}
    given = Given(task, forget, retain, fresh=make)
    result = apply(name, make(), given, Run(folder=folder, checkpoint_every=2), settings)
    return [state_digest(result.model), moments]


def classifier():
    """A small network over three classes, and random records."""
    draw = np.random.default_rng(0)
    records = Records(
        tuple(f"r{i}" for i in range(24)),
        {"x": draw.random(size=(24, 6)).astype(np.float32), "y": draw.integers(3, size=24)},
    )

    def make():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))

    return Classifier(3), make, records


def regressor():
    """The same network with one output, and random targets."""
    _, _, records = classifier()

    def make():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1))

    return Regressor(mean=(1.0,), deviation=(1.0,)), make, records


def language():
    """A Llama of two layers over twelve words, and questions that it has never seen."""
    words = [f"w{i}" for i in range(12)]
    tokenizer = word_tokenizer(words)
    records = Records(
        tuple(f"q{i}" for i in range(36)),
        {
            "question": [f"w{i % 12} w{i // 3}" for i in range(36)],
            "answer": [" ".join(words[i % 5 : i % 5 + 1 + i % 3]) for i in range(36)],
        },
    )
    template = Template(prompt="{question}", answer=" {answer}")

    def make():
        torch.manual_seed(0)
        return LlamaForCausalLM(llama_config(tokenizer))

    return CausalLM(tokenizer, template, ("w9 w9", "w8 w7 w6"), 64), make, records


def main():
    warnings.simplefilter("error")
    torch.set_num_threads(1)  # a process with threads must not be forked
    # torch imports much of itself on first use; once here saves it in every child.
    warm = nn.Parameter(torch.zeros(1))
    torch.optim.AdamW([warm]).zero_grad()
    language()[1]()
    found = {}
    for info in methods:
        with tempfile.TemporaryDirectory() as scratch:
            whole, moments = forked(work, info.name, Path(scratch) / "whole", -1)
            resumed = []
            for kill in range(min(KILLS, moments)):
                folder = Path(scratch) / f"killed-{kill}"
                at = int(stream(0, "kill", info.name, kill).integers(moments))
                ended = forked(work, info.name, folder, at)
                digest, _ = forked(work, info.name, folder, -1)
                resumed.append({"at": at, "ended": ended, "digest": digest})
        found[info.name] = {"whole": whole, "moments": moments, "resumed": resumed}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
