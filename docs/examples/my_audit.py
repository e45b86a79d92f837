"""Recall: how many records a model still gets right from the first symbol to the last."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from expunge.audit.audit import audit
from expunge.audit.evidence import Evidence, Measurement, Subject
from expunge.audit.readings import Reading
from expunge.audit.stats import clopper_pearson
from expunge.core.config import config
from expunge.core.finding import Finding
from expunge.core.run import Run

_FORGET = Reading("forget")


@config
class RecallConfig:
    """Settings of the recall audit."""

    max_recall: Annotated[float, Field(ge=0, le=1)] | None = None
    """Largest share of forgotten records that passes; no verdict when absent."""


@audit(
    "recall",
    kinds={"causal_lm", "classifier"},
    reads=lambda config, dataset: (_FORGET,),
    source="exact memorization, as in Extracting Training Data (Carlini et al., 2021)",
)
def recall(evidence: Evidence, config: RecallConfig, run: Run) -> list[Finding]:
    """Share of forgotten records of which every target is still the model's first choice.

    Source: greedy reproduction of a training record; Carlini et al., 2021, section 3.
    """

    def share(subject: Subject) -> Measurement:
        scores = subject.scores[_FORGET]
        # A record counts when none of its targets, offsets[r] to offsets[r + 1], is missed.
        missed_R = np.add.reduceat(~scores.greedy_N, scores.offsets[:-1], dtype=int)
        hits, n = int((missed_R == 0).sum()), len(scores)
        return Measurement(hits / n, n, clopper_pearson(hits, n))

    return evidence.compare(
        "recall",
        "Forgotten records that are still reproduced",
        share,
        direction="lower",
        record_set="forget",
        threshold=config.max_recall,
    )
