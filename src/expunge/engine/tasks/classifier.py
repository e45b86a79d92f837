"""Classifiers: any ``nn.Module`` that maps a batch of inputs to logits over K classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from expunge.core.errors import ConfigError, DataError, listing
from expunge.core.records import Records
from expunge.core.streams import stream
from expunge.engine.forward import outputs_BD, stacked
from expunge.engine.task import Batch, Predictions, task


@task("classifier", "any nn.Module: inputs (B, ...) -> logits (B, K)")
class Classifier:
    """Task for classifiers; each record is one target position.

    Args:
        num_classes: K, at least 2.
        inputs: Column with the inputs; numeric arrays of one shape.
        labels: Column with the class of each record, an integer in 0..K-1.

    Raises:
        ConfigError: There are fewer than two classes.
    """

    kind: ClassVar[str] = "classifier"

    def __init__(self, num_classes: int, *, inputs: str = "x", labels: str = "y") -> None:
        if num_classes < 2:
            raise ConfigError(f"num_classes = {num_classes}: a classifier needs at least 2 classes")
        self.num_classes = num_classes
        self.inputs = inputs
        self.labels = labels

    def batch(self, records: Records, rows: Sequence[int], *, targets: bool = True) -> Batch:
        """Stack inputs and labels; see ``Task.batch``.

        Raises:
            DataError: Inputs differ in shape or are no numbers, or a label is outside 0..K-1.
        """
        labels = self._labels(records, rows) if targets else np.empty(0, dtype=np.int64)
        return Batch(
            ids=tuple(records.ids[i] for i in rows),
            inputs={"x": stacked(records, rows, self.inputs)},
            targets_N=torch.from_numpy(labels),
            rows_N=torch.arange(len(rows)),
        )

    def num_targets(self, records: Records) -> list[int]:
        """Return 1 for every record."""
        return [1] * len(records)

    def lengths(self, records: Records) -> list[int]:
        """Return 1 for every record: inputs have one shape."""
        return [1] * len(records)

    def predict(self, model: nn.Module, batch: Batch) -> Predictions:
        """Return the logits of every record; see ``Task.predict``.

        Raises:
            UnsupportedModelError: The model cannot read the inputs, or yields no (B, K) logits.
        """
        what = f"a classifier over {self.num_classes} classes"
        logits = outputs_BD(model, batch.inputs["x"], self.num_classes, what)
        return Predictions(logits, batch.targets_N, batch.rows_N, len(batch))

    def neutral(
        self, records: Records, seed: int, epoch: int, answers: Sequence[str] = ()
    ) -> Records:
        """Return the records under random labels that differ from the true ones.

        Source: SalUn (Fan et al., 2024), random labelling with y' != y.

        Raises:
            ConfigError: Answers of one's own are given; a classifier has classes only.
        """
        if answers:
            raise ConfigError("a classifier takes no answers of text; leave `answers` out")
        true = self._labels(records, range(len(records)))
        shifts = [
            int(stream(seed, "random-label", epoch, i).integers(1, self.num_classes))
            for i in records.ids
        ]
        other = (true + np.array(shifts, dtype=np.int64)) % self.num_classes
        return records.replace(**{self.labels: other.tolist()})

    def fingerprint(self) -> dict[str, Any]:
        """Return kind, classes and columns."""
        return {
            "kind": self.kind,
            "num_classes": self.num_classes,
            "inputs": self.inputs,
            "labels": self.labels,
        }

    def _labels(self, records: Records, rows: Sequence[int]) -> np.ndarray:
        column = records[self.labels]
        try:
            labels = np.array([float(column[i]) for i in rows])
        except (ValueError, TypeError) as error:
            raise DataError(
                f"column {self.labels!r}: {error}; map labels to 0..{self.num_classes - 1}"
            ) from error
        fits = (labels >= 0) & (labels < self.num_classes) & (labels == np.floor(labels))
        if not fits.all():
            wrong = [row for row, fit in zip(rows, fits, strict=True) if not fit]
            named = listing(f"{records.ids[row]} = {column[row]}" for row in wrong)
            raise DataError(
                f"column {self.labels!r}: {len(wrong)} labels are no integers in "
                f"0..{self.num_classes - 1} ({named}); map them to that range"
            )
        return labels.astype(np.int64)
