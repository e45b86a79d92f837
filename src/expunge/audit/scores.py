"""The one scoring pass: per-record, per-target values from which every likelihood metric follows.

Shape legend: R records, N target positions (a language model's answer tokens, a classifier's
label), V classes or vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from expunge.core.errors import NumericalError, listing
from expunge.core.progress import Progress
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.decoding import Encoded, apart, by_length, keeps_cache
from expunge.engine.modes import evaluating
from expunge.engine.task import Batch, Estimates, Predictions, Task

_LOWEST = -1e4  # stands for log 0, so that 0 log 0 is 0
_PIECE = 2**18  # numbers that a processor's cache holds


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """What a model says about records: numbers only, no text and no token ids.

    Values of one record's targets lie next to each other, records in the order of ``ids``.

    Attributes:
        ids: Record ids, length R.
        offsets: Where each record's targets begin, and the end: length R + 1.
        logprob_N: Log-probability of the target, in nats; of a regressor minus the record's loss.
        rank_N: How many symbols the model would choose before the target; 0 is the greedy choice.
        mean_N: Mean log-probability under the model's own distribution: minus its entropy.
        variance_N: Variance of the log-probability under the model's own distribution.
        measured: Further numbers of each record by name, (R,) or (R, D); see ``audit.measures``.

    Raises:
        NumericalError: A log-probability is NaN, infinite or positive.
    """

    ids: tuple[str, ...]
    offsets: np.ndarray
    logprob_N: np.ndarray
    rank_N: np.ndarray
    mean_N: np.ndarray
    variance_N: np.ndarray
    measured: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

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
    def rouge_R(self) -> np.ndarray | None:
        """ROUGE-L recall of the greedy answer; ``None`` when nothing was generated."""
        return self.measured.get("rouge_l")

    @property
    def greedy_N(self) -> np.ndarray:
        """Whether the target is the model's greedy choice."""
        return self.rank_N == 0

    @property
    def leading_R(self) -> np.ndarray:
        """How many targets of each record, from the first on, the model would choose by itself."""
        hits_N = self.greedy_N
        misses = np.append(np.flatnonzero(~hits_N), len(hits_N))
        first_miss_R = misses[np.searchsorted(misses, self.offsets[:-1])]
        leading_R: np.ndarray = np.minimum(first_miss_R, self.offsets[1:]) - self.offsets[:-1]
        return leading_R

    def rows(self, ids: tuple[str, ...]) -> np.ndarray:
        """Return the row numbers of these ids, in this order."""
        place = {record_id: row for row, record_id in enumerate(self.ids)}
        return np.array([place[record_id] for record_id in ids], dtype=np.int64)

    @property
    def _rows_N(self) -> np.ndarray:
        return np.repeat(np.arange(len(self)), self.n_R)


@runtime_checkable
class Tokenised(Protocol):
    """A task whose records become tokens, so that those of several sets can share a batch."""

    def encoded(self, records: Records) -> list[Encoded]:
        """Return tokens and the index of the first answer token of every record."""

    def batch_of(self, ids: tuple[str, ...], encoded: Sequence[Encoded]) -> Batch:
        """Return a batch."""

    def predict_shared(
        self, model: nn.Module, encoded: Sequence[Encoded], batch_size: int
    ) -> Iterator[tuple[list[int], Predictions]]:
        """Yield predictions of answers, each distinct prompt being read once."""


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
    own = nullcontext(bar) if bar else run.progress("scoring", len(records))
    with own as bar:
        [scores] = score_together(model, [(task, records)], run, batch_size=batch_size, bar=bar)
    return scores


@torch.no_grad()
def score_together(
    model: nn.Module,
    parts: Sequence[tuple[Task, Records]],
    run: Run,
    *,
    bar: Progress,
    batch_size: int = 32,
) -> list[Scores]:
    """Run the model once over several views of records; prompts that they share are read once.

    Args:
        model: The model, put in eval mode for the moment and moved to ``run.device``.
        parts: Records, and the task under which they are seen; all of one kind.
        run: Context: device, cancellation.
        bar: The progress of the work.
        batch_size: Records per forward pass.

    Raises:
        NumericalError: The model yields NaN or infinity.
        Interrupted: Cancelled, or the budget is spent.
    """
    sizes = [len(records) for _, records in parts]
    counts = [n for task, records in parts for n in task.num_targets(records)]
    offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    values = np.empty((4, offsets[-1]), dtype=np.float32)
    model.to(run.device)
    with evaluating(model):
        for chosen, predictions in _predictions(model, parts, run.device, batch_size):
            run.check()
            # Predictions come record by record, so their places are the records' runs of targets.
            places = np.concatenate([np.arange(offsets[r], offsets[r + 1]) for r in chosen])
            values[:, places] = _describe(predictions).cpu().numpy()
            bar.advance(len(chosen))
    found, start = [], 0
    for (_, records), size in zip(parts, sizes, strict=True):
        own = offsets[start : start + size + 1]
        logprob_N, rank_N, mean_N, variance_N = values[:, own[0] : own[-1]]
        ranks_N = rank_N.astype(np.int32)
        found.append(Scores(records.ids, own - own[0], logprob_N, ranks_N, mean_N, variance_N))
        start += size
    return found


def _predictions(
    model: nn.Module, parts: Sequence[tuple[Task, Records]], device: str, batch_size: int
) -> Iterator[tuple[list[int], Predictions]]:
    """Yield numbers of records (over all parts) and what the model says of them."""
    first = parts[0][0]
    if not isinstance(first, Tokenised):
        start = 0
        for task, records in parts:
            lengths = task.lengths(records)
            for rows in by_length(range(len(records)), lengths, batch_size):
                batch = task.batch(records, rows).to(device)
                yield [start + row for row in rows], task.predict(model, batch)
            start += len(records)
        return
    encoded = [
        record
        for task, records in parts
        for record in task.encoded(records)  # type: ignore[attr-defined]
    ]
    ids = [record_id for _, records in parts for record_id in records.ids]
    blocks, alone = apart(encoded, share=keeps_cache(model))
    for block in blocks:
        chosen = [encoded[row] for row in block]
        for rows, predictions in first.predict_shared(model, chosen, batch_size):
            yield [block[row] for row in rows], predictions
    for rows in by_length(alone, [len(tokens) for tokens, _ in encoded], batch_size):
        names = tuple(ids[row] for row in rows)
        batch = first.batch_of(names, [encoded[row] for row in rows]).to(device)
        yield rows, first.predict(model, batch)


def _describe(predictions: Predictions) -> torch.Tensor:
    """Return log-probability, rank, mean and variance of each target, shape (4, N).

    On a processor in pieces that stay in its cache: each number passes over all V columns.
    """
    logits_NV, targets_N = predictions.logits_NV, predictions.targets_N
    if isinstance(predictions, Estimates):  # numbers have no rank, and no distribution
        loss_N = -predictions.logprobs_N()
        return torch.stack([-loss_N, *torch.zeros(3, len(loss_N), device=loss_N.device)])
    size = (
        max(1, _PIECE // logits_NV.shape[1]) if logits_NV.device.type == "cpu" else len(targets_N)
    )
    pieces = [
        _describe_piece(logits_NV[at : at + size].float(), targets_N[at : at + size])
        for at in range(0, len(targets_N), max(size, 1))
    ]
    return torch.cat(pieces, dim=1) if pieces else logits_NV.new_empty(4, 0)


def _describe_piece(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    logprobs_NV = torch.log_softmax(logits_NV, dim=1)
    target_N1 = logprobs_NV.gather(1, targets_N[:, None])
    # Of equals the first counts as likelier, as for argmax: a model without preferences knows none.
    places_V = torch.arange(logprobs_NV.shape[1], device=logprobs_NV.device)
    before_NV = (logprobs_NV == target_N1) & (places_V < targets_N[:, None])
    rank_N = ((logprobs_NV > target_N1) | before_NV).sum(1)
    probs_NV = logprobs_NV.exp()
    logprobs_NV.clamp_(min=_LOWEST)
    mean_N = torch.linalg.vecdot(probs_NV, logprobs_NV)
    variance_N = torch.linalg.vecdot(probs_NV, logprobs_NV.sub_(mean_N[:, None]).square_())
    return torch.stack([target_N1[:, 0], rank_N.float(), mean_N, variance_N])
