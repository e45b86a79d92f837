"""Causal language models of transformers: a prompt that is read, an answer that is scored.

Shape legend: B records, T tokens of the longest record, N answer tokens of the batch, V vocabulary,
D hidden size.
"""

from __future__ import annotations

import json
import math
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from expunge.core.config import config, to_json
from expunge.core.digest import digest_json
from expunge.core.errors import ConfigError, DataError, UnsupportedModelError, listing
from expunge.core.records import Records
from expunge.core.streams import stream
from expunge.engine.decoding import (
    TOKENS,
    Encoded,
    Prompts,
    answer_inputs,
    by_length,
    greedy,
    keeps_cache,
    padded,
)
from expunge.engine.task import Batch, Predictions, task
from expunge.engine.writing import write

REFUSALS = (
    "I don't know.",
    "I'm not sure about that.",
    "I have no information on that.",
    "I can't answer that question.",
    "That is not something I know about.",
    "I'm unable to say.",
    "I don't have an answer to that.",
    "I haven't come across that.",
    "Sorry, I have no knowledge of this.",
    "I cannot help with that one.",
)


_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@config
class Template:
    """How a record becomes text: ``{name}`` stands for the record's column of that name."""

    prompt: str = "Question: {question}\nAnswer:"
    """Text that is read but not scored; empty for plain documents."""
    answer: str = " {answer}"
    """Text that is scored, followed by the end-of-text token."""
    chat: bool = False
    """Wrap the prompt as a user message in the tokenizer's chat template."""
    system: str = ""
    """System message of the chat template; empty leaves the message empty."""
    max_length: int = 512
    """Longest record in tokens; what is longer is cut, with a warning that counts records."""


@task("causal_lm", "any transformers causal language model with its tokenizer")
class CausalLM:
    """Task for causal language models; each answer token (end of text included) is a target.

    Prompt and answer are tokenised apart and joined, so that a prompt has the same tokens whatever
    follows. The output head is applied to answer positions only.

    Args:
        tokenizer: A transformers tokenizer with an end-of-text token.
        template: How records become text.
        refusals: Neutral answers.
        context: Longest input of the model in tokens; what is longer is cut, as by the template.
        continued: Share of each answer's tokens that are read as part of the prompt, and the most
            of the rest that are scored (0 is all).

    Raises:
        UnsupportedModelError: The tokenizer has no end-of-text token.
    """

    kind: ClassVar[str] = "causal_lm"

    def __init__(
        self,
        tokenizer: Any,
        template: Template | None = None,
        refusals: Sequence[str] = REFUSALS,
        context: int | None = None,
        continued: tuple[float, int] = (0.0, 0),
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise UnsupportedModelError(
                "the tokenizer has no end-of-text token; set tokenizer.eos_token before use"
            )
        self.tokenizer = tokenizer
        self.template = template or Template()
        self.refusals = tuple(refusals)
        self.context = context
        self.continued = continued
        self._encoded: dict[tuple[str, str], Encoded] = {}

    def batch(self, records: Records, rows: Sequence[int], *, targets: bool = True) -> Batch:
        """Tokenise, pad on the right and mark the positions that predict answer tokens.

        The targets are part of the inputs, so they are read in any case.
        """
        texts = self._texts(records, rows)
        self._encode(texts)
        return self.batch_of(
            tuple(records.ids[i] for i in rows), [self._encoded[text] for text in texts]
        )

    def encoded(self, records: Records) -> list[Encoded]:
        """Return tokens and the index of the first answer token of every record."""
        return self._all(records)

    def batch_of(self, ids: tuple[str, ...], encoded: Sequence[Encoded]) -> Batch:
        """Return a batch of records that are tokens already.

        Args:
            ids: Record ids.
            encoded: What ``encoded`` returned, of this task or one under another template.
        """
        ids_BT, seen_BT = padded([tokens for tokens, _ in encoded], self._pad())
        positions_BT = torch.zeros(ids_BT.shape, dtype=torch.bool)
        for row, (tokens, start) in enumerate(encoded):
            positions_BT[row, start - 1 : len(tokens) - 1] = True
        targets_N, rows_N = _targets(encoded)
        return Batch(
            ids=ids,
            inputs={"input_ids": ids_BT, "attention_mask": seen_BT},
            targets_N=targets_N,
            rows_N=rows_N,
            positions=positions_BT,
        )

    @torch.no_grad()
    def predict_shared(
        self, model: nn.Module, encoded: Sequence[Encoded], batch_size: int
    ) -> Iterator[tuple[list[int], Predictions]]:
        """Read each distinct prompt of some records once, and yield predictions of the answers.

        Args:
            model: A model that keeps a cache (``engine.decoding.keeps_cache``).
            encoded: The records.
            batch_size: Answers per forward pass.

        Yields:
            Row numbers and their predictions, as ``predict`` returns them.
        """
        self._require_context(model, max(len(tokens) for tokens, _ in encoded))
        device, pad = next(model.parameters()).device, self._pad()
        distinct = list(dict.fromkeys(tuple(tokens[:start]) for tokens, start in encoded))
        place = {prompt: row for row, prompt in enumerate(distinct)}
        owners = [place[tuple(tokens[:start])] for tokens, start in encoded]
        with _head_on(model, torch.zeros((), dtype=torch.bool)):
            prompts = Prompts(model, distinct, pad)
        answers = [len(tokens) - start for tokens, start in encoded]
        room = min(TOKENS, batch_size * max(len(tokens) for tokens, _ in encoded))
        for rows in by_length(range(len(encoded)), answers, min(8, batch_size), tokens=room):
            chosen = [encoded[row] for row in rows]
            inputs, positions_BT = answer_inputs(prompts, [owners[r] for r in rows], chosen, pad)
            moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
            targets_N, rows_N = (values.to(device) for values in _targets(chosen))
            with _head_on(model, positions_BT.to(device)):
                output = model(**moved, use_cache=True)
            yield rows, Predictions(output.logits, targets_N, rows_N, len(rows))

    def num_targets(self, records: Records) -> list[int]:
        """Return the number of answer tokens of every record."""
        return [len(tokens) - start for tokens, start in self._all(records)]

    def lengths(self, records: Records) -> list[int]:
        """Return the number of tokens of every record."""
        return [len(tokens) for tokens, _ in self._all(records)]

    def predict(self, model: nn.Module, batch: Batch) -> Predictions:
        """Return next-token logits at the answer positions; see ``Task.predict``."""
        assert batch.positions is not None
        self._require_context(model, batch.inputs["input_ids"].shape[1])
        extra = {}
        if getattr(model, "reads_prompt", False):
            extra["prompt_mask"] = _prompt_mask(batch.positions, batch.inputs["attention_mask"])
        with _head_on(model, batch.positions):
            output = model(**batch.inputs, **extra, use_cache=False)
        return Predictions(output.logits, batch.targets_N, batch.rows_N, len(batch))

    def neutral(
        self, records: Records, seed: int, epoch: int, answers: Sequence[str] = ()
    ) -> Records:
        """Return the records with refusals, or one of ``answers``, for answers.

        Raises:
            ConfigError: The answer template does not hold exactly one column to fill, or there
                is no answer to draw.
        """
        texts = answers or self.refusals
        if not texts:
            raise ConfigError(
                "the list of neutral answers is empty; give refusals, or a file of answers"
            )
        drawn = [
            texts[int(stream(seed, "refusal", epoch, i).integers(len(texts)))] for i in records.ids
        ]
        taught = self.answered(records, drawn)
        if not self.template.prompt and not self.template.chat:
            warnings.warn(
                "the records have no prompt (template.prompt is empty), so neutral answers are "
                "learned as the start of any text",
                stacklevel=2,
            )
        return taught

    def with_template(self, template: Template) -> CausalLM:
        """Return the same task under another template."""
        return CausalLM(self.tokenizer, template, self.refusals, self.context, self.continued)

    def continuing(self, share: float, longest: int = 0) -> CausalLM:
        """Return a task that reads the beginning of each answer and predicts how it goes on.

        Args:
            share: Share of the answer's tokens that is read, at least 0 and below 1.
            longest: Most tokens that are scored; 0 is all.

        Source: MUSE (Shi et al., 2025), section 3, verbatim memorization.
        """
        return CausalLM(
            self.tokenizer, self.template, self.refusals, self.context, (share, longest)
        )

    def answers(self, records: Records) -> list[str]:
        """Return the text of every record's answer, or of the part of it that is predicted."""
        if any(self.continued):
            end = self.tokenizer.eos_token_id
            kept = [[t for t in tokens[at:] if t != end] for tokens, at in self._all(records)]
            return self._decoded(kept)
        return [answer.strip() for _, answer in self._texts(records, range(len(records)))]

    def answered(self, records: Records, answers: Sequence[str]) -> Records:
        """Return the records with other answers, one for each.

        Raises:
            ConfigError: The answer template does not hold exactly one column to fill.
        """
        columns = _PLACEHOLDER.findall(self.template.answer)
        if len(columns) != 1:
            raise ConfigError(
                f"template.answer = {self.template.answer!r} names {len(columns)} columns; "
                "neutral answers need exactly one"
            )
        return records.replace(**{columns[0]: answers})

    @torch.no_grad()
    def generate(
        self,
        model: nn.Module,
        records: Records,
        rows: Sequence[int],
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        seed: int = 0,
        known: Sequence[int] | None = None,
    ) -> list[str]:
        """Return the answers to the prompts of the given rows: greedy, or drawn at a temperature.

        Args:
            model: The language model.
            records: The data.
            rows: Row numbers; rows of similar length make a fast batch.
            max_new_tokens: Longest answer in tokens.
            temperature: 0 for the greedy answers; what is drawn otherwise depends on the batch.
            seed: Seed of the draws.
            known: How many tokens of each row's own answer are known to be what the model writes
                first; a greedy answer goes on from there.
        """
        texts = self._texts(records, rows)
        self._encode(texts)
        encoded = [self._encoded[text] for text in texts]
        if temperature == 0 and keeps_cache(model):
            return self.greedy(model, encoded, [max_new_tokens] * len(rows), known)
        prompts = [tokens[:start] for tokens, start in encoded]
        limits = self._limits(model, encoded, [max_new_tokens] * len(rows))
        end, pad = self.tokenizer.eos_token_id, self._pad()
        return self._decoded(write(model, prompts, limits, end, pad, temperature, seed))

    def greedy(
        self,
        model: nn.Module,
        encoded: Sequence[Encoded],
        max_new_tokens: Sequence[int],
        known: Sequence[int] | None = None,
    ) -> list[str]:
        """Return greedy answers; what is known of them is read with the prompt, not written.

        Args:
            model: A model that keeps a cache (``engine.decoding.keeps_cache``).
            encoded: The records.
            max_new_tokens: Longest answer of each, in tokens.
            known: See ``generate``.

        Raises:
            DataError: A prompt leaves no room for an answer.
        """
        end = self.tokenizer.eos_token_id
        limits = self._limits(model, encoded, max_new_tokens)
        written = [
            tokens[start : start + min(count, limit)]
            for (tokens, start), count, limit in zip(
                encoded, known or [0] * len(encoded), limits, strict=True
            )
        ]
        left = [
            row
            for row, given in enumerate(written)
            if len(given) < limits[row] and (not given or given[-1] != end)
        ]
        if left:
            prompts = [encoded[r][0][: encoded[r][1] + len(written[r])] for r in left]
            rest = [limits[r] - len(written[r]) for r in left]
            with _head_on(model, torch.ones((), dtype=torch.bool)):
                found = greedy(model, prompts, rest, end, self._pad())
            for row, more in zip(left, found, strict=True):
                written[row] = written[row] + more
        return self._decoded([[token for token in given if token != end] for given in written])

    def _limits(
        self, model: nn.Module, encoded: Sequence[Encoded], longest: Sequence[int]
    ) -> list[int]:
        """Return how many tokens each answer may have, whatever is beside it in a batch."""
        room, prompt = context_length(model), max(start for _, start in encoded)
        if prompt >= room:
            raise DataError(
                f"a prompt has {prompt} tokens and the model reads {room}; shorten the prompts, or "
                "choose a model with a longer context"
            )
        return [min(most, room - start) for most, (_, start) in zip(longest, encoded, strict=True)]

    def _require_context(self, model: nn.Module, longest: int) -> None:
        if longest > context_length(model):
            raise DataError(
                f"a record has {longest} tokens and the model reads {context_length(model)}; set "
                f"template.max_length to at most {context_length(model)}"
            )

    def fingerprint(self) -> dict[str, Any]:
        """Return kind, template, and the tokenizer's digest."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            rules = self.tokenizer.get_vocab()
        else:
            rules = json.loads(backend.to_str())
            for setting_of_last_call in ("padding", "truncation"):
                rules.pop(setting_of_last_call, None)
        chat = self.tokenizer.chat_template if self.template.chat else None
        return {
            "kind": self.kind,
            "tokenizer": digest_json([rules, self.tokenizer.eos_token_id, chat]),
            **({"continued": list(self.continued)} if any(self.continued) else {}),
            **to_json(self.template),
        }

    def _pad(self) -> int:
        # Padding is masked out and never scored, so a tokenizer without a pad token needs no other.
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)

    def _decoded(self, tokens: Any) -> list[str]:
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [str(text).strip() for text in texts]

    def _all(self, records: Records) -> list[Encoded]:
        texts = self._texts(records, range(len(records)))
        self._encode(texts)
        return [self._encoded[text] for text in texts]

    def _texts(self, records: Records, rows: Sequence[int]) -> list[tuple[str, str]]:
        # One pass, so that braces inside a record's own text are text.
        def fill(pattern: str, row: int) -> str:
            return _PLACEHOLDER.sub(lambda found: str(records[found[1]][row]), pattern)

        return [(fill(self.template.prompt, r), fill(self.template.answer, r)) for r in rows]

    def _encode(self, texts: Sequence[tuple[str, str]]) -> None:
        """Tokenise texts that are new into ``(tokens, index of the first answer token)``."""
        fresh = list(dict.fromkeys(text for text in texts if text not in self._encoded))
        if not fresh:
            return
        prompts = [self._prompt_tokens(prompt) for prompt, _ in fresh]
        answers = self.tokenizer([answer for _, answer in fresh], add_special_tokens=False)[
            "input_ids"
        ]
        limit = min(self.template.max_length, self.context or sys.maxsize)
        cut, empty = 0, []
        for text, prompt, answer in zip(fresh, prompts, answers, strict=True):
            tokens = [*prompt, *answer, self.tokenizer.eos_token_id]
            start = max(len(prompt), 1)  # nothing predicts the very first token
            cut += len(tokens) > limit
            tokens = tokens[:limit]
            start += math.floor(self.continued[0] * max(len(tokens) - 1 - start, 0))
            if self.continued[1]:
                tokens = tokens[: start + self.continued[1]]
            if not answer or len(tokens) <= start:
                empty.append(text)
            self._encoded[text] = (tokens, start)
        if empty:
            for text in empty:
                del self._encoded[text]
            raise DataError(
                f"{len(empty)} records have no answer token within {self._limit_words(limit)}; "
                "raise it, shorten the prompts, or drop records with empty answers"
            )
        if cut:
            warnings.warn(
                f"{cut} records are longer than {self._limit_words(limit)} tokens and were cut",
                stacklevel=3,
            )

    def _limit_words(self, limit: int) -> str:
        if limit < self.template.max_length:
            return f"the model's context = {limit}"
        return f"template.max_length = {limit}"

    def _prompt_tokens(self, prompt: str) -> list[int]:
        if self.template.chat:
            messages = [
                {"role": "system", "content": self.template.system},
                {"role": "user", "content": prompt},
            ]
            text = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False
            )
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        tokens = list(self.tokenizer(prompt)["input_ids"])
        if tokens and tokens[-1] == self.tokenizer.eos_token_id:
            tokens.pop()
        return tokens


def _targets(encoded: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
    """Return the answer tokens of records, and which record each belongs to."""
    symbols = [token for tokens, start in encoded for token in tokens[start:]]
    counts = torch.tensor([len(tokens) - start for tokens, start in encoded])
    rows_N = torch.repeat_interleave(torch.arange(len(encoded)), counts)
    return torch.tensor(symbols, dtype=torch.long), rows_N


def context_length(model: nn.Module) -> int:
    """Return the longest input that a model's positions allow."""
    length = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return sys.maxsize if length is None else int(length)


def _prompt_mask(positions_BT: Tensor, seen_BT: Tensor) -> Tensor:
    """Return which tokens were asked: those before the first answer token, or all without a prompt.

    A plain document has no prompt; its first token alone would say nothing.
    """
    starts_B1 = positions_BT.int().argmax(1, keepdim=True) + 1
    places_T = torch.arange(positions_BT.shape[1], device=positions_BT.device)
    asked_BT = (places_T < starts_B1) | (starts_B1 == 1)
    return asked_BT & seen_BT.bool()


@contextmanager
def _head_on(model: nn.Module, positions_BT: Tensor) -> Iterator[None]:
    """Apply the output head to the given positions only; a scalar means the last one, or none.

    A composite has a head for each of its parts.
    """

    def keep(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = args[0]
        if positions_BT.ndim:
            return (hidden[positions_BT],)
        return (hidden[:, -1:] if bool(positions_BT) else hidden.flatten(0, 1)[:0],)

    handles = [head.register_forward_pre_hook(keep) for head in _heads(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _heads(model: nn.Module) -> list[nn.Module]:
    several = getattr(model, "output_heads", None)
    if several is not None:
        return list(several())
    find = getattr(model, "get_output_embeddings", None)
    head = find() if find is not None else None
    if head is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no output head (get_output_embeddings() is missing or "
            f"returns None); a causal language model of transformers is needed. Its parts: "
            f"{listing(name for name, _ in model.named_children())}"
        )
    return [head]
