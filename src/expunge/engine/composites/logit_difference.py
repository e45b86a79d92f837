"""Logits of a target, corrected by those of an assistant that knows what is to be forgotten.

Shape legend: B records, T tokens, V vocabulary; the dots stand for any leading axes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from expunge.engine.composites.composite import Composite, composites

Rule = Literal["difference", "offset"]


@composites.register("logit_difference")
class LogitDifference(Composite):
    """A target whose logits are lowered where an assistant's are high.

    Args:
        target: The model before unlearning.
        assistant: The model that knows the forget set, over the same vocabulary.
        alpha: How much is subtracted (α); 0 leaves the target's logits bit by bit.
        rule: ``difference``: ``z - α log softmax(z_a)`` (ULD). ``offset``: ``z - α relu(z_a - z)``
            (Who's Harry Potter).
        keep_ratio: While writing answers, only tokens that the target itself holds plausible are
            allowed: those within this factor of its best one, or among its best ones; 0 allows all.
            Scores are never filtered.
        min_keep: Plausible tokens at least.
    """

    kind = "logit_difference"

    def __init__(
        self,
        target: Any,
        assistant: Any,
        *,
        alpha: float,
        rule: Rule = "difference",
        keep_ratio: float = 0.0,
        min_keep: int = 5,
    ) -> None:
        super().__init__(target)
        self.assistant = assistant
        self.alpha, self.rule = alpha, rule
        self.keep_ratio, self.min_keep = keep_ratio, min_keep

    def parts(self) -> dict[str, Any]:
        """Return target and assistant."""
        return {"target": self.target, "assistant": self.assistant}

    def settings(self) -> dict[str, Any]:
        """Return α, the rule and the filter."""
        names = ("alpha", "rule", "keep_ratio", "min_keep")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def assemble(
        cls,
        parts: Mapping[str, Any],
        settings: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
    ) -> LogitDifference:
        """Make a composite of its parts; see ``Composite.assemble``."""
        return cls(parts["target"], parts["assistant"], **settings)

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        if generation_config.use_cache is not False:
            model_kwargs.setdefault("past_key_values", PairCache())
        prepare: Any = super()._prepare_cache_for_generation  # type: ignore[misc]
        return prepare(generation_config, model_kwargs, *args, **kwargs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        writing: bool = False,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Run both models; the assistant's key/value cache rides on the target's.

        While ``generate`` is writing, implausible tokens get -inf.
        """
        caches: tuple[Any, Any] = (None, None)
        if use_cache:
            cache: Any = PairCache() if past_key_values is None else past_key_values
            caches = (cache, cache.assistant)
        target, assistant = (
            model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=bool(use_cache),
                logits_to_keep=logits_to_keep,
            ).logits
            for model, cache in zip((self.target, self.assistant), caches, strict=True)
        )
        logits = combine(target, assistant, self.alpha, self.rule)
        if writing and self.keep_ratio > 0:
            allowed = plausible(target.log_softmax(-1), self.keep_ratio, self.min_keep)
            logits = logits.masked_fill(~allowed, -torch.inf)
        return CausalLMOutputWithPast(logits=logits, past_key_values=caches[0])

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Tell ``forward`` that an answer is being written."""
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]
        return {**inputs, "writing": True}


class PairCache(DynamicCache):
    """The target's key/value cache, with the assistant's beside it, moved about together."""

    def __init__(self) -> None:
        super().__init__()
        self.assistant = DynamicCache()

    def reorder_cache(self, beam_idx: Any) -> None:
        """Put the rows of both in another order, as beam search asks."""
        super().reorder_cache(beam_idx)
        self.assistant.reorder_cache(beam_idx)

    def crop(self, max_length: int) -> None:
        """Cut both to a length."""
        super().crop(max_length)
        self.assistant.crop(max_length)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row of both."""
        super().batch_repeat_interleave(repeats)
        self.assistant.batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows of both."""
        super().batch_select_indices(indices)
        self.assistant.batch_select_indices(indices)


def combine(
    target: Float[Tensor, "... V"], assistant: Float[Tensor, "... V"], alpha: float, rule: Rule
) -> Float[Tensor, "... V"]:
    """Return the composite's logits.

    The assistant is normalised under ``difference``, so that adding a constant to its logits
    changes nothing.

    Source: ULD (Ji et al., 2024), eq. 2; Who's Harry Potter (Eldan & Russinovich, 2023), eq. 1.
    """
    if alpha == 0:
        return target
    if rule == "offset":
        return target - alpha * torch.relu(assistant - target)
    return target - alpha * assistant.log_softmax(-1)


def plausible(
    logprobs: Float[Tensor, "... V"], ratio: float, min_keep: int
) -> Bool[Tensor, "... V"]:
    """Return which tokens are within a factor of the best one, or among the best ones.

    Args:
        logprobs: The target's log-probabilities.
        ratio: The factor r, also the share of the vocabulary that counts as best.
        min_keep: Best tokens at least; the official code lets them be none.

    Source: ULD (Ji et al., 2024), section 3.3; contrastive decoding (Li et al., 2023), eq. 2.
    """
    size = logprobs.shape[-1]
    count = min(max(int(ratio * size), min_keep, 1), size)
    near = logprobs.amax(-1, keepdim=True) + math.log(ratio)
    best = logprobs.topk(count, dim=-1).values[..., -1:]
    return logprobs >= torch.minimum(near, best)
