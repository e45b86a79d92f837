"""The frozen reference model's likelihoods, computed once and kept by record id.

They replace a second model in memory: methods such as NPO need one number per record.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from expunge.core.digest import digest_json
from expunge.core.errors import NumericalError, listing
from expunge.core.files import read_json, write_json
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.modes import evaluating
from expunge.engine.task import Task
from expunge.engine.weights import state_digest


@dataclasses.dataclass(frozen=True)
class ReferenceNLL:
    """Negative log-likelihood of each record under the reference model, in nats.

    Attributes:
        values: By record id, summed over the record's target positions.
    """

    values: Mapping[str, float]

    def of(self, ids: Sequence[str], like: Tensor) -> Tensor:
        """Return the values of some records, shape (B,), with device and type of ``like``."""
        return torch.tensor([self.values[i] for i in ids], dtype=like.dtype, device=like.device)


@torch.no_grad()
def reference_nll(
    model: nn.Module, task: Task, records: Records, run: Run, *, batch_size: int = 32
) -> ReferenceNLL:
    """Score records under the model as it is now, or read the scores of an earlier call.

    The cache in ``run.folder`` is keyed by the digests of model, task and records.

    Args:
        model: The reference model, put in eval mode for the moment.
        task: How to run it.
        records: The records.
        run: Context: device, folder, progress.
        batch_size: Records per forward pass; sorted by length, so that little is padding.

    Raises:
        NumericalError: A record's likelihood is NaN or infinite.
    """
    key = digest_json([state_digest(model), task.fingerprint(), records.digest()])
    path = run.folder / f"reference-nll-{key[:16]}.json"
    if path.exists():
        return ReferenceNLL(read_json(path))
    order = np.argsort(task.lengths(records), kind="stable")
    values: dict[str, float] = {}
    model.to(run.device)
    with evaluating(model), run.progress("reference likelihoods", len(records)) as bar:
        for start in range(0, len(order), batch_size):
            batch = task.batch(records, order[start : start + batch_size].tolist()).to(run.device)
            nll_B = task.predict(model, batch).nll_B().double().tolist()
            values.update(zip(batch.ids, nll_B, strict=True))
            bar.advance(len(batch))
    wrong = [i for i, value in values.items() if not math.isfinite(value)]
    if wrong:
        raise NumericalError(
            f"the likelihood of {len(wrong)} records under the original model is NaN or infinite "
            f"({listing(wrong)}); check their inputs"
        )
    write_json(path, values)
    return ReferenceNLL(values)
