"""ULD: subtract the logits of a small assistant that was trained with reversed objectives."""

from __future__ import annotations

import copy
import warnings
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn

from expunge.core.config import config
from expunge.engine.blocks import require_blocks
from expunge.engine.loop import Stream, Term
from expunge.engine.losses import to_uniform
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Lora, Scope
from expunge.engine.task import Batch
from expunge.forget.method import Given, Need, Sight, method
from expunge.train.supervised import likelihood


@config
class ULDConfig:
    """Settings of ULD."""

    layers: Annotated[int, Field(ge=1)] | None = None
    """First blocks of the target that make the assistant (K); a quarter of them when absent."""
    alpha: Annotated[float, Field(ge=0)] = 0.8
    """How much of the assistant's logits is subtracted (α)."""
    retain_weight: Annotated[float, Field(ge=0)] = 5.0
    """Weight of the term that keeps the assistant ignorant of retain records (w_r)."""
    keep_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Plausibility filter while writing answers (r); 0 turns it off."""
    min_keep: Annotated[int, Field(ge=2)] = 5
    """Plausible tokens at least."""
    scope: Scope = Scope(lora=Lora(rank=16, alpha=32.0))
    """Which weights of the assistant may move: low-rank adapters."""
    schedule: Schedule = Schedule(
        epochs=10, lr=1e-3, warmup_epochs=1, decay="linear", weight_decay=0.01
    )
    """Settings of the loop."""


def _needs(config: ULDConfig) -> set[Need]:
    return {"forget", "labels", *({"retain"} if config.retain_weight else set())}  # type: ignore[arg-type]


def _check(model: nn.Module, given: Given, config: ULDConfig) -> None:
    require_blocks(model, config.layers or 1, "forget.layers")


@method(
    "uld",
    kinds={"causal_lm"},
    needs=_needs,
    source="ULD (Ji et al., 2024)",
    evidence="output-suppressed",
    check=_check,
)
def uld(model: nn.Module, sight: Sight, config: ULDConfig) -> nn.Module:
    """Train an assistant to know the forget set and nothing else, and subtract its logits.

    The assistant is the target's first K blocks with its embeddings, final norm and output head; it
    minimises ``L = CE(forget) + w_r KL(U ‖ p_a)(retain)`` with U uniform. The composite's logits
    are ``z - α log softmax(z_a)``. The target's weights stay as they are and still hold the forget
    set, and the assistant is a concentrated leak of it: store it like the forgotten records.

    Source: ULD (Ji et al., 2024), eq. 2 to 5.
    Needs: forget and (few) retain records with labels.
    Units: nats per target position.
    When to use: weights must not change, or retain records are few. It is suppression, not erasure.
    Cost: training of a fraction of the model; inference costs 1 + K / blocks times as much.
    Differs from the official code: assistant logits are always normalised, so that a constant in
        them changes nothing; scores are never filtered; filtered tokens get -inf, and at least
        ``min_keep`` tokens are allowed; only answer positions enter the losses; adapters have no
        dropout. Paraphrases and wrong answers are not added to the data.
    """
    from expunge.engine.composites.logit_difference import LogitDifference

    if not config.retain_weight:
        warnings.warn(
            "forget.retain_weight = 0: the assistant will know what the target's first blocks know "
            "of other records too, and subtracting it harms them",
            stacklevel=2,
        )
    assistant = first_blocks(model, config.layers)
    streams = {"forget": Stream(sight.forget)}
    terms = [likelihood(sight.task, "forget")]
    if config.retain_weight:
        streams["retain"] = Stream(sight.retain)
        terms.append(Term("retain", _ignorance(sight), config.retain_weight, "target"))
    sight.fit(assistant, streams, terms, config, guarded=False)
    assistant.train(model.training)
    return LogitDifference(
        model,
        assistant,
        alpha=config.alpha,
        keep_ratio=config.keep_ratio,
        min_keep=config.min_keep,
    )


def first_blocks(model: Any, layers: int | None) -> Any:
    """Return a model of the first blocks of another one; all else is a copy of its own.

    Args:
        model: A causal language model of transformers.
        layers: How many blocks (K); a quarter of them, at least one, when absent.

    Raises:
        ConfigError: The model has fewer.
    """
    names = require_blocks(model, layers or 1, "forget.layers")
    count = layers or max(1, len(names) // 4)
    prefix = names[0].rpartition(".")[0]
    parent = model.get_submodule(prefix.rpartition(".")[0])
    attribute, blocks = prefix.rpartition(".")[2], model.get_submodule(prefix)
    setattr(parent, attribute, blocks[:count])  # so that the other blocks are never copied
    try:
        assistant = copy.deepcopy(model)
    finally:
        setattr(parent, attribute, blocks)
    assistant.config.num_hidden_layers = count
    kinds = getattr(assistant.config, "layer_types", None)
    if kinds is not None:
        assistant.config.layer_types = list(kinds)[:count]
    return assistant


def _ignorance(sight: Sight) -> Any:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return to_uniform(sight.task.predict(model, batch))

    return loss
