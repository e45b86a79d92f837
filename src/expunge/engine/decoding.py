"""Key and value caches of causal language models: shared prompts and greedy answers.

Shape legend: B rows, P distinct prompts, T tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

LEAST_SHARED = 4
"""Prompts shorter than this are not worth a pass of their own."""

Encoded = tuple[list[int], int]
"""Tokens of a record, and the index of its first answer token."""


def keeps_cache(model: nn.Module) -> bool:
    """Return whether a model's past keys and values can be kept, repeated and thinned out.

    Composites hold several caches, and layers with a window or a state have none that can be cut.
    """
    if hasattr(model, "parts") or getattr(model, "reads_prompt", False):
        return False
    settings = getattr(model, "config", None)
    kinds = set(getattr(settings, "layer_types", None) or ["full_attention"])
    window = getattr(settings, "sliding_window", None) and getattr(
        settings, "use_sliding_window", True
    )
    return (
        "past_key_values" in inspect.signature(model.forward).parameters
        and kinds == {"full_attention"}
        and not window
    )


def batches_of(
    encoded: Sequence[Encoded], batch_size: int, *, share: bool
) -> list[tuple[list[int], bool]]:
    """Divide records among batches of similar length.

    Args:
        encoded: Tokens of the records.
        batch_size: Most records of a batch.
        share: Put records with the same prompt together, so that it is read once.

    Returns:
        Row numbers of each batch, and whether its prompts are shared.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    if share:
        for row, (tokens, start) in enumerate(encoded):
            groups.setdefault(tuple(tokens[: start - 1]), []).append(row)
    shared = sorted(
        (rows for prompt, rows in groups.items() if len(rows) > 1 and len(prompt) >= LEAST_SHARED),
        key=lambda rows: (encoded[rows[0]][1], max(len(encoded[r][0]) for r in rows), rows),
    )
    together = {row for rows in shared for row in rows}
    alone = sorted(
        (row for row in range(len(encoded)) if row not in together),
        key=lambda row: (len(encoded[row][0]), row),
    )
    plain = [alone[at : at + batch_size] for at in range(0, len(alone), batch_size)]
    return [*((rows, False) for rows in plain), *((r, True) for r in _packed(shared, batch_size))]


def _packed(groups: Sequence[list[int]], batch_size: int) -> list[list[int]]:
    """Fill batches with whole groups; a group larger than a batch is cut."""
    packed: list[list[int]] = []
    for group in groups:
        for at in range(0, len(group), batch_size):
            part = group[at : at + batch_size]
            if not packed or len(packed[-1]) + len(part) > batch_size:
                packed.append([])
            packed[-1] += part
    return packed


def shared_inputs(encoded: Sequence[Encoded], pad: int) -> tuple[dict[str, Tensor], Tensor]:
    """Return model inputs for records whose prompts are read once each.

    A prompt's last token stays with the answer, since it predicts the first answer token.

    Args:
        encoded: Tokens of the B records.
        pad: Padding token; masked out.

    Returns:
        Inputs for ``run_shared``, and the mask (B, T) of positions that predict answer tokens.
    """
    prompts = list(dict.fromkeys(tuple(tokens[: start - 1]) for tokens, start in encoded))
    place = {prompt: index for index, prompt in enumerate(prompts)}
    owner_B = torch.tensor([place[tuple(tokens[: start - 1])] for tokens, start in encoded])
    prefix_PT, prefix_seen_PT = padded(prompts, pad)
    suffixes = [tokens[start - 1 :] for tokens, start in encoded]
    ids_BT, seen_BT = padded(suffixes, pad)
    lengths_B = torch.tensor([start - 1 for _, start in encoded])
    positions_BT = lengths_B[:, None] + torch.arange(ids_BT.shape[1])
    predicts_BT = torch.zeros(ids_BT.shape, dtype=torch.bool)
    for row, suffix in enumerate(suffixes):
        predicts_BT[row, : len(suffix) - 1] = True
    return {
        "input_ids": ids_BT,
        "attention_mask": torch.cat([prefix_seen_PT[owner_B], seen_BT], dim=1),
        "position_ids": positions_BT,
        "prefix_ids": prefix_PT,
        "prefix_mask": prefix_seen_PT,
        "prefix_of": owner_B,
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


def past_of(model: nn.Module, inputs: dict[str, Tensor]) -> Any:
    """Read the prompts of ``shared_inputs`` and return their cache, one row for each record.

    The inputs that the prompts needed are taken out; no logits should be made of them.
    """
    ids_PT, seen_PT = inputs.pop("prefix_ids"), inputs.pop("prefix_mask")
    past = model(input_ids=ids_PT, attention_mask=seen_PT, use_cache=True).past_key_values
    past.batch_select_indices(inputs.pop("prefix_of"))
    return past


@torch.no_grad()
def greedy(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    end: int,
    pad: int,
) -> list[list[int]]:
    """Return the greedy continuation of every prompt, without the end-of-text token.

    What all prompts begin with is read once. A row leaves the batch when its answer ends.

    Args:
        model: A model that ``keeps_cache``.
        prompts: Token ids; at least one each.
        max_new_tokens: Longest continuation.
        end: End-of-text token.
        pad: Padding token; masked out.
    """
    device = next(model.parameters()).device
    common = _common(prompts)
    past, before = None, 0
    if len(prompts) > 1 and common >= LEAST_SHARED:
        first = torch.tensor([list(prompts[0][:common])], device=device)
        past = model(input_ids=first, use_cache=True, logits_to_keep=1).past_key_values
        past.batch_select_indices(torch.zeros(len(prompts), dtype=torch.long, device=device))
        before = common
    ids_BT, own_BT = padded([prompt[before:] for prompt in prompts], pad, left=True)
    ids_BT = ids_BT.to(device)
    seen_BT = torch.cat([torch.ones(len(prompts), before, dtype=torch.long), own_BT], dim=1)
    seen_BT = seen_BT.to(device)
    places_BT = (seen_BT.cumsum(1) - 1).clamp(min=0)[:, before:]
    written: list[list[int]] = [[] for _ in prompts]
    rows = torch.arange(len(prompts), device=device)
    for _ in range(max_new_tokens):
        output = model(
            input_ids=ids_BT,
            attention_mask=seen_BT,
            position_ids=places_BT,
            past_key_values=past,
            use_cache=True,
            logits_to_keep=1,
        )
        past, next_B = output.past_key_values, output.logits[:, -1].argmax(1)
        goes_on = next_B != end
        for row, token in zip(rows[goes_on].tolist(), next_B[goes_on].tolist(), strict=True):
            written[row].append(token)
        if not bool(goes_on.any()):
            break
        places_BT = places_BT[:, -1:] + 1
        seen_BT = torch.cat([seen_BT, seen_BT.new_ones(len(seen_BT), 1)], dim=1)
        ids_BT = next_B[:, None]
        if not bool(goes_on.all()):
            left = goes_on.nonzero()[:, 0]
            past.batch_select_indices(left)
            rows, ids_BT = rows[left], ids_BT[left]
            seen_BT, places_BT = seen_BT[left], places_BT[left]
    return written


def _common(prompts: Sequence[Sequence[int]]) -> int:
    """Return how many leading tokens all prompts share, leaving each one at least."""
    shortest = min(len(prompt) for prompt in prompts) - 1
    for place in range(shortest):
        if any(prompt[place] != prompts[0][place] for prompt in prompts):
            return place
    return shortest
