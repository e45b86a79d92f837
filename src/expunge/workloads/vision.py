"""``expunge bench vision``: methods for classifiers and regressors beside retraining."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from expunge.core.config import config
from expunge.core.run import Run
from expunge.workloads.comparison import chosen_arms, compare, known_names
from expunge.workloads.vision_arms import ARMS
from expunge.workloads.vision_fixtures import FIXTURES
from expunge.workloads.workload import workload

_NOTES = (
    "Every seed has data, an original model, a request and retrained models of its own. The row "
    "of retrained models compares each with the other: nothing can be asked to be nearer.",
    "UA: forgotten records got wrong. RA, TA: retained and test records got right. MIA: forgotten "
    "records that an attack calls non-members. Each is good when near the retrained models', not "
    "when high; the average gap is the mean distance.",
    "acc_corr: accuracy where the manipulation was to bite (every test picture under the patch, or "
    "the two confused classes) against clean labels. Models retrained without the identified part "
    "learn the flaw again from the rest, so they are no goal there.",
    "W1: distance between the predictions on the forget set and those of retrained models.",
)


@config
class VisionBench:
    """Settings of the comparison of methods for classifiers and regressors."""

    fixtures: tuple[str, ...] = ()
    """Fixtures to run; all when empty."""
    arms: tuple[str, ...] = ()
    """Rows of the table, by label or by name of the method; all when empty."""
    seeds: Annotated[int, Field(ge=1)] = 3
    """Runs of each method, each with data and an original model of its own."""
    references: Annotated[int, Field(ge=2)] = 2
    """Retrained models to compare with; two show the noise floor."""
    workers: Annotated[int, Field(ge=1)] = 1
    """Processes that work at the same time, one thread each."""


@workload("vision", title="methods for classifiers and regressors beside retraining")
def vision(config: VisionBench, folder: Path, run: Run) -> Path:
    """Compare methods on a residual network, a transformer, tables and a picture regression."""
    names = known_names(config.fixtures, FIXTURES, "bench vision: fixtures") or tuple(FIXTURES)
    arms = chosen_arms(config.arms, ARMS, "bench vision: arms")
    fixtures = {name: FIXTURES[name] for name in names}
    title = "Methods for classifiers and regressors"
    return compare(title, config, fixtures, arms, folder, run, _NOTES)
