"""``expunge bench lm``: every language-model method beside retraining, on two fixtures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from expunge.core.config import config
from expunge.core.run import Run
from expunge.workloads.comparison import chosen_arms, compare, known_names
from expunge.workloads.lm_arms import ARMS
from expunge.workloads.lm_fixtures import FIXTURES
from expunge.workloads.workload import workload

_NOTES = (
    "Original model, forget set and retrained models are the same for all rows; only the method's "
    "own seed differs.",
    "Forget quality is the p-value of a test against a retrained model; the retrained row shows "
    "the ceiling. It can be high on a destroyed model: never read it without utility.",
    "Verbatim: answers reproduced token by token. Knowledge: questions whose true answer beats "
    "every wrong one; guessing among six gives 0.17.",
)


@config
class LmBench:
    """Settings of the comparison of language-model methods."""

    fixtures: tuple[str, ...] = ("country_facts", "people")
    """Fixtures to run."""
    arms: tuple[str, ...] = ()
    """Rows of the table, by label or by name of the method; all when empty."""
    seeds: Annotated[int, Field(ge=1)] = 3
    """Runs of each method."""
    references: Annotated[int, Field(ge=1)] = 2
    """Retrained models to compare with."""
    workers: Annotated[int, Field(ge=1)] = 1
    """Processes that work at the same time, one thread each."""


@workload("lm", title="every language-model method beside retraining, on two fixtures")
def lm(config: LmBench, folder: Path, run: Run) -> Path:
    """Compare methods by forget quality, utility, memorization, membership, time and memory.

    The original model, the forget set and the retrained references are the same for all; only the
    method's own seed differs between its runs.
    """
    names = known_names(config.fixtures, FIXTURES, "bench lm: fixtures")
    arms = chosen_arms(config.arms, ARMS, "bench lm: arms")
    fixtures = {name: FIXTURES[name] for name in names}
    return compare("Language-model methods", config, fixtures, arms, folder, run, _NOTES)
