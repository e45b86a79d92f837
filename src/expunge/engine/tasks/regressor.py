"""Regressors: any ``nn.Module`` that maps a batch of inputs to numbers.

Shape legend: B records of a batch, D outputs (components of a vector, or quantiles).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from expunge.core.errors import ConfigError, DataError, listing
from expunge.core.records import Records
from expunge.core.streams import stream
from expunge.engine.forward import outputs_BD, stacked
from expunge.engine.task import Batch, Estimates, task

RegressionLoss = Literal["l1", "mse", "quantile"]


@task("regressor", "any nn.Module: inputs (B, ...) -> numbers (B, D)")
class Regressor:
    """Task for regressors; each record is one target position.

    A record's loss is the mean absolute or squared error over its components, or the mean pinball
    loss over quantiles; it stands where other tasks have a negative log-likelihood.

    Args:
        num_outputs: Components of a target (D); 1 for plain numbers.
        loss: ``"l1"``, ``"mse"`` or ``"quantile"``.
        quantiles: Which quantiles of a plain number the model yields, with ``"quantile"``; D is
            their number then.
        mean: Mean of each component over the training targets, by which neutral ones are drawn.
        deviation: Standard deviation of each component (one degree of freedom taken).
        inputs: Column with the inputs; numeric arrays of one shape.
        labels: Column with the target of each record: a number, or D of them.

    Raises:
        ConfigError: The loss is unknown, or quantiles do not fit.
    """

    kind: ClassVar[str] = "regressor"

    def __init__(
        self,
        num_outputs: int = 1,
        *,
        loss: RegressionLoss = "l1",
        quantiles: Sequence[float] = (),
        mean: Sequence[float] = (),
        deviation: Sequence[float] = (),
        inputs: str = "x",
        labels: str = "y",
    ) -> None:
        if num_outputs < 1:
            raise ConfigError(f"num_outputs = {num_outputs}: a regressor needs at least 1 output")
        if loss not in get_args(RegressionLoss):
            raise ConfigError(
                f"loss = {loss!r} is unknown; choose {', '.join(get_args(RegressionLoss))}"
            )
        if (loss == "quantile") != bool(quantiles):
            raise ConfigError(
                f"loss = {loss!r} with quantiles = {list(quantiles)}: the quantile loss needs "
                "quantiles, and no other takes them"
            )
        if not all(0 < q < 1 for q in quantiles) or list(quantiles) != sorted(set(quantiles)):
            raise ConfigError(
                f"quantiles = {list(quantiles)} must lie between 0 and 1, in rising order"
            )
        if quantiles and num_outputs != 1:
            raise ConfigError(
                f"num_outputs = {num_outputs}: quantiles are of one number; leave num_outputs at 1"
            )
        self.num_targets_each = num_outputs
        self.num_outputs = len(quantiles) or num_outputs
        self.loss, self.quantiles = loss, tuple(quantiles)
        self.mean, self.deviation = tuple(mean), tuple(deviation)
        self.inputs, self.labels = inputs, labels

    def batch(self, records: Records, rows: Sequence[int], *, targets: bool = True) -> Batch:
        """Stack inputs and targets; see ``Task.batch``.

        Raises:
            DataError: Inputs differ in shape or are no numbers, or a target is no finite number.
        """
        wanted = self._targets(records, rows) if targets else np.empty((0, self.num_targets_each))
        return Batch(
            ids=tuple(records.ids[row] for row in rows),
            inputs={"x": stacked(records, rows, self.inputs)},
            targets_N=torch.from_numpy(wanted.astype(np.float32)),
            rows_N=torch.arange(len(rows)),
        )

    def num_targets(self, records: Records) -> list[int]:
        """Return 1 for every record."""
        return [1] * len(records)

    def lengths(self, records: Records) -> list[int]:
        """Return 1 for every record: inputs have one shape."""
        return [1] * len(records)

    def predict(self, model: nn.Module, batch: Batch) -> Estimates:
        """Return the outputs of every record; see ``Task.predict``.

        Raises:
            UnsupportedModelError: The model cannot read the inputs, or yields no (B, D) numbers.
        """
        what = f"a regressor with {self.num_outputs} outputs"
        outputs = outputs_BD(model, batch.inputs["x"], self.num_outputs, what)
        return Estimates(outputs, batch.targets_N, batch.rows_N, len(batch), loss=self._loss_B)

    def neutral(
        self, records: Records, seed: int, epoch: int, answers: Sequence[str] = ()
    ) -> Records:
        """Return the records under targets drawn from a Gaussian fitted to all training targets.

        Source: Deep Regression Unlearning (Tarun et al., 2023), Gaussian Amnesiac.

        Raises:
            ConfigError: Answers of text are given, or mean and deviation are unknown or zero.
        """
        if answers:
            raise ConfigError("a regressor takes no answers of text; leave `answers` out")
        size = self.num_targets_each
        if len(self.mean) != size or len(self.deviation) != size:
            raise ConfigError(
                "the mean and standard deviation of the training targets are not known; pass "
                f"`mean` and `deviation` ({size} numbers each) to the regressor task"
            )
        if not all(np.isfinite(self.deviation)) or min(self.deviation) <= 0:
            raise ConfigError(
                f"deviation = {list(self.deviation)}: a constant target has no Gaussian to draw "
                "from; drop the component that never varies"
            )
        drawn = [
            stream(seed, "random-target", epoch, i).normal(self.mean, self.deviation)
            for i in records.ids
        ]
        targets = np.array(drawn, dtype=np.float64).reshape(len(records), size)
        column: Any = targets[:, 0].tolist() if size == 1 else targets
        return records.replace(**{self.labels: column})

    def fingerprint(self) -> dict[str, Any]:
        """Return kind, outputs, loss and columns."""
        return {
            "kind": self.kind,
            "num_outputs": self.num_outputs,
            "loss": self.loss,
            "quantiles": list(self.quantiles),
            "mean": list(self.mean),
            "deviation": list(self.deviation),
            "inputs": self.inputs,
            "labels": self.labels,
        }

    def _targets(self, records: Records, rows: Sequence[int]) -> np.ndarray:
        column = records[self.labels]
        try:
            targets = np.array([np.asarray(column[row], dtype=np.float64) for row in rows])
            targets = targets.reshape(len(rows), self.num_targets_each)
        except (ValueError, TypeError) as error:
            raise DataError(
                f"column {self.labels!r}: {error}; give {self.num_targets_each} numbers a record"
            ) from error
        wrong = [
            row for row, fine in zip(rows, np.isfinite(targets).all(1), strict=True) if not fine
        ]
        if wrong:
            raise DataError(
                f"column {self.labels!r}: {len(wrong)} targets are NaN or infinite "
                f"({listing(records.ids[row] for row in wrong)}); fill or drop them"
            )
        return targets

    def _loss_B(self, outputs: Tensor, targets: Tensor) -> Tensor:
        error_BD = targets - outputs
        if self.loss == "mse":
            return (error_BD**2).mean(1)
        if self.loss == "l1":
            return error_BD.abs().mean(1)
        share_D = error_BD.new_tensor(self.quantiles)
        return torch.maximum(share_D * error_BD, (share_D - 1) * error_BD).mean(1)
