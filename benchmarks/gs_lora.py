"""GS-LoRA on digits: classes leave a small vision transformer, request after request.

A transformer of four blocks learns 1,200 digits of 8 x 8 pixels. Two requests of two classes each
run for 40 epochs under group lassos of several strengths, beside fine-tuning and gradient ascent;
then four requests follow one another, of 100 epochs each. Requests see 30 % of the training
pictures. Numbers are test accuracies in percent: of the classes that the request is about
(``forgotten``), of those that stay (``retained``, and by how much it fell since the start:
``lost``) and of those that earlier requests took (``earlier``).

Source: GS-LoRA (Zhao et al., 2024) and GS-LoRA++ (Zhao et al., 2025), continual setting.
"""

from __future__ import annotations

import copy
import dataclasses
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from output import parser, report
from torch import nn

from expunge.core.errors import ConfigError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.core.streams import stream
from expunge.data.dataset import Dataset
from expunge.data.source import load_source
from expunge.engine.schedule import Schedule
from expunge.engine.task import Task
from expunge.forget.group_sparse import find_groups
from expunge.forget.method import Given, apply
from expunge.models.source import load_model_source
from expunge.train.supervised import learn

CLASSES = range(10)
PAIRS = ((8, 9), (6, 7))
FOUR_PAIRS = (*PAIRS, (4, 5), (2, 3))
SINGLES = ((9,), (8,), (7,), (6,))
SHARE = 0.3
FEW = 2
ACTIVE = 0.1  # norm from which on a block counts as changed
TRAINING = Schedule(epochs=60, batch_size=48, lr=2e-3, weight_decay=0.05, decay="cosine")
ADAPTED = {"bound": 10.0, "rank": 4}
SHORT, LONG = {"epochs": 40}, {"epochs": 100}
PROTOTYPES = {"push": 0.05, "pull": 0.01, "prototype_bound": 5.0}
WHOLE = {"schedule": {"epochs": 40, "batch_size": 48, "lr": 1e-3, "optimizer": "adamw"}}
ASCENT = {"schedule": {"epochs": 10, "batch_size": 48, "lr": 1e-4, "optimizer": "adamw"}}


@dataclasses.dataclass(frozen=True)
class Arm:
    """Requests, and how they are met.

    Attributes:
        method: Registered name.
        settings: The method's settings.
        requests: Classes of each request.
        few: Records of each class that are seen; a share of the training pictures when absent.
        always: Whether the arm is run without ``--all``.
    """

    method: str
    settings: Mapping[str, Any]
    requests: tuple[tuple[int, ...], ...] = PAIRS
    few: int | None = None
    always: bool = True


def lasso(alpha: float, **further: Any) -> Arm:
    """Return an arm of GS-LoRA with a lasso of the given strength; see ``Arm``."""
    settings = {**ADAPTED, "alpha": alpha, "schedule": further.pop("schedule", SHORT)}
    return Arm("gs_lora", settings, **further)


def prototypes(alpha: float, **further: Any) -> Arm:
    """Return an arm of GS-LoRA++ with a lasso of the given strength; see ``Arm``."""
    settings = {**ADAPTED, **PROTOTYPES, "alpha": alpha, "schedule": SHORT}
    return Arm("gs_lora_pp", settings, **further)


ARMS = {
    "no lasso": lasso(0.0),
    "lasso 0.01": lasso(0.01),
    "lasso 0.05": lasso(0.05, always=False),
    "lasso 0.2": lasso(0.2),
    "prototypes, lasso 0.05": prototypes(0.05),
    "finetune": Arm("finetune", WHOLE),
    "grad_ascent": Arm("grad_ascent", ASCENT),
    "lasso 0.01, two records of a class": lasso(0.01, requests=PAIRS[:1], few=FEW),
    "prototypes, lasso 0.01, two records of a class": prototypes(0.01, requests=PAIRS[:1], few=FEW),
    "four requests, lasso 0.01": lasso(0.01, requests=FOUR_PAIRS, schedule=LONG),
    "four requests, lasso 0.2": lasso(0.2, requests=FOUR_PAIRS, schedule=LONG),
    "four requests, lasso 0.01, 40 epochs": lasso(0.01, requests=FOUR_PAIRS, always=False),
    "four requests of one class, lasso 0.01": lasso(
        0.01, requests=SINGLES, schedule=LONG, always=False
    ),
}
AT_ONCE = Arm(
    "gs_lora", {**ADAPTED, "alpha": 0.01, "lasso_after": 0.0, "schedule": SHORT}, PAIRS[:1]
)

Numbers = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class World:
    """One seed's pictures and the transformer that learned them.

    Attributes:
        seed: The seed.
        dataset: The pictures.
        task: How to run the model.
        model: The model that every request starts from.
        sample: What requests see of the training pictures.
    """

    seed: int
    dataset: Dataset
    task: Task
    model: nn.Module
    sample: Records

    def accuracy(self, model: nn.Module, classes: Collection[int]) -> float:
        """Return the share of test pictures of some classes that are got right, in percent."""
        test = of_classes(self.dataset.test, classes)
        batch = self.task.batch(test, range(len(test)))
        with torch.no_grad():
            found = self.task.predict(model.eval(), batch)
        return 100 * float((found.logits_NV.argmax(1) == found.targets_N).double().mean())

    def requests(self, arm: Arm) -> list[Numbers]:
        """Run an arm's requests one after the other, each on the model of the one before."""
        train = self.dataset.train
        sample = drawn(train, self.seed, most=arm.few) if arm.few else self.sample
        model, gone, numbers = self.model, set(), []
        for classes in arm.requests:
            rest = set(CLASSES) - gone - set(classes)
            given = Given(self.task, of_classes(sample, classes), of_classes(sample, rest))
            result = apply(arm.method, model, given, Run(self.seed), arm.settings)
            before, norms = self.accuracy(model, classes), result.history.groups
            told = {
                "forgotten": self.accuracy(result.model, classes),
                "retained": self.accuracy(result.model, rest),
                "lost": self.accuracy(self.model, rest) - self.accuracy(result.model, rest),
                "earlier": self.accuracy(result.model, gone) if gone else 0.0,
                "blocks": sum(norm > ACTIVE for norm in norms.values()) if norms else 4,
                "outside": outside(model, result.model),
            }
            drop = before - told["forgotten"]
            told["h"] = 2 * drop * told["retained"] / (drop + told["retained"] + 1e-8)
            numbers.append({**told, **{f"norm {i}": v for i, v in enumerate(norms.values())}})
            model, gone = result.model, gone | set(classes)
        return numbers


def of_classes(records: Records, classes: Collection[int]) -> Records:
    """Return the records of some classes."""
    return records.take([row for row, label in enumerate(records["y"]) if int(label) in classes])


def outside(before: nn.Module, after: nn.Module) -> int:
    """Count the weights beside the groups' layers that changed."""
    inside = {f"{x}.weight" for layers in find_groups(before).values() for x in layers}
    pairs = zip(before.named_parameters(), after.parameters(), strict=True)
    return sum(int((a != b).sum()) for (name, a), b in pairs if name not in inside)


def world(seed: int) -> World:
    """Train the transformer of one seed."""
    dataset = load_source("digits", {"num_holdout": 0, "num_test": 597}, seed)
    loaded = load_model_source("vit", {"patch": 2}, dataset, seed)
    learn(loaded.model, loaded.task, dataset.train, TRAINING, Run(seed))
    sample = drawn(dataset.train, seed, share=SHARE)
    return World(seed, dataset, loaded.task, copy.deepcopy(loaded.model).eval(), sample)


def drawn(records: Records, seed: int, *, share: float = 1.0, most: int | None = None) -> Records:
    """Draw a share, or a number, of each class."""
    labels = np.array([int(label) for label in records["y"]])
    rows: list[int] = []
    for label in CLASSES:
        own = stream(seed, "few", label).permutation(np.flatnonzero(labels == label))
        rows += own[: most or int(share * len(own))].tolist()
    return records.take(sorted(rows))


def collapses(found: World) -> bool:
    """Return whether the lasso, set in at once, leaves nothing of the adapters."""
    try:
        found.requests(AT_ONCE)
    except ConfigError as error:
        if "the lasso shrank all adapters" not in str(error):
            raise
        return True
    return False


def mean(found: Sequence[Numbers]) -> Numbers:
    """Return the mean of each number."""
    return {name: statistics.mean(numbers[name] for numbers in found) for name in found[0]}


def main() -> None:
    """Run every arm on every seed and print means."""
    made = parser("Classes that leave a small vision transformer, request after request.")
    made.add_argument("--seeds", type=int, default=1, help="seeds to report on")
    made.add_argument("--all", action="store_true", help="run every arm, not the main ones only")
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    worlds = [world(seed) for seed in range(options.seeds)]
    numbers = {
        label: [
            mean(request)
            for request in zip(*(found.requests(arm) for found in worlds), strict=True)
        ]
        for label, arm in ARMS.items()
        if arm.always or options.all
    }
    collapsed = [collapses(found) for found in worlds]
    start = statistics.mean(found.accuracy(found.model, CLASSES) for found in worlds)
    rows = [
        {"arm": label, "request": place, **{name: f"{value:.2f}" for name, value in told.items()}}
        for label, requests in numbers.items()
        for place, told in enumerate(({**_NONE, **request} for request in requests), start=1)
    ]
    report(
        f"Means over {options.seeds} seeds; the models begin with {start:.1f} % test accuracy",
        rows,
        {"start": start, "arms": numbers, "collapsed without delay": collapsed},
        options.json,
    )
    print(f"the lasso from the first step on left nothing of the adapters: {collapsed}")


_NONE: Numbers = {f"norm {place}": float("nan") for place in range(4)}


if __name__ == "__main__":
    main()
