"""What classifiers' and regressors' methods are compared on: real pictures and tables.

Every seed draws its own data, trains its own model, has its own request and its own references.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from expunge.audit.forget_set_selection import Selector, select
from expunge.core.run import Run
from expunge.core.sets import Sets
from expunge.data.dataset import Dataset
from expunge.workloads.fixture import Column, Fixture

_PICTURES = {"num_train": 2000, "num_holdout": 0, "num_test": 2000}
_RESNET: tuple[str, Mapping[str, Any]] = ("resnet", {"widths": [16, 32, 64], "blocks": 1})
_RESNET_TRAINING = {
    "epochs": 25,
    "batch_size": 64,
    "optimizer": "sgd",
    "lr": 0.1,
    "weight_decay": 5e-4,
    "decay": "cosine",
}
_VIT_TRAINING = {"epochs": 40, "batch_size": 64, "lr": 2e-3, "decay": "cosine"}
_CNN_TRAINING = {"epochs": 30, "batch_size": 64, "lr": 3e-3, "decay": "cosine"}
_TABLE_TRAINING = {"epochs": 40, "batch_size": 64, "lr": 2e-3, "decay": "cosine"}

_GAP = {
    "ua": Column("UA, %", ".1f", "unlearning_gap", "ua"),
    "ra": Column("RA, %", ".1f", "unlearning_gap", "ra", "retain"),
    "ta": Column("TA, %", ".1f", "unlearning_gap", "ta", "test"),
    "mia": Column("MIA, %", ".1f", "unlearning_gap", "mia"),
    "gap": Column("average gap", ".2f", "unlearning_gap", "average_gap", ""),
}
_DISTANCE = {
    "js": Column("JS to retrained", ".4f", "output_distance", "js_divergence_forget"),
    "same": Column("same choice as retrained", ".3f", "output_distance", "completeness_forget"),
}
_ERRORS = {
    "forgotten": Column("error, forgotten", ".3f", "unlearning_gap", "forget_error"),
    "retained": Column("error, retained", ".3f", "unlearning_gap", "retain_error", "retain"),
    "test": Column("error, test", ".3f", "unlearning_gap", "test_error", "test"),
    "mia": Column("MIA, %", ".1f", "unlearning_gap", "mia"),
    "w1": Column("W1 to retrained", ".3f", "wasserstein", "wasserstein"),
    "difference": Column(
        "difference to retrained", ".3f", "wasserstein", "mean_absolute_difference"
    ),
}
_CORRECTED = {
    "acc_corr": Column("acc_corr, %", ".1f", "corrective", "acc_corr", "test"),
    "acc_retain": Column("acc_retain, %", ".1f", "corrective", "acc_retain", "test"),
    "delete_err": Column("still wrong, %", ".1f", "corrective", "delete_err"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selected(Fixture):
    """A fixture whose forget set is selected under the original model, not requested.

    Attributes:
        by: How it is selected.
        count: How many records.
    """

    by: Selector
    count: int

    def sets(self, dataset: Dataset, run: Run) -> Sets:
        """Return the selected records as the forget set, and all others as usual."""
        original = self.before(dataset, run)
        context = run.child(f"selection-{self.draw}", seed=self.draw)
        found = select(self.by, original.model, original.task, dataset.train, self.count, context)
        sets = Sets.partition(
            dataset.train.ids, found.ids, holdout=dataset.holdout.ids, test=dataset.test.ids
        )
        return dataclasses.replace(sets, provenance={"rule": self.by, "seed": self.draw})


def _resnet(title: str, request: Mapping[str, Any], **data: Any) -> Fixture:
    return Fixture(
        title=f"residual network on Fashion-MNIST, {title}",
        data=("fashion_mnist", {**_PICTURES, "pool": 2, **data}),
        model=_RESNET,
        request=request,
        training=_RESNET_TRAINING,
        audits={"unlearning_gap": {}, "output_distance": {}},
        columns={**_GAP, **_DISTANCE},
        redrawn=True,
    )


def _selected(title: str, by: Selector) -> Fixture:
    plain = _resnet(title, {})
    fields = {f.name: getattr(plain, f.name) for f in dataclasses.fields(Fixture)}
    return Selected(**fields, by=by, count=200)


def _corrupted(title: str, share: float, **corrupt: Any) -> Fixture:
    plain = _resnet(title, {"split": "manipulated", "identified": share}, corrupt=corrupt)
    return dataclasses.replace(
        plain,
        audits={**plain.audits, "corrective": {}},
        columns={**_CORRECTED, **_GAP},
    )


def _vit(title: str, request: Mapping[str, Any]) -> Fixture:
    return dataclasses.replace(
        _resnet(title, request),
        title=f"vision transformer on Fashion-MNIST, {title}",
        data=("fashion_mnist", _PICTURES),
        model=("vit", {"patch": 7}),
        training=_VIT_TRAINING,
    )


FIXTURES: Mapping[str, Fixture] = {
    "resnet_random_1": _resnet("1 % of the records", {"fraction": 0.01}),
    "resnet_random_10": _resnet("10 % of the records", {"fraction": 0.1}),
    "resnet_random_50": _resnet("50 % of the records", {"fraction": 0.5}),
    "resnet_class": _resnet("one class", {"classes": [7]}),
    "resnet_worst_10": _selected("worst-case 10 %", "bilevel"),
    "resnet_poison": _corrupted("a quarter of a backdoor", 0.25, kind="poison", count=100),
    "resnet_confusion": _corrupted(
        "half of two confused classes", 0.5, kind="confuse", count=200, classes=[2, 4]
    ),
    "vit_random_10": _vit("10 % of the records", {"fraction": 0.1}),
    "vit_class": _vit("one class", {"classes": [7]}),
    "open_set_class": dataclasses.replace(
        _resnet("one class", {"classes": [7]}),
        title="convolutional network with a cosine head on Fashion-MNIST, one class",
        model=("cnn", {"channels": [16, 32], "head": {"kind": "cosine"}}),
        training=_CNN_TRAINING,
    ),
    "table_random_10": Fixture(
        title="perceptron on a table (cut of diamonds), 10 % of the records",
        data=(
            "diamonds",
            {"target": "cut", "num_train": 4000, "num_holdout": 0, "num_test": 4000},
        ),
        model=("mlp", {"hidden": [128, 128, 64]}),
        request={"fraction": 0.1},
        training=_TABLE_TRAINING,
        audits={"unlearning_gap": {}, "output_distance": {}},
        columns={**_GAP, **_DISTANCE},
        redrawn=True,
    ),
    "price_quarter": Fixture(
        title="perceptron on a table (price of diamonds), the cheapest quarter",
        data=("diamonds", {"num_train": 8000, "num_holdout": 0, "num_test": 4000}),
        model=("mlp", {"hidden": [128, 128, 64]}),
        request={"where": {"price_quarter": [1]}},
        training={"epochs": 20, "batch_size": 256, "lr": 1e-3, "weight_decay": 0.0},
        audits={"unlearning_gap": {}, "wasserstein": {}},
        columns=_ERRORS,
        redrawn=True,
    ),
    "angle_band": Fixture(
        title="convolutional network on rotated pictures (angle), a band of angles",
        data=(
            "rotated_fashion",
            {"num_train": 2000, "num_holdout": 0, "num_test": 2000, "pool": 2},
        ),
        model=("cnn", {"channels": [16, 32]}),
        request={"where": {"band": ["20..40"]}},
        training=_CNN_TRAINING,
        audits={"unlearning_gap": {}, "wasserstein": {}},
        columns=_ERRORS,
        redrawn=True,
    ),
}
