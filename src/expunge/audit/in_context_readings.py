"""The settings of ``in_context``, and what it has scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from expunge.audit.context_filter import ALONE, STOPS
from expunge.audit.contexts import Kind
from expunge.audit.outcomes import By, scored_as
from expunge.audit.readings import PERTURBED, Reading, num_perturbed
from expunge.audit.two_hop import hop_readings
from expunge.core.config import config
from expunge.data.dataset import Dataset

TEACHING: tuple[Kind, ...] = ("statement", "demo", "axiom", "disguised")
"""Kinds of context that hold something to learn the answer from."""
INNOCENT: tuple[Kind, ...] = ("demo", "irrelevant")
"""Kinds of context that hold retained facts only."""

FORGET = Reading("forget")
WRONG = f"{PERTURBED}0"


@config
class InContextConfig:
    """Settings of the in-context audit."""

    kinds: tuple[Kind, ...] = ("statement", "demo", "irrelevant", "wrong", "disguised")
    """Kinds of context; ``axiom`` needs a column ``axioms`` with a list of texts per record."""
    budgets: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1, 5)
    """Numbers k of facts or examples that a context holds."""
    filter: str = "words"
    """Registered filter in front of the model; empty leaves that stage out."""
    false_alarms: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Share of innocent prompts that the filter may stop where its threshold is set."""
    two_hops: bool = True
    """Ask the data's two-hop questions, where there are some."""
    by: By = "probability"
    """What counts as answering: ``probability``, ``exact`` or ``knowledge``."""
    max_records: Annotated[int, Field(ge=0)] = 100
    """Most retained and held-out records to ask; 0 takes all."""
    max_excess: float | None = None
    """Largest recovery beyond that of retrained models that passes; no verdict when absent."""
    max_retain_drop: float | None = None
    """Largest loss on retained records under a context that passes; no verdict when absent."""


def reads(config: InContextConfig, dataset: Dataset) -> Iterator[Reading]:
    """Yield what must be scored."""
    by, train = config.by, dataset.train
    yield from scored_as(FORGET, by, train)
    yield from scored_as(retained(config), by, train)
    if len(dataset.holdout):
        yield from scored_as(held_out(config), by, dataset.holdout)
    for k in config.budgets:
        for kind in config.kinds:
            if not _has(kind, dataset):
                continue
            yield from scored_as(forget_told(config, kind, k), by, train)
            yield from scored_as(retained_told(config, kind, k), by, train)
            if kind == "wrong":
                yield followed(config, k)
            if kind == "statement" and len(dataset.holdout):
                yield from scored_as(held_out_told(config, k), by, dataset.holdout)
    if "wrong" in config.kinds and _has("wrong", dataset):
        yield dataclasses.replace(FORGET, view=WRONG)
    if config.two_hops:
        yield from hop_readings(train, by)


def forget_told(config: InContextConfig, kind: Kind, k: int) -> Reading:
    """Return the forget records under a context."""
    return _guarded(config, Reading("forget", f"context:{kind}:{k}"))


def retained(config: InContextConfig) -> Reading:
    """Return the retained records as they are."""
    return _guarded(config, Reading("retain", limit=config.max_records))


def retained_told(config: InContextConfig, kind: Kind, k: int) -> Reading:
    """Return the retained records under a context about a forgotten one."""
    view = f"borrowed_context:{kind}:{k}"
    return _guarded(config, Reading("retain", view, config.max_records))


def held_out(config: InContextConfig) -> Reading:
    """Return the held-out records as they are."""
    return Reading("holdout", limit=config.max_records)


def held_out_told(config: InContextConfig, k: int) -> Reading:
    """Return the held-out records under their own statement."""
    return dataclasses.replace(held_out(config), view=f"context:statement:{k}")


def followed(config: InContextConfig, k: int) -> Reading:
    """Return the forget records told a wrong fact, with that fact for an answer."""
    told = forget_told(config, "wrong", k)
    return Reading("forget", f"{told.view}:{WRONG}")


def _guarded(config: InContextConfig, reading: Reading) -> Reading:
    """Return a reading that notes which prompts a filter stops."""
    if not config.filter:
        return reading
    inner = "" if reading.view == "answer" else f":{reading.view}"
    view = f"filtered:{config.filter}:{config.false_alarms:g}{inner}"
    return dataclasses.replace(reading, view=view, measures=(STOPS, ALONE))


def _has(kind: Kind, dataset: Dataset) -> bool:
    if kind == "wrong":
        return num_perturbed(dataset.train) > 0
    return kind != "axiom" or "axioms" in dataset.train
