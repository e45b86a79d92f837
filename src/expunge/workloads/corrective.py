"""``expunge bench corrective``: how well methods correct a model when only some flaws are known.

A backdoor, or two confused classes, is planted in the training records; methods are given a growing
share of the manipulated ones. Retraining without that share is no goal: the rest teaches the flaw
again. The goal is the model that never saw any of them.

Source: Corrective Machine Unlearning (Goel et al., TMLR 2024).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from torch import nn

from expunge.audit.scores import score
from expunge.core.config import config
from expunge.core.errors import ConfigError
from expunge.core.files import read_json, write_text
from expunge.core.run import Run
from expunge.core.sets import Sets
from expunge.data.dataset import Dataset
from expunge.engine.task import Task
from expunge.report.svg import Lines, standalone_lines
from expunge.workloads.arm import Arm
from expunge.workloads.comparison import chosen_arms, compare
from expunge.workloads.fixture import Column, Fixture
from expunge.workloads.workload import workload

Kind = Literal["poison", "confusion"]
_CORRUPT: Mapping[Kind, Mapping[str, Any]] = {
    "poison": {"kind": "poison", "count": 100},
    "confusion": {"kind": "confuse", "count": 400, "classes": [2, 4]},
}
_COLUMNS = {
    "acc_corr": Column("acc_corr, %", ".1f", "corrective", "acc_corr", "test"),
    "acc_retain": Column("acc_retain, %", ".1f", "corrective", "acc_retain", "test"),
    "delete_err": Column("still wrong, %", ".1f", "corrective", "delete_err"),
}
_PLOTTED = ("acc_corr", "acc_retain")
_TRAINING = {
    "epochs": 25,
    "batch_size": 64,
    "optimizer": "sgd",
    "lr": 0.05,
    "weight_decay": 5e-4,
    "decay": "cosine",
}
_GRID = tuple(
    {"alpha": alpha, "lambda_": alpha * factor, "force": True}
    for alpha in (0.1, 1.0, 10.0, 50.0, 100.0)
    for factor in (0.1, 0.5, 1.0)
)
ARMS = (
    Arm("finetune, CF(-1)", "finetune"),
    Arm("scrub", "scrub"),
    Arm("bad_teacher", "bad_teacher", {"retain_share": 1.0}),
    Arm("ssd, alpha 10, lambda 1", "ssd"),
    Arm("ssd, selected", "ssd", grid=_GRID),
)
_NOTES = (
    "The row of retrained models is EU(-1): trained again without the identified records. With all "
    "of them identified it is the oracle.",
    "SSD is selected by half the accuracy on clean held-out records and half the share of "
    "identified records that are no longer predicted as their wrong label.",
)


@config
class CorrectiveBench:
    """Settings of the comparison under partly known manipulations."""

    kinds: tuple[Kind, ...] = ("poison", "confusion")
    """Manipulations: a patch under one label, or two classes under each other's label."""
    shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.1, 0.25, 0.5, 1.0)
    """Shares of the manipulated records that are identified (γ)."""
    arms: tuple[str, ...] = ()
    """Rows of the table, by label or by name of the method; all when empty."""
    seeds: Annotated[int, Field(ge=1)] = 3
    """Runs of each method, each with data and an original model of its own."""
    references: Annotated[int, Field(ge=1)] = 1
    """Retrained models of each share."""
    workers: Annotated[int, Field(ge=1)] = 1
    """Processes that work at the same time, one thread each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corrupted(Fixture):
    """A fixture with manipulated training records, some of which are identified."""

    def merit(self, model: nn.Module, task: Task, dataset: Dataset, sets: Sets, run: Run) -> float:
        """Return half the held-out accuracy and half the share of S_f that is no longer wrong."""
        identified = dataset.train.select(sets.forget)
        wrong = 100 * float(score(model, task, identified, run).greedy_N.mean())
        return 0.5 * super().merit(model, task, dataset, sets, run) + 0.5 * (100 - wrong)


@workload("corrective", title="correcting planted flaws of which a share is identified")
def corrective(config: CorrectiveBench, folder: Path, run: Run) -> Path:
    """Compare methods by accuracy where the flaw bites and elsewhere, over the share identified."""
    if not config.kinds or not config.shares:
        raise ConfigError("bench corrective: kinds and shares must name at least one each")
    fixtures = {
        _name(kind, share): _fixture(kind, share)
        for kind in config.kinds
        for share in sorted(config.shares)
    }
    arms = chosen_arms(config.arms, ARMS, "bench corrective: arms")
    title = "Correcting a model from partly identified records"
    page = compare(title, config, fixtures, arms, folder, run, _NOTES)
    results = read_json(folder / "results.json")
    for kind in config.kinds:
        write_text(folder / f"{kind}.svg", plot(results, kind, sorted(config.shares)))
    return page


def plot(results: Mapping[str, Any], kind: str, shares: Sequence[float]) -> str:
    """Return acc_corr and acc_retain of every method over the share identified, as an SVG file.

    Where all manipulated records are identified in one of the shares, the model retrained without
    them is drawn through all: the oracle.

    Args:
        results: As in ``results.json``.
        kind: The manipulation.
        shares: The shares, in order.
    """
    panels = {f"{name} (%)": _lines(results, kind, shares, name) for name in _PLOTTED}
    title = f"Correction of a planted {kind}"
    return standalone_lines(panels, title, "identified, % of the manipulated")


def _lines(results: Mapping[str, Any], kind: str, shares: Sequence[float], number: str) -> Lines:
    lines: dict[str, tuple[list[float], list[float]]] = {}

    def add(label: str, share: float, values: Sequence[float | None]) -> None:
        known = [value for value in values if value is not None]
        if known:
            xs, ys = lines.setdefault(label, ([], []))
            xs.append(100 * share)
            ys.append(float(np.mean(known)))

    for share in shares:
        name = _name(kind, share)
        for label, role in (("original", "before"), ("retrained, EU(-1)", "reference")):
            standards = results["standards"][name].items()
            found = [own.get(number) for key, own in standards if key.startswith(role)]
            add(label, share, found)
            if role == "reference" and share == 1:
                for place in shares:
                    add("retrained without any", place, found)
        for row in results["rows"]:
            if row["fixture"] == name and not row["refused"]:
                add(row["label"], share, row["numbers"][number])
    return lines


def _name(kind: str, share: float) -> str:
    return f"{kind}_{100 * share:g}"


def _fixture(kind: Kind, share: float) -> Fixture:
    data = {"num_train": 4000, "num_holdout": 2000, "num_test": 2000, "corrupt": _CORRUPT[kind]}
    return Corrupted(
        title=f"convolutional network on Fashion-MNIST, {kind}, {100 * share:g} % identified",
        data=("fashion_mnist", data),
        model=("cnn", {"channels": [8, 16]}),
        request={"split": "manipulated", "identified": share},
        training=_TRAINING,
        audits={"corrective": {}},
        columns=_COLUMNS,
        redrawn=True,
    )
