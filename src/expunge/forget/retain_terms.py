"""Retain terms: what keeps the rest of the model in place, shared by several methods."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from expunge.engine.loop import Stream, Term
from expunge.engine.losses import divergence
from expunge.engine.task import Batch, Task
from expunge.forget.method import Need, Sight
from expunge.train.supervised import likelihood

RetainTerm = Literal["none", "nll", "kl"]


def retain_needs(kind: RetainTerm) -> set[Need]:
    """Return what a retain term needs to be given."""
    if kind == "none":
        return set()
    return {"retain"} if kind == "nll" else {"retain", "reference_model"}


def retain_streams(kind: RetainTerm, sight: Sight) -> dict[str, Stream]:
    """Return the stream that the retain term reads, by name; none without a term."""
    return {} if kind == "none" else {"retain": Stream(sight.retain)}


def retain_terms(kind: RetainTerm, weight: float, sight: Sight) -> list[Term]:
    """Return the retain term as a list of none or one.

    Args:
        kind: ``nll``: cross entropy on retain records. ``kl``: KL(reference ‖ model) at their
            target positions; prompt and padding never enter. ``none``: no term.
        weight: Factor of the term.
        sight: What the method may see.
    """
    if kind == "none":
        return []
    if kind == "nll":
        return [likelihood(sight.task, "retain", weight)]
    return [_kl(sight.task, sight.reference_model, weight)]


def _kl(task: Task, reference_model: nn.Module, weight: float) -> Term:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        with torch.no_grad():
            reference = task.predict(reference_model, batch)
        return divergence(reference, task.predict(model, batch))

    return Term("retain", loss, weight, "target")
