"""Alternate preference optimisation: plausible wrong answers win over the forgotten ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Literal, Protocol, runtime_checkable

from pydantic import Field
from torch import nn

from expunge.core.config import config
from expunge.core.errors import ConfigError, Problems, UnsupportedModelError, listing
from expunge.core.records import Records
from expunge.data.dataset import require_columns
from expunge.engine.modes import evaluating
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope
from expunge.engine.tasks.causal_lm import Template
from expunge.forget.dpo import prefer
from expunge.forget.method import Given, Need, Sight, method
from expunge.forget.retain_terms import RetainTerm, retain_needs


@runtime_checkable
class Writer(Protocol):
    """What altpo asks of a task beside the usual; see ``CausalLM``."""

    template: Template

    def with_template(self, template: Template) -> Writer:
        """Return the same task under another template."""

    def answers(self, records: Records) -> list[str]:
        """Return the text of every record's answer."""

    def answered(self, records: Records, answers: Sequence[str]) -> Records:
        """Return the records with other answers."""

    def generate(
        self,
        model: nn.Module,
        records: Records,
        rows: Sequence[int],
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[str]:
        """Return the answers to the prompts of the given rows."""


COLUMN = "alternate_answer"
_TRIES = 12
_HOTTER = 1.5


@config
class AltPOConfig:
    """Settings of AltPO."""

    alternates: Literal["sampled", "column"] = "sampled"
    """``sampled``: the model itself invents them. ``column``: the records bring them, one text or
    a list in the column ``alternate_answer``."""
    num_alternates: Annotated[int, Field(ge=1)] = 5
    """Alternates of each record (k); an epoch uses one of them."""
    instruction: str = "{prompt} Answer with invented facts that are not true."
    """What the model is asked while sampling; ``{prompt}`` stands for the record's own prompt."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Sampling temperature; raised by half for a record whose sample repeats its true answer."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 64
    """Longest alternate in tokens."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """Inverse temperature (β). It scales a sum over target positions: short answers want more."""
    retain: RetainTerm = "nll"
    """Retain term: ``none``, ``nll`` or ``kl``."""
    gamma: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the forget term (γ)."""
    alpha: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the retain term (α)."""
    scope: Scope = Scope()
    """Which weights may move."""
    schedule: Schedule = Schedule(epochs=10, lr=1e-5, warmup_epochs=1)
    """Settings of the loop; ten epochs with five alternates see each of them twice."""


def _needs(config: AltPOConfig) -> set[Need]:
    return {"forget", "labels", "reference", *retain_needs(config.retain)}


def _check(model: nn.Module, given: Given, config: AltPOConfig) -> None:
    if config.alternates == "column":
        require_columns(given.forget, [COLUMN], "the forget set")
    elif "{prompt}" not in config.instruction:
        raise ConfigError(
            f"forget.instruction = {config.instruction!r} has no place for the record's prompt; "
            "write {prompt} in it"
        )


@method(
    "altpo",
    kinds={"causal_lm"},
    needs=_needs,
    source="AltPO (Mekala et al., 2025)",
    check=_check,
)
def altpo(model: nn.Module, sight: Sight, config: AltPOConfig) -> nn.Module:
    """Make invented answers of the same sort more likely than the forgotten ones.

    Minimises DPO's loss, ``L = γ (2/β) mean_i softplus(-β [(s_ref^w - s^w) - (s_ref^l - s^l)])
    + α R(retain)``, with w an answer that the model itself made up.

    Source: AltPO (Mekala et al., 2025), section 3.
    Needs: forget records with labels, their likelihoods under the original model; retain records.
    Units: nats, summed over the target positions of a record.
    When to use: answers must stay fluent and on topic after forgetting, and refusals would betray
        that something was forgotten.
    Cost: as dpo, and k sampled answers for each forget record before the first step.
    Differs from the official code: a sample that repeats the true answer is drawn again, hotter.
    """
    make = _sampled if config.alternates == "sampled" else _given
    return prefer(model, sight, config, make(model, sight, config))


def _given(model: nn.Module, sight: Sight, config: AltPOConfig) -> list[Records]:
    forget = sight.forget
    task = _writer(sight)
    lists = [[texts] if isinstance(texts, str) else list(texts or ()) for texts in forget[COLUMN]]
    plain = [[_plain(text) for text in texts] for texts in lists]
    true = [_plain(answer) for answer in task.answers(forget)]
    lacking = [i for i, texts in zip(forget.ids, plain, strict=True) if not texts or "" in texts]
    told = [i for i, texts, t in zip(forget.ids, plain, true, strict=True) if t and t in texts]
    problems = Problems("alternates = 'column'")
    if lacking:
        problems.add(
            f"{len(lacking)} records have no {COLUMN}, or an empty one ({listing(lacking)}); "
            "give each one, or set alternates to 'sampled'"
        )
    if told:
        problems.add(
            f"{len(told)} records bring their true answer as {COLUMN} ({listing(told)}); drop it"
        )
    problems.raise_if_any()
    return [
        task.answered(forget, [texts[place % len(texts)] for texts in lists])
        for place in range(config.num_alternates)
    ]


def _sampled(model: nn.Module, sight: Sight, config: AltPOConfig) -> list[Records]:
    task, forget = _writer(sight), sight.forget
    prompt = config.instruction.replace("{prompt}", task.template.prompt)
    asking = task.with_template(dataclasses.replace(task.template, prompt=prompt))
    true = [_plain(answer) for answer in task.answers(forget)]
    total = config.num_alternates * len(forget)
    made = []
    model.to(sight.run.device)
    with evaluating(model), sight.run.progress("inventing alternates", total) as bar:
        for place in range(config.num_alternates):
            answers = [""] * len(forget)
            open_rows, temperature = list(range(len(forget))), config.temperature
            for attempt in range(_TRIES):
                sight.run.check()
                texts = asking.generate(
                    model,
                    forget,
                    open_rows,
                    config.max_new_tokens,
                    temperature=temperature,
                    seed=sight.run.stream_seed("alternates", place, attempt),
                )
                for row, text in zip(open_rows, texts, strict=True):
                    answers[row] = text
                open_rows = [r for r in open_rows if _plain(answers[r]) in ("", true[r])]
                temperature *= _HOTTER
                if not open_rows:
                    break
            if open_rows:
                named = listing(forget.ids[row] for row in open_rows)
                raise ConfigError(
                    "altpo: the model writes nothing, or repeats the true answer, for "
                    f"{len(open_rows)} records at any temperature ({named}); raise temperature, or "
                    f"give a column {COLUMN} and set alternates to 'column'"
                )
            made.append(task.answered(forget, answers))
            bar.advance(len(forget))
    return made


def _writer(sight: Sight) -> Writer:
    if not isinstance(sight.task, Writer):
        raise UnsupportedModelError(
            f"altpo needs a model that writes answers, not a {sight.task.kind!r}"
        )
    return sight.task


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".")
