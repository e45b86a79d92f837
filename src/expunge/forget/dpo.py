"""Direct preference optimisation: a refusal is to win over the forgotten answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Protocol

from pydantic import Field
from torch import Tensor, nn

from expunge.core.config import config
from expunge.core.records import Records, concatenate
from expunge.data.neutral import Neutral
from expunge.engine.loop import Stream, Term
from expunge.engine.losses import preference
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope
from expunge.engine.task import Batch
from expunge.forget.method import Need, Sight, method
from expunge.forget.retain_terms import RetainTerm, retain_needs, retain_streams, retain_terms


@config
class DPOConfig:
    """Settings of DPO."""

    beta: Annotated[float, Field(gt=0)] = 0.1
    """Inverse temperature (β). It scales a sum over target positions: short answers want more."""
    answers: Neutral = Neutral()
    """Answers that are to win."""
    retain: RetainTerm = "nll"
    """Retain term: ``none``, ``nll`` or ``kl``."""
    gamma: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the forget term (γ)."""
    alpha: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the retain term (α)."""
    scope: Scope = Scope()
    """Which weights may move."""
    schedule: Schedule = Schedule(epochs=10, lr=1e-5, warmup_epochs=1)
    """Settings of the loop."""


def _needs(config: DPOConfig) -> set[Need]:
    return {"forget", "labels", "reference", "neutral", *retain_needs(config.retain)}


@method(
    "dpo",
    kinds={"causal_lm"},
    needs=_needs,
    source="DPO (Rafailov et al., 2023); TOFU (Maini et al., 2024)",
)
def dpo(model: nn.Module, sight: Sight, config: DPOConfig) -> nn.Module:
    """Make a refusal more likely than the forgotten answer, relative to the original model.

    Minimises ``L = γ (2/β) mean_i softplus(-β [(s_ref^w - s^w) - (s_ref^l - s^l)]) + α R(retain)``
    with s the negative log-likelihood of an answer, w a random refusal and l the forgotten answer.

    Source: DPO (Rafailov et al., 2023), eq. 7; Zhang et al., 2024, section 4 (as IdkDPO).
    Needs: forget records with labels, neutral answers, likelihoods of both under the original model
        (computed once, no second model); retain records.
    Units: nats, summed over the target positions of a record.
    When to use: refusals are wanted and the forgotten answer must lose, not only be outvoted.
    Cost: two forward and backward passes over forget records, one over retain records; one scoring
        pass over every refusal that is drawn.
    Differs from the official code: refusals are a function of seed, epoch and record; the reference
        is scored once in eval mode. An early version of TOFU's code left the ratio out.
    """
    stream = sight.neutral(config.answers)
    assert stream.at_epoch is not None
    others = [stream.at_epoch(epoch) for epoch in range(config.schedule.epochs)]
    return prefer(model, sight, config, others)


class Preference(Protocol):
    """Settings of a method that minimises the preference loss."""

    @property
    def beta(self) -> float:
        """Inverse temperature."""

    @property
    def retain(self) -> RetainTerm:
        """Retain term."""

    @property
    def gamma(self) -> float:
        """Weight of the forget term."""

    @property
    def alpha(self) -> float:
        """Weight of the retain term."""

    @property
    def scope(self) -> Scope:
        """Which weights may move."""

    @property
    def schedule(self) -> Schedule:
        """Settings of the loop."""


def prefer(
    model: nn.Module, sight: Sight, config: Preference, others: Sequence[Records]
) -> nn.Module:
    """Run the loop on the preference objective.

    Args:
        model: Changed in place.
        sight: What the method may see.
        config: Settings.
        others: The forget records under the answers that are to win; epoch e takes entry e modulo
            their number.
    """
    # Ids of their own, so that each pair of record and answer has its reference likelihood.
    named = [
        dataclasses.replace(records, ids=tuple(f"{i}@{place}" for i in records.ids))
        for place, records in enumerate(others)
    ]
    reference, preferred = sight.reference, sight.reference_of(concatenate(named))

    def forget_loss(model: nn.Module, batch: Batch, other: Batch) -> Tensor:
        nll_B = sight.task.predict(model, batch).nll_B()
        other_B = sight.task.predict(model, other).nll_B()
        return preference(
            other_B,
            preferred.of(other.ids, other_B),
            nll_B,
            reference.of(batch.ids, nll_B),
            config.beta,
        )

    streams = {
        "forget": Stream(sight.forget),
        "preferred": Stream(named[0], lambda epoch: named[epoch % len(named)], beside="forget"),
        **retain_streams(config.retain, sight),
    }
    terms = [
        Term("forget", forget_loss, config.gamma, beside="preferred"),
        *retain_terms(config.retain, config.alpha, sight),
    ]
    return sight.fit(model, streams, terms, config)
