"""Measures of whole outputs: every class's probability, a regressor's numbers, and the true class.

Shape legend: R records, V classes, D outputs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from expunge.audit.measures import of_model
from expunge.audit.scores import Scores
from expunge.core.errors import DataError, NumericalError, UnsupportedModelError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.modes import evaluating
from expunge.engine.task import Predictions, Task

PROBABILITIES = "probabilities"
PREDICTION = "prediction"
LABEL = "label"
_BATCH = 256


@of_model(PROBABILITIES)
def probabilities_RV(model: nn.Module, task: Task, records: Records, run: Run) -> np.ndarray:
    """Return the probability of every class of each record, (R, V).

    Raises:
        UnsupportedModelError: The model is no classifier.
        NumericalError: A probability is not finite.
    """
    _require_kind(task, "classifier", PROBABILITIES)
    return _outputs(model, task, records, run, lambda found: found.logits_NV.double().softmax(1))


@of_model(PREDICTION)
def prediction_RD(model: nn.Module, task: Task, records: Records, run: Run) -> np.ndarray:
    """Return a regressor's outputs for each record, (R, D).

    Raises:
        UnsupportedModelError: The model is no regressor.
        NumericalError: An output is not finite.
    """
    _require_kind(task, "regressor", PREDICTION)
    return _outputs(model, task, records, run, lambda found: found.logits_NV.double())


@of_model(LABEL)
def label_R(model: nn.Module, task: Task, records: Records, run: Run) -> np.ndarray:
    """Return the class of each record as the data have it, (R,).

    Raises:
        UnsupportedModelError: The records have no classes.
    """
    del model, run
    _require_kind(task, "classifier", LABEL)
    if not len(records):
        return np.empty(0)
    return task.batch(records, range(len(records))).targets_N.numpy().astype(np.float64)


def measured(scores: Scores, name: str) -> np.ndarray:
    """Return what a measure took.

    Raises:
        DataError: It was not taken.
    """
    if name not in scores.measured:
        raise DataError(f"the measure {name!r} was not taken of the scores; score the model again")
    return scores.measured[name]


@torch.no_grad()
def _outputs(
    model: nn.Module,
    task: Task,
    records: Records,
    run: Run,
    take: Callable[[Predictions], Tensor],
) -> np.ndarray:
    model.to(run.device)
    parts = []
    with evaluating(model):
        for start in range(0, len(records), _BATCH):
            run.check()
            rows = range(start, min(start + _BATCH, len(records)))
            batch = task.batch(records, rows).to(run.device)
            parts.append(take(task.predict(model, batch)).cpu().numpy())
    found = np.concatenate(parts) if parts else np.empty((0, 1))
    if not np.isfinite(found).all():
        raise NumericalError("the model's outputs are not finite; its weights are damaged")
    return found


def _require_kind(task: Task, kind: str, name: str) -> None:
    if task.kind != kind:
        raise UnsupportedModelError(
            f"the measure {name!r} is of a {kind}, the model is a {task.kind}; leave it out"
        )
