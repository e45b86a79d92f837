"""The trained character-level GPT that the studies of single methods share, and what they measure.

It is the fixture ``country_facts`` of ``expunge bench lm``: trained once, then kept in the store of
references.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from country_facts import exact_match, loss
from torch import nn

from expunge.core.records import Records
from expunge.core.run import Run, Tracker
from expunge.data.dataset import Dataset
from expunge.forget.method import Forgotten, Given, apply
from expunge.models.source import Loaded
from expunge.workloads.lm_fixtures import FIXTURES

__all__ = ["Study", "exact_match", "loss", "spread", "study"]


@dataclasses.dataclass(frozen=True)
class Study:
    """The original model and its records.

    Attributes:
        before: The model that knows every fact by heart.
        dataset: The data.
        forget: 72 facts about 24 countries.
        retain: Facts that methods may see.
        held: Facts that the model knows and no method sees.
        kept: Everything it was trained on but ``forget``.
        schedule: Loop of the fixture.
    """

    before: Loaded
    dataset: Dataset
    forget: Records
    retain: Records
    held: Records
    kept: Records
    schedule: Mapping[str, Any]

    def countries(self, count: int, start: int) -> Records:
        """Return the facts about some of the forgotten countries."""
        names = list(dict.fromkeys(self.forget["country"]))[start : start + count]
        rows = [row for row, name in enumerate(self.forget["country"]) if name in names]
        return self.forget.take(rows)

    def facts_but(self, forget: Records) -> Records:
        """Return every fact the model knows but these, refusals left out."""
        gone = set(forget.ids)
        train = self.dataset.train
        wanted = [i for i in train.ids if i.startswith("fact") and i not in gone]
        return train.select(wanted)

    def apply(
        self,
        method: str,
        settings: Mapping[str, Any],
        seed: int = 0,
        *,
        forget: Records | None = None,
        retain: Records | None = None,
        model: nn.Module | None = None,
        tracker: Tracker | None = None,
        in_place: bool = False,
    ) -> Forgotten:
        """Run a method with the fixture's loop, single settings replaced; no collapse guard."""
        own = dict(settings)
        own["schedule"] = {**self.schedule, **own.get("schedule", {})}
        given = Given(
            self.before.task,
            self.forget if forget is None else forget,
            self.retain if retain is None else retain,
            guard=None,
        )
        run = Run(seed, trackers=(tracker,) if tracker else ())
        return apply(method, model or self.before.model, given, run, own, in_place=in_place)

    def exact(self, model: nn.Module, records: Records) -> float:
        """Return the share of answers whose every token is the model's first choice."""
        return exact_match(model, self.before.task, records)

    def loss(self, model: nn.Module, records: Records) -> float:
        """Return the mean negative log-likelihood per answer token, in nats."""
        return loss(model, self.before.task, records)


def study() -> Study:
    """Return the shared study; the first call trains the model."""
    fixture = FIXTURES["country_facts"]
    dataset = fixture.dataset()
    sets = fixture.sets(dataset, Run())
    gone = set(sets.forget)
    train = dataset.train
    return Study(
        fixture.before(dataset, Run(quiet=False)),
        dataset,
        train.select(sets.forget),
        train.select(sets.retain),
        dataset.test,
        train.select(i for i in train.ids if i not in gone),
        fixture.schedule,
    )


def spread(values: Sequence[float], digits: str = ".3f") -> str:
    """Write the mean of some runs, and their range where they differ."""
    low, high = format(min(values), digits), format(max(values), digits)
    mean = format(statistics.fmean(values), digits)
    return mean if low == high else f"{mean} ({low} to {high})"
