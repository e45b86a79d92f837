"""The likelihood-ratio attack, with retrained models as those that never saw a record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from expunge.audit.audit import audit
from expunge.audit.evidence import Evidence, Subject
from expunge.audit.mia import MEMBERS, NONMEMBERS, Suspicion, attack_findings
from expunge.audit.mia_scores import above_shadows, confidence, pooled_spread
from expunge.core.config import config
from expunge.core.finding import Finding
from expunge.core.run import Run

FEW_SHADOWS = 8
"""Below this many retrained models a spread of each record's own is too rough."""


@config
class LiraConfig:
    """Settings of the likelihood-ratio attack."""

    fixed_variance: bool | None = None
    """One variance for all records instead of each record's own; when absent, with fewer than 8
    retrained models."""
    fpr: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """False-positive rate at which the true-positive rate is read off."""
    max_auc_gap: Annotated[float, Field(ge=0, le=1)] | None = None
    """Largest distance of the AUC to the references' mean that passes, given 50 records of either
    set; no verdict when absent."""


@audit(
    "lira",
    kinds={"causal_lm", "classifier"},
    reads=lambda config, dataset: (MEMBERS, NONMEMBERS),
    source="Carlini et al. (2022), offline attack",
)
def lira(evidence: Evidence, config: LiraConfig, run: Run) -> list[Finding]:
    """Is the model surer of forgotten records than models that never saw them?

    Retrained models show, for every record, how sure a model is that was not trained on it. The
    confidence is log(p / (1 - p)) of p = exp(-loss per target), which is close to normal. A record
    is called a member when its confidence is high under the normal distribution with the mean and
    the variance that the retrained models have on it; held-out records, which no model saw either,
    are the non-members. A retrained model is attacked with the other ones.

    Numbers: ``auc`` with Korn and Graubard's interval, ``tpr`` at few false positives with Clopper
    and Pearson's, and ``auc_gap``, the distance of the AUC to retraining; below 50 forgotten or
    held-out records a bound on it is inconclusive. With fewer than 8 retrained models all records
    share one pooled variance, so that the attack ranks by how far a confidence lies above the mean.

    It needs two retrained models besides the one attacked, and gains from many: the published
    attack has 16 to 256. A model that passes with a few is not safe from who trains more. It costs
    nothing where ``mia`` runs: both read the same scores.

    Source: Carlini et al. (2022), the offline attack, with logit scaling and a fixed variance.
    """
    fixed = config.fixed_variance
    if fixed is None:
        fixed = len(evidence.references) < FEW_SHADOWS

    def suspicion(subject: Subject) -> Suspicion:
        return _suspicion(subject, evidence.others(subject), fixed)

    return attack_findings(
        evidence,
        suspicion,
        "Likelihood-ratio attack",
        fpr=config.fpr,
        max_auc_gap=config.max_auc_gap,
        seed=run.seed,
        pairwise=True,
    )


def _suspicion(subject: Subject, shadows: Sequence[Subject], fixed: bool) -> Suspicion:
    if not len(subject.scores[NONMEMBERS]):
        return "there are no held-out records to compare with"
    if len(shadows) < 2:
        return (
            f"the attack needs 2 retrained models besides the one attacked, there are "
            f"{len(shadows)}"
        )
    # One variance must be the same for both sets, so they are looked at together.
    own_R, *shadows_SR = (_confidence(one) for one in (subject, *shadows))
    table_SR = np.stack(shadows_SR)
    spread = pooled_spread(table_SR) if fixed else None
    score_R = above_shadows(own_R, table_SR, spread)
    size = len(subject.scores[MEMBERS])
    return score_R[:size], score_R[size:]


def _confidence(subject: Subject) -> np.ndarray:
    """Return the confidence in forgotten and then held-out records."""
    losses = [subject.scores[reading].loss_R for reading in (MEMBERS, NONMEMBERS)]
    return confidence(np.concatenate(losses))
