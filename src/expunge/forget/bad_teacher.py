"""Bad teacher: learn the forget set from a random network, and the rest from the old one."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from expunge.core.config import config
from expunge.core.streams import stream
from expunge.engine.loop import Stream, Term
from expunge.engine.losses import softened_divergence
from expunge.engine.reset import redrawn
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope
from expunge.engine.task import Batch
from expunge.forget.method import Sight, method


@config
class BadTeacherConfig:
    """Settings of the bad teacher."""

    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Temperature of both distributions (τ)."""
    retain_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the retain set that is learned from the original model, drawn once. The paper takes
    0.3: average gap to retraining 8.1 points on 2,000 small pictures of Fashion-MNIST, 6.7 at 1."""
    scope: Scope = Scope()
    """Which weights may move."""
    schedule: Schedule = Schedule(
        epochs=1,
        batch_size=64,
        order="mixed",
        optimizer="adamw",
        lr=5e-4,
        weight_decay=0.0,
        freeze_norm_statistics=False,
    )
    """Settings of the loop; ``mixed`` shuffles forget and retain records together. The paper's
    learning rate of 1e-4 forgets nothing in the few steps that 2,000 pictures give: average gap to
    retraining 8.6 points, 6.7 at 5e-4 (``benchmarks/baselines.py``)."""


@method(
    "bad_teacher",
    kinds={"classifier"},
    needs={"forget", "retain", "labels", "reference_model"},
    source="Can Bad Teaching Induce Forgetting? (Chundawat et al., 2023)",
)
def bad_teacher(model: nn.Module, sight: Sight, config: BadTeacherConfig) -> nn.Module:
    """Imitate a random network on the forget set and the original model on the retain set.

    Minimises ``KL(q ‖ softmax(z/τ))`` over mixed batches, with ``q = softmax(z_bad/τ)`` for forget
    records and ``q = softmax(z_ref/τ)`` for retained ones. The bad teacher is the same
    architecture, every layer of it drawn anew. No loss reads a label.

    Source: Chundawat et al., 2023, eq. 4 (the unlearning objective).
    Needs: forget and retain records (their batches carry labels, which enter no loss); the original
        model, and as much memory again for the bad teacher.
    Units: nats.
    When to use: labels are not to be trusted. Forget records end near chance, which retraining does
        not do to records like others: expect more forgetting than retraining has.
    Cost: a forward and backward pass over forget records and a share of retained ones, with a
        forward pass of one teacher beside each.
    Differs from the official code: the mean runs over records, where the public code also divides
        by the number of classes; every layer at any depth is drawn anew.
    """
    good_model, task = sight.reference_model, sight.task
    bad_model = redrawn(good_model, sight.run.stream_seed("bad-teacher")).eval()
    count = math.ceil(config.retain_share * len(sight.retain))
    rows = stream(sight.run.seed, "retain-share").permutation(len(sight.retain))[:count]

    def learned_from(name: str, teacher_model: nn.Module) -> Term:
        def loss(model: nn.Module, batch: Batch) -> Tensor:
            with torch.no_grad():
                teacher = task.predict(teacher_model, batch)
            return softened_divergence(teacher, task.predict(model, batch), config.temperature)

        return Term(name, loss, 1.0, "target")

    streams = {
        "forget": Stream(sight.forget),
        "retain": Stream(sight.retain.take(sorted(rows.tolist()))),
    }
    terms = [learned_from("forget", bad_model), learned_from("retain", good_model)]
    return sight.fit(model, streams, terms, config)
