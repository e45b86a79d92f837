"""The one scoring pass: per-record, per-target values from which every likelihood metric follows.

Shape legend: R records, N target positions (a language model's answer tokens, a classifier's
label), V classes or vocabulary.
"""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext

import numpy as np
import torch
from torch import nn

from expunge.core.errors import NumericalError, listing
from expunge.core.progress import Progress
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.modes import evaluating
from expunge.engine.task import Predictions, Task

_LOWEST = -1e4  # stands for log 0, so that 0 log 0 is 0


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """What a model says about records: numbers only, no text and no token ids.

    Values of one record's targets lie next to each other, records in the order of ``ids``.

    Attributes:
        ids: Record ids, length R.
        offsets: Where each record's targets begin, and the end: length R + 1.
        logprob_N: Log-probability of the target, in nats.
        rank_N: How many symbols the model holds more likely than the target; 0 is the top.
        mean_N: Mean log-probability under the model's own distribution: minus its entropy.
        variance_N: Variance of the log-probability under the model's own distribution.
        rouge_R: ROUGE-L recall of the greedy answer; ``None`` when nothing was generated.

    Raises:
        NumericalError: A log-probability is NaN, infinite or positive.
    """

    ids: tuple[str, ...]
    offsets: np.ndarray
    logprob_N: np.ndarray
    rank_N: np.ndarray
    mean_N: np.ndarray
    variance_N: np.ndarray
    rouge_R: np.ndarray | None = None

    def __post_init__(self) -> None:
        good_N = np.isfinite(self.logprob_N) & (self.logprob_N <= 0)
        if not good_N.all():
            wrong = sorted({self.ids[row] for row in self._rows_N[~good_N]})
            raise NumericalError(
                f"{len(wrong)} records have a log-probability that is not finite or above 0 "
                f"({listing(wrong)}); the model's weights or outputs are damaged"
            )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def n_R(self) -> np.ndarray:
        """Number of targets of each record."""
        return np.diff(self.offsets)

    @property
    def nll_R(self) -> np.ndarray:
        """Negative log-likelihood of each record, summed over its targets in float64, in nats."""
        return -np.bincount(self._rows_N, weights=self.logprob_N, minlength=len(self))

    @property
    def loss_R(self) -> np.ndarray:
        """Negative log-likelihood of each record per target, in nats."""
        return self.nll_R / self.n_R

    @property
    def greedy_N(self) -> np.ndarray:
        """Whether no symbol is more likely than the target."""
        return self.rank_N == 0

    def rows(self, ids: tuple[str, ...]) -> np.ndarray:
        """Return the row numbers of these ids, in this order."""
        place = {record_id: row for row, record_id in enumerate(self.ids)}
        return np.array([place[record_id] for record_id in ids], dtype=np.int64)

    @property
    def _rows_N(self) -> np.ndarray:
        return np.repeat(np.arange(len(self)), self.n_R)


@torch.no_grad()
def score(
    model: nn.Module,
    task: Task,
    records: Records,
    run: Run,
    *,
    batch_size: int = 32,
    bar: Progress | None = None,
) -> Scores:
    """Run the model once over the records.

    Batches are sorted by length, so that little is padding; the result is in record order and does
    not depend on batch size, padding or order beyond rounding.

    Args:
        model: The model, put in eval mode for the moment and moved to ``run.device``.
        task: How to run it.
        records: What to score.
        run: Context: device, progress, cancellation.
        batch_size: Records per forward pass.
        bar: The progress of a larger work that this is part of; one of its own when absent.

    Raises:
        NumericalError: The model yields NaN or infinity.
        Interrupted: Cancelled, or the budget is spent.
    """
    offsets = np.concatenate([[0], np.cumsum(task.num_targets(records), dtype=np.int64)])
    values = np.empty((4, offsets[-1]), dtype=np.float32)
    order = np.argsort(task.lengths(records), kind="stable")
    model.to(run.device)
    own = nullcontext(bar) if bar else run.progress("scoring", len(records))
    with evaluating(model), own as bar:
        for start in range(0, len(order), batch_size):
            run.check()
            rows = order[start : start + batch_size]
            batch = task.batch(records, rows.tolist()).to(run.device)
            # Predictions come record by record, so their places are the records' runs of targets.
            places = np.concatenate([np.arange(offsets[r], offsets[r + 1]) for r in rows])
            values[:, places] = _describe(task.predict(model, batch)).cpu().numpy()
            bar.advance(len(rows))
    logprob_N, rank_N, mean_N, variance_N = values
    return Scores(records.ids, offsets, logprob_N, rank_N.astype(np.int32), mean_N, variance_N)


def _describe(predictions: Predictions) -> torch.Tensor:
    """Return log-probability, rank, mean and variance of each target, shape (4, N)."""
    logprobs_NV = torch.log_softmax(predictions.logits_NV.float(), dim=1)
    target_N1 = logprobs_NV.gather(1, predictions.targets_N[:, None])
    rank_N = (logprobs_NV > target_N1).sum(1)
    probs_NV = logprobs_NV.exp()
    logprobs_NV = logprobs_NV.clamp(min=_LOWEST)
    mean_N = (probs_NV * logprobs_NV).sum(1)
    variance_N = (probs_NV * (logprobs_NV - mean_N[:, None]) ** 2).sum(1)
    return torch.stack([target_N1[:, 0], rank_N.float(), mean_N, variance_N])
