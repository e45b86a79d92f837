"""A program that several processes run together, and that one process runs alone: small loops.

``accelerated.py FOLDER CASE...`` writes the weights of each case, and what was told about it, into
the folder. Most loops are in double precision, so that two ways of adding agree to 1e-10.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

import expunge
from expunge.core.errors import ExpungeError, Interrupted
from expunge.core.records import Records, concatenate
from expunge.core.run import Budget, Run
from expunge.engine.guard import Guard, GuardSettings
from expunge.engine.loop import Stream, Term, fit
from expunge.engine.masks.mask import Mask
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Lora, Scope
from expunge.engine.tasks.causal_lm import CausalLM, Template
from expunge.engine.weights import save_tensors
from expunge.engine.workers import workers
from expunge.forget.method import Given, apply, methods
from expunge.train.supervised import likelihood

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from tiny_llama import llama_config, word_tokenizer

SCHEDULE = {"epochs": 2, "batch_size": 4, "lr": 1e-3, "clip_norm": 1.0}
WORDS = [f"w{i}" for i in range(12)]


def classifier(**settings):
    """Forget through the Python interface: a method, its scope, a guard and the schedule."""
    draw = np.random.default_rng(0)
    data = expunge.from_arrays(draw.normal(size=(30, 6)), draw.integers(3, size=30))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    schedule = {**SCHEDULE, **settings.pop("schedule", {})}
    outcome = expunge.forget(
        model, data, range(11), settings={**settings, "schedule": schedule}, method="grad_diff"
    )
    return outcome.model, outcome.history


def language():
    """A Llama of two layers, its task, and questions with answers of unequal length."""
    from transformers import LlamaForCausalLM

    tokenizer = word_tokenizer(WORDS)
    records = Records(
        tuple(f"q{i}" for i in range(18)),
        {
            "question": [f"w{i % 12} w{i // 3}" for i in range(18)],
            "answer": [" ".join(WORDS[i % 5 : i % 5 + 1 + i % 4]) for i in range(18)],
        },
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(llama_config(tokenizer)).double()
    task = CausalLM(tokenizer, Template(prompt="{question}", answer=" {answer}"), (), 64)
    return task, model, records.take(range(7)), records.take(range(7, 18))


def llama(run=None, *, scope=None, bound=None, term=None, single=False, ascent=0.5, **changes):
    """Ascend on seven questions and learn eleven."""
    task, model, forget, retain = language()
    if single:
        model = model.float()
    streams = {"forget": Stream(forget), "retain": Stream(retain)}
    terms = [term or likelihood(task, "forget", -ascent), likelihood(task, "retain")]
    guard = None if bound is None else Guard.of(GuardSettings(max_increase=bound), retain, 0)
    schedule = Schedule(**{**SCHEDULE, **changes})
    history = fit(model, task, streams, terms, schedule, run or Run(), scope=scope, guard=guard)
    return model, history


def resumed(folder, **changes):
    """Spend the budget twice, then go on to the end."""
    own = folder / "checkpoints" if workers().main else None
    for steps in (1, 3):
        try:
            llama(Run(folder=own, budget=Budget(max_steps=steps)), **changes)
        except Interrupted:
            continue
        raise AssertionError("the budget was not kept")
    return llama(Run(folder=own), **changes)


def cancelled(folder):
    """Cancel the last process only; all stop at the same step, and go on later."""
    task, *_ = language()
    run = Run(folder=folder / "cancelled" if workers().main else None)
    calls = []

    def loss(model, batch):
        calls.append(batch)
        if len(calls) == 2 and workers().rank == workers().size - 1:
            run.cancel()
        return task.predict(model, batch).nll_B()

    term = Term("forget", loss, -0.5, "target")
    try:
        llama(run, term=term)
    except Interrupted:
        return llama(Run(folder=run.folder if workers().main else None), term=term)
    raise AssertionError("nobody stopped")


def told(function, **changes):
    """Return the message of the error that a loop ends with."""
    try:
        function(**changes)
    except ExpungeError as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError("no error")


def unequal(**changes):
    return llama(lr=1e-3 * (1 + workers().rank), **changes)


def exploding():
    task, *_ = language()

    def loss(model, batch):
        value = task.predict(model, batch).nll_B()
        return value * float("nan") if "q3" in batch.ids else value

    return llama(term=Term("forget", loss))


def method(name):
    """Apply a method with its own settings to a model in single precision."""
    task, model, *_ = language()
    records = concatenate(language()[2:])
    settings = {}
    if hasattr(methods.get(name).config(), "schedule"):
        schedule = {"epochs": 1, "batch_size": 3, "lr": 1e-3, "optimizer": "sgd"}
        settings = {"schedule": schedule}
    given = Given(
        CausalLM(task.tokenizer, task.template, ("w9 w9", "w8 w7 w6"), 64),
        records.take(range(12)),
        records.take(range(12, 18)),
        fresh=lambda: language()[1].float(),
    )
    result = apply(name, model.float(), given, Run(), settings)
    return result.model, result.history


LORA = Scope(lora=Lora(rank=2))
CASES = {
    "classifier": lambda folder: classifier(schedule={"batch_size": 7}),
    "mask": lambda folder: classifier(
        scope={"mask": {"fraction": 0.3}},
        schedule={"batch_size": 5, "micro_batch": 2, "optimizer": "sgd", "order": "mixed"},
    ),
    "llama": lambda folder: llama(batch_size=5, micro_batch=1),
    "llama sequential": lambda folder: llama(batch_size=3, order="sequential", decay="linear"),
    "llama one by one": lambda folder: llama(batch_size=1, epochs=1, bound=10.0),
    "llama single precision": lambda folder: llama(
        batch_size=3, single=True, optimizer="sgd", weight_decay=0.0
    ),
    "bfloat16": lambda folder: llama(single=True, optimizer="sgd", precision="bfloat16", lr=1e-2),
    "lora": lambda folder: llama(scope=LORA, batch_size=3, lr=1e-2, gradient_checkpointing=True),
    "last layer": lambda folder: llama(scope=Scope(last_layers=1), batch_size=3),
    "collapse": lambda folder: llama(
        Run(checkpoint_every=2), epochs=4, ascent=10.0, lr=3e-3, bound=0.2, clip_norm=None
    ),
    "resumed": lambda folder: resumed(folder),
    "cancelled": cancelled,
    **{
        f"method {info.name}": lambda folder, name=info.name: method(name)
        for info in methods
        if "causal_lm" in info.kinds
    },
}
ERRORS = {
    "exploding": exploding,
    "unequal": unequal,
    "masked": lambda: llama(scope=Scope(mask=Mask(fraction=0.5))),
    "device": lambda: llama(Run(device="cpu:0")),
}


def main(folder, names):
    for name in names:
        if name in ERRORS:
            found = told(ERRORS[name])
            (folder / f"{name}.{workers().rank}.txt").write_text(found)
            continue
        model, history = CASES[name](folder)
        where = folder / f"{name}.{workers().rank}"
        save_tensors(model.state_dict(), where.with_name(where.name + ".safetensors"))
        where.with_name(where.name + ".json").write_text(json.dumps(history.to_json()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
