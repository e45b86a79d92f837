"""LAF on small Fashion-MNIST: a class forgotten without labels, both steps, and each alone.

3,000 pictures of 14 x 14, an extractor of 196-256-64 with a linear output, a linear head. Class 0
is forgotten. Nothing is chosen by what is forgotten: settings are the published ones and one other.
Methods that read labels stand beside it, as does LFSSD, which reads none and trains nothing. A
control forgets random records, of which the autoencoders should say that nothing is separable.

Source: LAF (Shen et al., 2024), sections 4 and 5, at a small scale.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from output import parser, report
from torch import nn

from expunge.core.records import Records
from expunge.core.run import Run
from expunge.core.streams import stream
from expunge.data.dataset import Dataset
from expunge.data.source import load_source
from expunge.engine.representation import split
from expunge.engine.schedule import Schedule
from expunge.engine.tasks.classifier import Classifier
from expunge.forget.method import Given, apply
from expunge.train.supervised import learn

FORGOTTEN = 0
TRAINING = Schedule(epochs=30, batch_size=32, lr=1e-3, weight_decay=1e-4)
FAST = {"schedule": {"lr": 5e-4}}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "laf, as published": ("laf", {}),
    "laf, linear decoder, 10 x lr": ("laf", {"decoder": "linear", **FAST}),
    "the same, h on retain": ("laf", {"decoder": "linear", "h_data": "retain", **FAST}),
    "the same, alignment only": ("laf", {"decoder": "linear", "steps": "alignment", **FAST}),
    "the same, extractor only": ("laf", {"decoder": "linear", "steps": "extractor", **FAST}),
    "the same, and repair": ("laf", {"decoder": "linear", "repair": 2, **FAST}),
    "lfssd": ("ssd", {"label_free": True, "force": True}),
    "ssd (labels)": ("ssd", {"force": True}),
    "finetune (labels)": ("finetune", {}),
    "grad_ascent (labels)": ("grad_ascent", {}),
}
RANDOM = "random records"
TASK = Classifier(10)


class Told:
    """Keeps what a method says of separability."""

    def __init__(self) -> None:
        self.numbers: dict[str, float] = {}

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take the numbers of an event."""
        if "separability/auc" in values:
            self.numbers["auc"] = values["separability/auc"]


def network(seed: int) -> nn.Module:
    """Return the network with fresh weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(196, 256), nn.ReLU(), nn.Linear(256, 64), nn.Linear(64, 10)
        )


def trained(records: Records, seed: int) -> nn.Module:
    """Return the network trained on some records."""
    model = network(seed)
    learn(model, TASK, records, TRAINING, Run(seed))
    return model


@torch.no_grad()
def accuracy(model: nn.Module, records: Records) -> float:
    """Return the accuracy on records, in percent."""
    batch = TASK.batch(records, range(len(records)))
    logits = TASK.predict(model, batch).logits_NV
    return 100 * float((logits.argmax(1) == batch.targets_N).double().mean())


def divided(records: Records, gone: np.ndarray) -> tuple[Records, Records]:
    """Return what is kept and what is forgotten."""
    return records.take(np.flatnonzero(~gone)), records.take(np.flatnonzero(gone))


def measured(model: nn.Module, sets: tuple[Records, Records], dataset: Dataset) -> dict[str, float]:
    """Return accuracies on what is kept and forgotten, of training and of test pictures."""
    test = divided(dataset.test, np.asarray(dataset.test["y"]) == FORGOTTEN)
    pairs = zip(("train_r", "train_f", "test_r", "test_f"), (*sets, *test), strict=True)
    return {name: accuracy(model, records) for name, records in pairs}


def unlearned(
    arm: str, model: nn.Module, sets: tuple[Records, Records], seed: int
) -> tuple[nn.Module, dict[str, float]]:
    """Return the model after a method of the table, and what is known of the call."""
    name, settings = METHODS[arm]
    told, retain, forget = Told(), *sets
    started = time.process_time()
    given = Given(TASK, forget, retain, guard=None)
    result = apply(name, model, given, Run(seed, trackers=(told,)), copy.deepcopy(settings)).model
    head = split(model).head
    pairs = zip(
        model.get_submodule(head).parameters(),
        result.get_submodule(head).parameters(),
        strict=True,
    )
    return result, {
        **told.numbers,
        "head_moved": float(not all(torch.equal(a, b) for a, b in pairs)),
        "seconds": time.process_time() - started,
    }


def trial(seed: int) -> dict[str, dict[str, float]]:
    """Return the numbers of every arm in the world of one seed."""
    dataset = load_source(
        "fashion_mnist", {"num_train": 3000, "num_holdout": 0, "num_test": 2000, "pool": 2}, seed
    )
    sets = divided(dataset.train, np.asarray(dataset.train["y"]) == FORGOTTEN)
    original = trained(dataset.train, seed)
    found = {
        "original": measured(original, sets, dataset),
        "retrained": measured(trained(sets[0], seed + 1), sets, dataset),
    }
    for arm in METHODS:
        model, known = unlearned(arm, original, sets, seed)
        found[arm] = {**measured(model, sets, dataset), **known}
    drawn = np.zeros(len(dataset.train), dtype=bool)
    drawn[stream(seed, "random records").permutation(len(drawn))[: len(sets[1])]] = True
    model, known = unlearned("laf, as published", original, divided(dataset.train, drawn), seed)
    kept, gone = divided(dataset.train, drawn)
    found[RANDOM] = {
        **known,
        "train_r": accuracy(model, kept),
        "train_f": accuracy(model, gone),
        "original_train_f": accuracy(original, gone),
        "test": accuracy(model, dataset.test),
        "original_test": accuracy(original, dataset.test),
    }
    return found


def main() -> None:
    """Report means over seeds."""
    made = parser("What LAF forgets, and each of its steps alone.")
    made.add_argument("--seeds", type=int, default=2, help="seeds to report on")
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    trials = [trial(seed) for seed in range(options.seeds)]
    means = {
        arm: {key: statistics.fmean(t[arm][key] for t in trials) for key in numbers}
        for arm, numbers in trials[0].items()
    }
    columns = ("train_r", "train_f", "test_r", "test_f", "auc", "head_moved", "seconds")
    rows = [
        {"arm": arm, **{c: f"{numbers[c]:.2f}" if c in numbers else "" for c in columns}}
        for arm, numbers in means.items()
    ]
    title = f"LAF, class {FORGOTTEN} of Fashion-MNIST, means over {options.seeds} seeds"
    report(title, rows, {"means": means, "trials": trials}, options.json)
    print(RANDOM, {key: round(value, 2) for key, value in means[RANDOM].items()})


if __name__ == "__main__":
    main()
