"""Prefix search: a few tokens, found by gradients, that talk a model into the forgotten answers.

Greedy coordinate gradient: the gradient of the loss by each token of the prefix says which tokens
to try in its place; some of them are tried, and the best one is taken.

Shape legend: K tokens of the prefix, B records of a batch, T tokens of the longest, D hidden size,
V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from expunge.audit.scores import score_together
from expunge.audit.treatments import NOT_BEFORE, NotApplicable, treatment
from expunge.audit.unseen import share_of_forget, shown
from expunge.audit.views import Scene
from expunge.core.errors import ConfigError, DataError
from expunge.core.progress import Progress
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.core.streams import stream
from expunge.engine.decoding import Encoded
from expunge.engine.modes import evaluating
from expunge.engine.task import Task
from expunge.engine.tasks.causal_lm import CausalLM

_BEST = 256  # tokens of the steepest descent, of which candidates are drawn
_STARTS = 100  # prefixes drawn until one is found that its own text gives back
_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Plan:
    """Size of a search.

    Attributes:
        tokens: Length of the prefix.
        steps: How often one of its tokens may change.
        candidates: Prefixes that are tried in each step.
        facts: Attacked records in each step, drawn anew.
    """

    tokens: int
    steps: int
    candidates: int
    facts: int

    @classmethod
    def of(cls, parameters: str) -> Plan:
        """Return the plan of a treatment's parameters.

        Raises:
            ConfigError: They are not four whole numbers of at least 1.
        """
        sizes = parameters.split(":")
        if len(sizes) != 4 or not all(size.isdecimal() and int(size) for size in sizes):
            raise ConfigError(
                f"prefix_search:{parameters} must name tokens, steps, candidates and facts, each a "
                "whole number of at least 1, and the share of the forget set that it sees"
            )
        return cls(*map(int, sizes))

    @property
    def tried(self) -> int:
        """Return how many prompts a search scores at most."""
        return self.steps * (self.candidates + 1) * self.facts

    @property
    def prompts(self) -> int:
        """Return how many prompts it reads at most, those of gradients included."""
        return self.tried + self.steps * self.facts


@dataclasses.dataclass(frozen=True)
class _Laid:
    """A prefix before some records, in tokens.

    Attributes:
        task: The task whose template has it.
        encoded: The records behind it.
        rest: What stands around it.
    """

    task: CausalLM
    encoded: list[Encoded]
    rest: list[list[int]]


@treatment("prefix_search", roles=NOT_BEFORE)
def prefix_search(
    model: nn.Module, task: Task, scene: Scene, parameters: str, run: Run
) -> tuple[nn.Module, Task]:
    """Search a prefix that makes the answers of attacked forget records likely.

    It starts from random tokens. In each step a token changes if that lowers the mean loss of a few
    attacked records; the prefix is one for all records. Every prefix is judged as text: what the
    tokenizer reads back as other tokens is no candidate, so that the result can be typed.

    Args:
        model: Stays as it is.
        task: How to run it.
        scene: Where the records come from.
        parameters: Tokens, steps, candidates, facts in each step, and the share of the forget
            records that the search sees.
        run: Context.

    Returns:
        The model, and a task whose prompts stand below the prefix.

    Raises:
        NotApplicable: The model is a composite or its embedding cannot be read, the task is no
            language model's, there is one forget record only, or too few tokens can be typed.

    Source: Zou et al. (2023), Universal and Transferable Adversarial Attacks on Aligned Language
        Models, algorithms 1 and 2. Differs from it: the prefix stands before the prompt and not
        after it, the present prefix competes with its candidates, and the facts of each step are
        drawn anew instead of growing in number.
    """
    sizes, _, share = parameters.rpartition(":")
    plan = Plan.of(sizes)
    if hasattr(model, "parts"):
        raise NotApplicable("a composite is attacked part by part")
    if not isinstance(task, CausalLM):
        raise NotApplicable(f"a {type(task).__name__} has no prompt to put a prefix before")
    seen, others = shown(scene, share_of_forget(share))
    if not len(seen) or not len(others):
        raise NotApplicable("one forget record cannot be attacked and scored by another")
    model.to(run.device)
    search = _Search(model, task, seen, plan, run)
    with run.progress("searching a prefix", plan.tried) as bar, evaluating(model):
        found = search.found(bar)
    return model, _prefixed(task, found, plan)


class _Search:
    """One search.

    Args:
        model: The attacked model, in evaluation mode while it is used.
        task: How to run it, without a prefix.
        seen: The attacked records.
        plan: Size of the search.
        run: Context.

    Raises:
        NotApplicable: Too few tokens can be typed, or the model has no plain embedding.
    """

    def __init__(
        self, model: nn.Module, task: CausalLM, seen: Records, plan: Plan, run: Run
    ) -> None:
        self.model, self.task, self.seen, self.plan, self.run = model, task, seen, plan, run
        self.embedding = _embedding(model)
        rows = self.embedding.weight.shape[0]
        self.typed = np.array([t for t in typable(task.tokenizer) if t < rows], dtype=np.int64)
        if len(self.typed) < 2:
            raise NotApplicable("fewer than two tokens of the vocabulary can be typed")

    def found(self, bar: Progress) -> str:
        """Return the text of the prefix after all steps."""
        ids, at = self._start()
        for step in range(self.plan.steps):
            self.run.check()
            ids = self._step(ids, at, step, bar)
        return self._text(ids)

    def _start(self) -> tuple[tuple[int, ...], int]:
        """Return a drawn prefix that its text gives back, and where in the tokens it begins."""
        draws = stream(self.run.seed, "prefix-search", "start")
        first = self.seen.take([0])
        for _ in range(_STARTS):
            ids = tuple(int(t) for t in draws.choice(self.typed, self.plan.tokens))
            [(tokens, start)] = self._read(ids, first)[1] or [([], 0)]
            places = [at for at in range(start) if tuple(tokens[at : at + len(ids)]) == ids]
            if len(places) == 1 and self._laid(ids, places[0], self.seen) is not None:
                return ids, places[0]
        raise NotApplicable(
            f"of {_STARTS} drawn prefixes the tokenizer reads none back as the same tokens"
        )

    def _step(self, ids: tuple[int, ...], at: int, step: int, bar: Progress) -> tuple[int, ...]:
        """Return the best of a prefix and its candidates on some attacked records."""
        draws = stream(self.run.seed, "prefix-search", step)
        count = min(self.plan.facts, len(self.seen))
        facts = self.seen.take(np.sort(draws.choice(len(self.seen), count, replace=False)))
        here = self._laid(ids, at, facts)
        if here is None:
            return ids
        slope_KV = self._slope_KV(here, at, facts)
        tried = {ids: here}
        for other in _changed(ids, slope_KV[:, self.typed], self.typed, draws, self.plan):
            laid = None if other in tried else self._laid(other, at, facts)
            if laid is not None and laid.rest == here.rest:
                tried[other] = laid
            if len(tried) > self.plan.candidates:
                break
        parts = [(laid.task, facts) for laid in tried.values()]
        scores = score_together(self.model, parts, self.run, batch_size=_BATCH, bar=bar)
        losses = [float(one.loss_R.mean()) for one in scores]
        return list(tried)[int(np.argmin(losses))]

    def _slope_KV(self, laid: _Laid, at: int, facts: Records) -> np.ndarray:
        """Return how the mean loss changes with each token of the prefix, to first order."""
        kept: list[Tensor] = []

        def keep(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            kept.append(output.detach().requires_grad_(True))
            return kept[-1]

        batch = laid.task.batch_of(facts.ids, laid.encoded).to(self.run.device)
        handle = self.embedding.register_forward_hook(keep)
        try:
            with torch.enable_grad():
                predictions = laid.task.predict(self.model, batch)
                loss = (predictions.nll_B() / batch.counts_B).mean()
        finally:
            handle.remove()
        if len(kept) != 1:
            raise NotApplicable("the model does not read its embedding once for a text")
        [slope_BTD] = torch.autograd.grad(loss, kept)
        slope_KD = slope_BTD[:, at : at + self.plan.tokens].sum(0)
        return _by_token_KV(slope_KD, self.embedding.weight)

    def _laid(self, ids: tuple[int, ...], at: int, records: Records) -> _Laid | None:
        """Return the records behind a prefix, unless its text is read as other tokens."""
        if not _plain(self._text(ids)):
            return None
        task, encoded = self._read(ids, records)
        end = at + len(ids)
        if not encoded or any(tuple(tokens[at:end]) != ids for tokens, _ in encoded):
            return None
        return _Laid(task, encoded, [tokens[:at] + tokens[end:] for tokens, _ in encoded])

    def _read(self, ids: tuple[int, ...], records: Records) -> tuple[CausalLM, list[Encoded]]:
        """Return records behind a prefix, in tokens; none if an answer no longer fits."""
        task = _prefixed(self.task, self._text(ids), self.plan)
        try:
            return task, task.encoded(records)
        except DataError:
            return task, []

    def _text(self, ids: tuple[int, ...]) -> str:
        decoded: str = self.task.tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return decoded


def _changed(
    ids: tuple[int, ...],
    slope_KV: np.ndarray,
    typed: np.ndarray,
    draws: np.random.Generator,
    plan: Plan,
) -> Iterator[tuple[int, ...]]:
    """Yield prefixes with one token changed for one of those of the steepest descent there."""
    width = min(_BEST, len(typed))
    best_KV = np.argsort(slope_KV, axis=1, kind="stable")[:, :width]
    for _ in range(4 * plan.candidates):
        place, rank = int(draws.integers(plan.tokens)), int(draws.integers(width))
        yield (*ids[:place], int(typed[best_KV[place, rank]]), *ids[place + 1 :])


def typable(tokenizer: Any) -> list[int]:
    """Return the tokens that are printable ASCII, no special ones, and no placeholder's braces."""
    special = set(tokenizer.all_special_ids)
    texts = tokenizer.batch_decode(
        [[token] for token in range(len(tokenizer))],
        skip_special_tokens=False,
        clean_up_tokenization_spaces=False,
    )
    return [
        token
        for token, text in enumerate(texts)
        if token not in special and text.isascii() and _plain(text)
    ]


def _plain(text: str) -> bool:
    return text.isprintable() and bool(text.strip()) and "{" not in text and "}" not in text


def _prefixed(task: CausalLM, text: str, plan: Plan) -> CausalLM:
    """Return the task with a text above its prompts, and room for it."""
    template = task.template
    above = dataclasses.replace(
        template,
        prompt=f"{text}\n{template.prompt}",
        max_length=template.max_length + plan.tokens + 1,
    )
    return task.with_template(above)


def _embedding(model: nn.Module) -> nn.Embedding:
    find: Any = getattr(model, "get_input_embeddings", None)
    found = find() if find is not None else None
    if not isinstance(found, nn.Embedding):
        raise NotApplicable(f"a {type(model).__name__} has no embedding to take gradients of")
    return found


def _by_token_KV(slope_KD: Float[Tensor, "K D"], weight_VD: Float[Tensor, "V D"]) -> np.ndarray:
    with torch.no_grad():
        slope_KV = slope_KD.to(weight_VD.dtype) @ weight_VD.T
    found: np.ndarray = slope_KV.float().cpu().numpy()
    return found
