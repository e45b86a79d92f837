"""Key and value caches of causal language models: shared prompts and greedy answers.

Shape legend: B rows, P distinct prompts, T tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAST_SHARED = 4
"""Prompts shorter than this are not worth a pass of their own."""
PROMPTS = 64
"""Prompts whose keys and values are held at once."""
AT_ONCE = 16
"""Prompts that are read in one forward pass."""
TOKENS = 2048
"""Tokens of one forward pass over answers: enough to keep a processor busy."""

Encoded = tuple[list[int], int]
"""Tokens of a record, and the index of its first answer token."""


def keeps_cache(model: nn.Module) -> bool:
    """Return whether a model's past keys and values can be kept, repeated and thinned out.

    Composites hold several caches; layers with a window or a state have none that can be cut; and
    models that take no positions count the cache's places, padding included.
    """
    if hasattr(model, "parts") or getattr(model, "reads_prompt", False):
        return False
    settings = getattr(model, "config", None)
    if "local" in str(getattr(settings, "attention_types", "")):
        return False
    takes = inspect.signature(model.forward).parameters
    kinds = set(getattr(settings, "layer_types", None) or ["full_attention"])
    window = getattr(settings, "sliding_window", None) and getattr(
        settings, "use_sliding_window", True
    )
    return (
        {"past_key_values", "position_ids"} <= takes.keys()
        and kinds == {"full_attention"}
        and not window
    )


def apart(encoded: Sequence[Encoded], *, share: bool) -> tuple[list[list[int]], list[int]]:
    """Divide records into blocks whose prompts are read once, and the rest.

    Args:
        encoded: Tokens of the records.
        share: Whether the model allows it.

    Returns:
        Rows of each block, whose prompts have similar lengths; and rows that share no prompt.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    if share:
        for row, (tokens, start) in enumerate(encoded):
            groups.setdefault(tuple(tokens[:start]), []).append(row)
    shared = sorted(
        (rows for prompt, rows in groups.items() if len(rows) > 1 and len(prompt) > LEAST_SHARED),
        key=lambda rows: (encoded[rows[0]][1], rows),
    )
    blocks = [
        [row for group in shared[at : at + PROMPTS] for row in group]
        for at in range(0, len(shared), PROMPTS)
    ]
    together = {row for rows in blocks for row in rows}
    return blocks, [row for row in range(len(encoded)) if row not in together]


def by_length(
    rows: Sequence[int], lengths: Sequence[int], batch_size: int, *, tokens: int = 0
) -> list[list[int]]:
    """Cut rows into batches of similar length.

    Args:
        rows: Row numbers.
        lengths: Length of every row.
        batch_size: Most rows of a batch.
        tokens: A batch may have more rows while its padded rows hold no more tokens than this.
    """
    batches: list[list[int]] = []
    for row in sorted(rows, key=lambda row: (lengths[row], row)):
        if batches:
            size = len(batches[-1]) + 1
            if size <= batch_size or size * lengths[row] <= tokens:
                batches[-1].append(row)
                continue
        batches.append([row])
    return batches


class Prompts:
    """Keys and values of some prompts, each read once, in batches of similar length.

    A prompt's last token is not read: it comes with what follows, as it predicts the next one.

    Args:
        model: A model that ``keeps_cache``; no logits should be made of its output.
        prompts: Token ids, two at least each; all distinct.
        pad: Padding token; masked out.
    """

    def __init__(self, model: nn.Module, prompts: Sequence[Sequence[int]], pad: int) -> None:
        self._device = next(model.parameters()).device
        lengths = [len(prompt) - 1 for prompt in prompts]
        self.seen_PT, order = torch.zeros(len(prompts), max(lengths), dtype=torch.long), []
        pasts = []
        for rows in by_length(range(len(prompts)), lengths, AT_ONCE):
            ids_BT, seen_BT = padded([prompts[row][:-1] for row in rows], pad)
            self.seen_PT[rows, : seen_BT.shape[1]] = seen_BT
            inputs = {"input_ids": ids_BT, "attention_mask": seen_BT}
            moved = {name: value.to(self._device) for name, value in inputs.items()}
            pasts.append(model(**moved, use_cache=True).past_key_values)
            order += rows
        back = torch.tensor(order).argsort().to(self._device)
        self._layers = [
            tuple(_stacked([getattr(p.layers[i], part) for p in pasts], back) for part in _PARTS)
            for i in range(len(pasts[0].layers))
        ]

    def past(self, owner_B: Tensor) -> Any:
        """Return the cache of B rows.

        Args:
            owner_B: Number of each row's prompt.
        """
        from transformers import DynamicCache

        rows = DynamicCache()
        chosen_B = owner_B.to(self._device)
        for index, (keys, values) in enumerate(self._layers):
            rows.update(keys[chosen_B], values[chosen_B], index)
        return rows


_PARTS = ("keys", "values")


def _stacked(parts: Sequence[Tensor], order: Tensor) -> Tensor:
    """Return (B, heads, T, D) tensors below each other, padded to one length, in another order."""
    longest = max(part.shape[2] for part in parts)
    widened = [F.pad(part, (0, 0, 0, longest - part.shape[2])) for part in parts]
    return torch.cat(widened)[order]


def answer_inputs(
    prompts: Prompts, owners: Sequence[int], encoded: Sequence[Encoded], pad: int
) -> tuple[dict[str, Any], Tensor]:
    """Return model inputs for answers to prompts that were read.

    Args:
        prompts: The prompts.
        owners: Number of each record's prompt.
        encoded: B records.
        pad: Padding token; masked out.

    Returns:
        Inputs, and the mask (B, T) of positions that predict answer tokens.
    """
    owner_B = torch.tensor(owners)
    suffixes = [tokens[start - 1 :] for tokens, start in encoded]
    ids_BT, seen_BT = padded(suffixes, pad)
    lengths_B = torch.tensor([start - 1 for _, start in encoded])
    predicts_BT = torch.zeros(ids_BT.shape, dtype=torch.bool)
    for row, suffix in enumerate(suffixes):
        predicts_BT[row, : len(suffix) - 1] = True
    return {
        "input_ids": ids_BT,
        "attention_mask": torch.cat([prompts.seen_PT[owner_B], seen_BT], dim=1),
        "position_ids": lengths_B[:, None] + torch.arange(ids_BT.shape[1]),
        "past_key_values": prompts.past(owner_B),
    }, predicts_BT


def padded(rows: Sequence[Sequence[int]], pad: int, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Return token ids and the mask of real ones, both (B, T)."""
    longest = max(len(row) for row in rows)
    ids_BT = torch.full((len(rows), longest), pad, dtype=torch.long)
    seen_BT = torch.zeros((len(rows), longest), dtype=torch.long)
    for index, row in enumerate(rows):
        where = slice(longest - len(row), None) if left else slice(len(row))
        ids_BT[index, where] = torch.tensor(row, dtype=torch.long)
        seen_BT[index, where] = 1
    return ids_BT, seen_BT


@torch.no_grad()
def greedy(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: Sequence[int],
    end: int,
    pad: int,
) -> list[list[int]]:
    """Return the greedy continuation of every prompt, without the end-of-text token.

    A row leaves the batch when its answer ends.

    Args:
        model: A model that ``keeps_cache``.
        prompts: Token ids; at least one each.
        max_new_tokens: Longest continuation of each, at least 1.
        end: End-of-text token.
        pad: Padding token; masked out.
    """
    device = next(model.parameters()).device
    written: list[list[int]] = [[] for _ in prompts]
    past, seen_BT = _read(model, prompts, pad)
    seen_BT = torch.cat([seen_BT, seen_BT.new_ones(len(prompts), 1)], dim=1).to(device)
    next_B = torch.tensor([prompt[-1] for prompt in prompts], device=device)
    place_B = torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)
    limit_B = torch.tensor(list(max_new_tokens), device=device)
    rows = torch.arange(len(prompts), device=device)
    for step in range(1, max(max_new_tokens) + 1):
        output = model(
            input_ids=next_B[:, None],
            attention_mask=seen_BT,
            position_ids=place_B[:, None],
            past_key_values=past,
            use_cache=True,
        )
        past, next_B = output.past_key_values, output.logits[:, -1].argmax(1)
        goes_on = next_B != end
        for row, token in zip(rows[goes_on].tolist(), next_B[goes_on].tolist(), strict=True):
            written[row].append(token)
        goes_on &= limit_B[rows] > step
        if not bool(goes_on.any()):
            break
        if not bool(goes_on.all()):
            left = goes_on.nonzero()[:, 0]
            past.batch_select_indices(left)
            rows, next_B = rows[left], next_B[left]
            seen_BT, place_B = seen_BT[left], place_B[left]
        place_B = place_B + 1
        seen_BT = torch.cat([seen_BT, seen_BT.new_ones(len(seen_BT), 1)], dim=1)
    return written


def _read(model: nn.Module, prompts: Sequence[Sequence[int]], pad: int) -> tuple[Any, Tensor]:
    """Read all but the last token of prompts; return the cache and which of it is real."""
    if min(len(prompt) for prompt in prompts) < 2:
        ids_BT, seen_BT = padded([prompt[:-1] or [pad] for prompt in prompts], pad)
        seen_BT[[row for row, prompt in enumerate(prompts) if len(prompt) < 2]] = 0
        device = next(model.parameters()).device
        inputs = {"input_ids": ids_BT, "attention_mask": seen_BT}
        moved = {name: value.to(device) for name, value in inputs.items()}
        return model(**moved, use_cache=True).past_key_values, seen_BT
    distinct = list(dict.fromkeys(tuple(prompt) for prompt in prompts))
    place = {prompt: row for row, prompt in enumerate(distinct)}
    owner_B = torch.tensor([place[tuple(prompt)] for prompt in prompts])
    read = Prompts(model, distinct, pad)
    return read.past(owner_B), read.seen_PT[owner_B]
