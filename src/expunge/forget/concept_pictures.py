"""The picture side of ``concept``: find the concepts of a class, and poison its records.

Shape legend: N records, D width of the representation.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import nn

from expunge.core.errors import DataError, UnsupportedModelError, listing
from expunge.core.records import Records
from expunge.core.streams import stream
from expunge.engine.modes import evaluating
from expunge.engine.representation import represent, split
from expunge.engine.task import Task
from expunge.forget.attributions import require_captum
from expunge.forget.concept_bank import (
    Bank,
    BankSettings,
    furthest,
    learn_bank,
    require_donor,
    sample,
    shown_by,
)
from expunge.forget.concept_patches import (
    Box,
    Labels,
    PatchSettings,
    anywhere,
    box_around,
    new_label,
    pasted,
)
from expunge.forget.concept_sites import (
    AT_ONCE,
    Centre,
    gradient_peaks,
    last_convolution,
    occlusion_peaks,
    plane_of,
)
from expunge.forget.method import Given, Sight


class PictureSettings(Protocol):
    """Settings that concern pictures."""

    @property
    def target(self) -> int | None:
        """Class to forget."""

    @property
    def donor(self) -> int | None:
        """Class that stands in."""

    @property
    def labels(self) -> Labels:
        """Under which labels poisoned records are learned."""

    @property
    def top(self) -> int:
        """Concepts of a class that count."""

    @property
    def bank(self) -> BankSettings:
        """Concepts."""

    @property
    def patch(self) -> PatchSettings:
        """Patches."""


@runtime_checkable
class Pictures(Protocol):
    """What is asked of a task beside the usual; see ``Classifier``."""

    num_classes: int
    inputs: str
    labels: str


@dataclasses.dataclass(frozen=True)
class Planted:
    """What was done to one record: ids and numbers only.

    Attributes:
        record: Its id.
        donor: Id of the picture that the patch comes from; empty without a patch.
        place: Where the patch is; ``None`` without one.
        label: The label that is learned.
    """

    record: str
    donor: str
    place: Box | None
    label: int


@dataclasses.dataclass(frozen=True, eq=False)
class Poison:
    """Poisoned records and the classes that stand in.

    Attributes:
        records: The forget set as it is learned.
        planted: What was done to each record.
        donors: The class that stands in for each class of the forget set.
        bank: The concepts.
    """

    records: Records
    planted: tuple[Planted, ...]
    donors: dict[int, int]
    bank: Bank


def check_pictures(model: nn.Module, given: Given, config: PictureSettings) -> None:
    """Refuse what cannot work before any work; see ``Raises`` of ``concept``."""
    task = require_pictures(given.task)
    assert given.retain is not None  # checked before
    split(model)
    plane = plane_of(np.shape(given.forget[task.inputs][0]))
    if config.patch.mode != "none":
        config.patch.patch(plane)
    if config.patch.mode == "localized":
        config.patch.grid(plane)
        if config.patch.localize == "gradcam":
            last_convolution(model)
            require_captum("forget.patch.localize = 'gradcam'")
    forgotten_N = classes_of(task, given.forget)
    retained_N = classes_of(task, given.retain)
    targets = set(forgotten_N.tolist())
    if config.target is not None and targets != {config.target}:
        raise DataError(
            f"forget.target = {config.target}, but the forget set has records of classes "
            f"{listing(sorted(targets), 12)}; give records of that class only, or leave target out"
        )
    together_N = np.concatenate([forgotten_N, retained_N])
    if len(set(together_N.tolist())) < 2:
        raise DataError(
            f"all records, forgotten and retained, are of class {together_N[0]}; concepts need at "
            "least two classes"
        )
    for target in sorted(targets):
        require_donor(target, config.donor, sorted(set(retained_N.tolist())))
    shown_by(config.bank, together_N, task.num_classes)


def require_pictures(task: Task) -> Pictures:
    """Return the task when its records are inputs and classes.

    Raises:
        UnsupportedModelError: They are not.
    """
    if not isinstance(task, Pictures):
        raise UnsupportedModelError(
            f"concept needs a classifier with columns of inputs and labels, not a {task.kind!r}"
        )
    return task


def poison_pictures(model: nn.Module, sight: Sight, config: PictureSettings) -> Poison:
    """Learn the concepts of the classes, and poison the forget set accordingly.

    Args:
        model: The model before unlearning; only its device may change.
        sight: What the method may see.
        config: The method's settings.
    """
    task, forget, seed = require_pictures(sight.task), sight.forget, sight.run.seed
    labels_F, labels_R = classes_of(task, forget), classes_of(task, sight.retain)
    _warn_of_rest(labels_F, labels_R)
    model.to(sight.run.device)
    with evaluating(model):
        maker = _Maker(model, sight, config, split(model).head, labels_F, labels_R)
        bank = maker.learn()
        available = sorted(set(labels_R.tolist()))
        donors = {
            c: furthest(bank.weights_CK, c, {*available} - {c})
            if config.donor is None
            else config.donor
            for c in sorted(set(labels_F.tolist()))
        }
        rows_F = [
            maker.drawn(i, donors[c]) for i, c in zip(forget.ids, labels_F.tolist(), strict=True)
        ]
        boxes = maker.boxes(bank, donors, rows_F)
    planted, inputs = [], []
    for row, (name, own, pair) in enumerate(zip(forget.ids, labels_F.tolist(), boxes, strict=True)):
        picture, source = np.asarray(forget[task.inputs][row]), ""
        if pair is not None:
            other = np.asarray(sight.retain[task.inputs][rows_F[row]])
            picture, source = pasted(picture, other, *pair), sight.retain.ids[rows_F[row]]
        label = new_label(config.labels, own, donors[own], task.num_classes, seed, name)
        inputs.append(picture)
        planted.append(Planted(name, source, pair[1] if pair is not None else None, label))
    columns = {task.inputs: list(np.stack(inputs)), task.labels: [row.label for row in planted]}
    return Poison(forget.replace(**columns), tuple(planted), donors, bank)


def report_concepts(sight: Sight, poison: Poison, top: int) -> None:
    """Write what was found and done to the run's events: names of concepts, ids and numbers."""
    bank = poison.bank
    for target, donor in poison.donors.items():
        chosen = bank.ranked(target)[:top]
        sight.run.emit(
            "concepts",
            target=target,
            donor=donor,
            names=[bank.names[k] for k in chosen],
            weights=[round(float(bank.weights_CK[target, k]), 6) for k in chosen],
            bottleneck_accuracy=bank.accuracy,
        )
    rows = [
        [p.record, p.donor, dataclasses.astuple(p.place) if p.place else None, p.label]
        for p in poison.planted
    ]
    sight.run.emit("poison", columns=["record", "donor", "place", "label"], rows=rows)


def report_confusion(model: nn.Module, sight: Sight, poison: Poison) -> None:
    """Write to the run's events where the forgotten classes went, and what became of the donors."""
    task = require_pictures(sight.task)
    said_F, said_R = (_predicted(model, sight, part) for part in (sight.forget, sight.retain))
    labels_F, labels_R = classes_of(task, sight.forget), classes_of(task, sight.retain)
    for target, donor in poison.donors.items():
        taken = np.concatenate([labels_F[said_F == donor], labels_R[said_R == donor]])
        sight.run.emit(
            "confusion",
            target=target,
            row=np.bincount(said_F[labels_F == target], minlength=task.num_classes).tolist(),
            donor=donor,
            donor_precision=float((taken == donor).mean()) if len(taken) else None,
        )


def classes_of(task: Pictures, records: Records) -> Int[np.ndarray, " N"]:
    """Return the class of every record.

    Raises:
        DataError: A label is no integer in 0..C-1.
    """
    column = records[task.labels]
    found = []
    for row, record_id in enumerate(records.ids):
        try:
            label = float(column[row])
        except (TypeError, ValueError):
            label = -1.0
        if label not in range(task.num_classes):
            raise DataError(
                f"column {task.labels!r}: record {record_id} has label {column[row]!r}; map labels "
                f"to 0..{task.num_classes - 1}"
            )
        found.append(int(label))
    return np.array(found, dtype=np.int64)


@dataclasses.dataclass(frozen=True, eq=False)
class _Maker:
    """What the steps of poisoning share."""

    model: nn.Module
    sight: Sight
    config: PictureSettings
    head: str
    labels_F: Int[np.ndarray, " F"]
    labels_R: Int[np.ndarray, " R"]

    def learn(self) -> Bank:
        """Learn the concepts from some records of each class."""
        labels_N, parts = np.concatenate([self.labels_F, self.labels_R]), []
        rows = sample(labels_N, self.config.bank.per_class, self.sight.run.seed)
        own = len(self.labels_F)
        for records, chosen in (
            (self.sight.forget, rows[rows < own]),
            (self.sight.retain, rows[rows >= own] - own),
        ):
            parts.append(self._features(records, chosen))
        classes = require_pictures(self.sight.task).num_classes
        return learn_bank(
            np.concatenate(parts), labels_N[rows], classes, self.config.bank, self.sight.run.seed
        )

    def drawn(self, record_id: str, donor: int) -> int:
        """Return the row of the retained picture of the donor class that is drawn for a record."""
        choice = np.flatnonzero(self.labels_R == donor)
        return int(
            choice[stream(self.sight.run.seed, "concept-donor", record_id).integers(len(choice))]
        )

    def boxes(
        self, bank: Bank, donors: Mapping[int, int], rows_F: Sequence[int]
    ) -> list[tuple[Box, Box] | None]:
        """Return for each forgotten record which part of its donor goes where."""
        patch, task = self.config.patch, require_pictures(self.sight.task)
        forget, count = self.sight.forget, len(self.labels_F)
        if patch.mode == "none":
            return [None] * count
        plane = plane_of(np.shape(forget[task.inputs][0]))
        size, middle = patch.patch(plane), (plane.height // 2, plane.width // 2)
        if patch.mode != "localized":
            centred = box_around(middle, size, plane)
            whole = Box(0, 0, plane.height, plane.width)
            source = whole if patch.mode == "full" else centred
            if patch.mode == "random":
                seed = self.sight.run.seed
                return [(source, anywhere(size, plane, seed, i)) for i in forget.ids]
            return [(source, centred)] * count
        window = patch.grid(plane).window
        places = self._peaks(bank, forget, range(count), self.labels_F)
        distinct = sorted(set(rows_F))
        found = self._peaks(bank, self.sight.retain, distinct, self.labels_R[distinct])
        sources = dict(zip(distinct, found, strict=True))
        return [
            (box_around(sources[row], window, plane), box_around(place, size, plane))
            for row, place in zip(rows_F, places, strict=True)
        ]

    def _peaks(
        self, bank: Bank, records: Records, rows: Sequence[int], classes: Int[np.ndarray, " N"]
    ) -> list[Centre]:
        """Return where the concepts of each record's class are in it."""
        task, run, patch = self.sight.task, self.sight.run, self.config.patch
        grid = patch.grid(plane_of(np.shape(records[require_pictures(task).inputs][0])))
        directions = {c: bank.direction(c, self.config.top) for c in set(classes.tolist())}
        peaks: list[Centre] = []
        with run.progress("finding concepts", len(rows)) as bar:
            for start in range(0, len(rows), AT_ONCE):
                run.check()
                part = list(rows[start : start + AT_ONCE])
                own = classes[start : start + AT_ONCE]
                x = task.batch(records, part, targets=False).inputs["x"].to(run.device)
                if patch.localize == "gradcam":
                    peaks += gradient_peaks(self.model, task, x, own, grid)
                else:
                    toward_BD = np.stack([directions[int(c)] for c in own])
                    peaks += occlusion_peaks(
                        self.model, task, x, toward_BD, grid, self.head, run.check
                    )
                bar.advance(len(part))
        return peaks

    @torch.no_grad()
    def _features(self, records: Records, rows: Int[np.ndarray, " N"]) -> Float[np.ndarray, "N D"]:
        found = [np.empty((0, split(self.model).width))]
        for start in range(0, len(rows), AT_ONCE):
            self.sight.run.check()
            part = rows[start : start + AT_ONCE].tolist()
            batch = self.sight.task.batch(records, part, targets=False).to(self.sight.run.device)
            features_BD, _ = represent(self.model, self.sight.task, batch, self.head)
            found.append(features_BD.double().cpu().numpy())
        return np.concatenate(found)


@torch.no_grad()
def _predicted(model: nn.Module, sight: Sight, records: Records) -> Int[np.ndarray, " N"]:
    found = []
    model.to(sight.run.device)
    with evaluating(model):
        for start in range(0, len(records), AT_ONCE):
            rows = range(start, min(start + AT_ONCE, len(records)))
            batch = sight.task.batch(records, rows, targets=False).to(sight.run.device)
            found.append(sight.task.predict(model, batch).logits_NV.argmax(1).cpu().numpy())
    return np.concatenate(found)


def _warn_of_rest(labels_F: Int[np.ndarray, " F"], labels_R: Int[np.ndarray, " R"]) -> None:
    """Warn where a class is to go, but records of it are to stay.

    A class is to go when the forget set is of no other, or holds most of it.
    """
    forgotten, kept = Counter(labels_F.tolist()), Counter(labels_R.tolist())
    for target, count in sorted(forgotten.items()):
        rest = kept[target]
        if rest and (len(forgotten) == 1 or count > rest):
            warnings.warn(
                f"{rest} retained records are of class {target}, of which {count} are to be "
                "forgotten; they are learned as they are and will undo the edit. Put the whole "
                "class into the forget set",
                stacklevel=2,
            )
