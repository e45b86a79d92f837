"""FLAT: loss adjustment with forget data only, from the variational form of an f-divergence."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from expunge.core.config import config
from expunge.core.errors import ConfigError, DataError, listing
from expunge.data.neutral import Neutral
from expunge.engine.loop import Stream, Term
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope
from expunge.engine.task import Batch
from expunge.forget.method import Given, Sight, method
from expunge.train.supervised import likelihood

Divergence = Literal["kl", "js", "pearson", "tv", "jenson-shannon", "total-variation"]
_ALIASES = {"jenson-shannon": "js", "total-variation": "tv"}


@config
class FlatConfig:
    """Settings of FLAT."""

    divergence: Divergence = "tv"
    """f-divergence between template and forgotten answers: ``kl``, ``js``, ``pearson``, ``tv``."""
    answers: Neutral = Neutral()
    """Template answers."""
    warmup_ce_steps: Annotated[int, Field(ge=0)] = 0
    """First steps that teach the template answers by cross entropy instead, for a model that holds
    them next to impossible; not part of the paper."""
    official_scale: bool = False
    """Average token probabilities over every position of the batch before the divergence, prompt
    and padding counting 0, as the release does; for comparison only."""
    scope: Scope = Scope()
    """Which weights may move."""
    schedule: Schedule = Schedule(epochs=5, lr=1e-5, warmup_epochs=1, decay="linear")
    """Settings of the loop."""


def _check(model: nn.Module, given: Given, config: FlatConfig) -> None:
    if config.official_scale and config.schedule.micro_batch is not None:
        raise ConfigError(
            "official_scale averages over all positions of a batch, so a batch cannot be split; "
            "leave schedule.micro_batch out"
        )


@method(
    "flat",
    kinds={"causal_lm"},
    needs={"forget", "labels", "neutral"},
    source="FLAT (Wang et al., 2025)",
    check=_check,
)
def flat(model: nn.Module, sight: Sight, config: FlatConfig) -> nn.Module:
    """Make template answers likely and forgotten answers unlikely, weighted by a divergence.

    Minimises ``L = mean_i -g*(p̄_e) + f*(g*(p̄_f))`` with p̄ the mean token probability of the
    template answer e and of the forgotten answer f, and g*, f* those of the divergence. The loss is
    bounded, and the weight of each half, its derivative, needs no tuning.

    Source: FLAT (Wang et al., 2025), eq. 6 and table 1.
    Needs: forget records with labels, template answers. Retain records and a reference are never
        read, not even by the collapse guard, which does not watch over this method.
    Units: none (probabilities).
    When to use: nothing but the forget records is at hand. Measure the refusal rate on what should
        stay: a refusal learned on many records spreads.
    Cost: two forward and backward passes over forget records.
    Differs from the official code: the mean runs over a record's own answer (``official_scale``
        takes the release's); each template answer is tokenised with its own labels. A template
        whose tokens the model holds next to impossible gets next to no pull.
    """
    divergence = _ALIASES.get(config.divergence, config.divergence)
    pull, push = PULL[divergence], PUSH[divergence]

    def probability(model: nn.Module, batch: Batch) -> Tensor:
        predictions = sight.task.predict(model, batch)
        sums_B = predictions.sum_rows(predictions.logprobs_N().exp())
        if config.official_scale and batch.positions is not None:
            places = len(batch) * (batch.positions.shape[1] - 1)
            return (sums_B.sum() / places).expand(len(batch))
        return sums_B / batch.counts_B

    template = dataclasses.replace(sight.neutral(config.answers), beside="forget")
    _require_other_answers(sight, template, config.schedule.epochs)
    first = config.warmup_ce_steps
    after = 1.0 if not first else lambda steps: float(len(steps) >= first)
    terms = [
        Term("forget", lambda model, batch: push(probability(model, batch)), after),
        Term("template", lambda model, batch: -pull(probability(model, batch)), after),
    ]
    if first:
        learn = likelihood(sight.task, "template").loss
        during = Term("template", learn, lambda steps: float(len(steps) < first), "target")
        terms.append(dataclasses.replace(during, name="warm-up"))
    streams = {"forget": Stream(sight.forget), "template": template}
    return sight.fit(model, streams, terms, config, guarded=False)


def _require_other_answers(sight: Sight, template: Stream, epochs: int) -> None:
    """Refuse template answers that are the forgotten ones: the two halves would cancel."""
    answers = getattr(sight.task, "answers", None)
    if answers is None or template.at_epoch is None:
        return
    true = answers(sight.forget)
    same = {
        record_id
        for epoch in range(epochs)
        for record_id, one, other in zip(
            sight.forget.ids, true, answers(template.at_epoch(epoch)), strict=True
        )
        if one == other
    }
    if same:
        raise DataError(
            f"{len(same)} records have a template answer for their true answer "
            f"({listing(sorted(same))}); drop them from the request, or the answer from the list"
        )


Function = Callable[[Float[Tensor, " B"]], Float[Tensor, " B"]]

# Of a probability v in [0, 1]: g*(v), which pulls the template up ...
PULL: dict[str, Function] = {
    "kl": lambda v: v,
    "js": lambda v: math.log(2) - F.softplus(-v),
    "pearson": lambda v: v,
    "tv": lambda v: torch.tanh(v) / 2,
}
# ... and f*(g*(v)), which pushes the forgotten answer down.
PUSH: dict[str, Function] = {
    "kl": lambda v: torch.exp(v - 1),
    "js": lambda v: F.softplus(v) - math.log(2),
    "pearson": lambda v: v**2 / 4 + v,
    "tv": lambda v: torch.tanh(v) / 2,
}
