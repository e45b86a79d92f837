"""SSD on one class of Fashion-MNIST: what goes, what else goes, and what a sample for all does.

50,000 pictures, a small convolutional network with batch norm, class 0 to be forgotten. Nothing is
chosen by the outcome: every setting of the table is reported. Where no number of records is named,
20,000 stand for all. ``agreement`` is the overlap of the dampened weights with those of the first
run, whose importances are taken over all 50,000 pictures (both, over either).

Source: SSD (Foster et al., 2024), section 5, at a small scale.
"""

from __future__ import annotations

import copy
import statistics
import time
from typing import Any

import numpy as np
import torch
from output import parser, report
from torch import Tensor, nn

from expunge.core.errors import ConfigError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.data.source import load_source
from expunge.engine.schedule import Schedule
from expunge.engine.tasks.classifier import Classifier
from expunge.forget.method import Given, apply
from expunge.train.supervised import learn

FORGOTTEN = 0
TASK = Classifier(10)
TRAINING = Schedule(
    epochs=5,
    batch_size=64,
    optimizer="sgd",
    lr=0.05,
    weight_decay=5e-4,
    freeze_norm_statistics=False,
)
WHOLE = "alpha 10, lambda 1, all records"
ARMS: dict[str, dict[str, Any]] = {
    WHOLE: {"max_records": None},
    "the same, 20,000 records": {},
    "the same, 5,000 records": {"max_records": 5_000},
    "the same, retain": {"whole": "retain", "max_records": None},
    "alpha 5": {"alpha": 5.0},
    "alpha 20": {"alpha": 20.0},
    "alpha 20, all records": {"alpha": 20.0, "max_records": None},
    "alpha 50": {"alpha": 50.0},
    "alpha 50, all records": {"alpha": 50.0, "max_records": None},
    "one record at a time, alpha 5": {"per_sample": True, "max_records": 5_000, "alpha": 5.0},
    "label-free, alpha 10": {"label_free": True},
    "label-free, alpha 3": {"label_free": True, "alpha": 3.0},
}
COLUMNS = ("test_f", "test_r", "worst_class", "dampened", "agreement", "refused", "seconds")


def network(seed: int) -> nn.Module:
    """Return the network with fresh weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Flatten(), nn.Linear(576, 64), nn.ReLU(), nn.Linear(64, 10),
        )  # fmt: skip


@torch.no_grad()
def by_class(model: nn.Module, records: Records) -> list[float]:
    """Return the accuracy on each class, in percent."""
    batch = TASK.batch(records, range(len(records)))
    hits = TASK.predict(model.eval(), batch).logits_NV.argmax(1) == batch.targets_N
    return [100 * float(hits[batch.targets_N == k].double().mean()) for k in range(10)]


def changed(one: nn.Module, other: nn.Module) -> Tensor:
    """Return which weights differ."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return torch.cat([(a != b).flatten() for a, b in pairs])


def trial(seed: int) -> dict[str, dict[str, float]]:
    """Return the numbers of every arm in the world of one seed."""
    dataset = load_source("fashion_mnist", {"num_train": 50_000, "num_holdout": 0}, seed)
    model = network(seed)
    learn(model, TASK, dataset.train, TRAINING, Run(seed))
    gone = np.asarray(dataset.train["y"]) == FORGOTTEN
    forget, retain = (dataset.train.take(np.flatnonzero(part)) for part in (gone, ~gone))
    before = by_class(model, dataset.test)
    found = {"original": {**_accuracies(before, before), "dampened": 0.0}}
    touched: dict[str, Tensor] = {}
    for arm, settings in ARMS.items():
        started = time.process_time()
        given, refused = Given(TASK, forget, retain, guard=None), 0.0
        try:
            result = apply("ssd", model, given, Run(seed), copy.deepcopy(settings)).model
        except ConfigError:
            refused = 1.0
            result = apply("ssd", model, given, Run(seed), {**settings, "force": True}).model
        touched[arm] = changed(model, result)
        both, either = touched[arm] & touched[WHOLE], touched[arm] | touched[WHOLE]
        found[arm] = {
            **_accuracies(by_class(result, dataset.test), before),
            "dampened": 100 * float(touched[arm].double().mean()),
            "agreement": float(both.sum()) / max(float(either.sum()), 1.0),
            "refused": refused,
            "seconds": time.process_time() - started,
        }
    return found


def _accuracies(after: list[float], before: list[float]) -> dict[str, float]:
    others = [k for k in range(10) if k != FORGOTTEN]
    return {
        "test_f": after[FORGOTTEN],
        "test_r": statistics.fmean(after[k] for k in others),
        "worst_class": min(after[k] - before[k] for k in others),
    }


def main() -> None:
    """Report means over seeds."""
    made = parser("SSD on one class of Fashion-MNIST.")
    made.add_argument("--seeds", type=int, default=2, help="seeds to report on")
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    trials = [trial(seed) for seed in range(options.seeds)]
    means = {
        arm: {key: statistics.fmean(t[arm][key] for t in trials) for key in numbers}
        for arm, numbers in trials[0].items()
    }
    rows = [
        {"arm": arm, **{c: f"{numbers[c]:.2f}" if c in numbers else "" for c in COLUMNS}}
        for arm, numbers in means.items()
    ]
    title = f"SSD, class {FORGOTTEN} of Fashion-MNIST, means over {options.seeds} seeds, percent"
    report(title, rows, {"means": means, "trials": trials}, options.json)


if __name__ == "__main__":
    main()
