"""Answers by ``generate`` of transformers: draws, and models that keep a cache of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from expunge.engine.decoding import padded
from expunge.engine.device import forked_random


@torch.no_grad()
def write(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: Sequence[int],
    end: int,
    pad: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[list[int]]:
    """Return the continuation of every prompt, the end-of-text token and padding included.

    Prompts with equal limits share a batch, so that none is cut short by what is beside it.

    Args:
        model: A language model of transformers, or a composite.
        prompts: Token ids; at least one each.
        max_new_tokens: Longest continuation of each, at least 1.
        end: End-of-text token.
        pad: Padding token; masked out.
        temperature: 0 for greedy continuations; what is drawn otherwise depends on the batch.
        seed: Seed of the draws.
    """
    from transformers import GenerationConfig

    drawn: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        drawn = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    device = next(model.parameters()).device
    written: list[list[int]] = [[] for _ in prompts]
    for limit in sorted(set(max_new_tokens)):
        rows = [row for row, own in enumerate(max_new_tokens) if own == limit]
        ids_BT, seen_BT = padded([prompts[row] for row in rows], pad, left=True)
        settings = GenerationConfig(
            **drawn, max_new_tokens=limit, num_beams=1, eos_token_id=end, pad_token_id=pad
        )
        with _only(settings, model), forked_random(str(device)):
            torch.manual_seed(seed)
            output_BT = model.generate(  # type: ignore[operator]
                input_ids=ids_BT.to(device),
                attention_mask=seen_BT.to(device),
                generation_config=settings,
            )
        for row, tokens in zip(rows, output_BT[:, ids_BT.shape[1] :].tolist(), strict=True):
            written[row] = tokens
    return written


@contextmanager
def _only(settings: Any, model: nn.Module) -> Iterator[None]:
    """Hide the generation settings that came with the model, such as a repetition penalty.

    ``generate`` would fill the gaps of ours with them, and the answers would not be greedy.
    """
    owners = [part for part in model.modules() if "generation_config" in vars(part)]
    hidden = [owner.generation_config for owner in owners]
    for owner in owners:
        owner.generation_config = settings
    try:
        yield
    finally:
        for owner, own in zip(owners, hidden, strict=True):
            owner.generation_config = own
