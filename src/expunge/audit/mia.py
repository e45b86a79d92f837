"""Membership inference attacks on likelihoods and gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Literal, get_args

import numpy as np
from pydantic import Field

from expunge.audit import mia_scores
from expunge.audit.audit import audit
from expunge.audit.evidence import Evidence, Measurement, Subject
from expunge.audit.outcomes import NO_REFERENCE
from expunge.audit.readings import Reading
from expunge.audit.recovery import JUDGED_RECORDS
from expunge.audit.resampled import resampled
from expunge.audit.scores import Scores
from expunge.audit.stats import auc, bootstrap_aucs, clopper_pearson, folded, tpr_at_fpr
from expunge.core.config import config
from expunge.core.errors import ConfigError, listing
from expunge.core.finding import Finding
from expunge.core.run import Run
from expunge.data.dataset import Dataset

Attack = Literal["loss", "zlib", "min_k", "min_k_pp", "reference", "grad_norm"]
Suspicion = tuple[np.ndarray, np.ndarray] | str
"""How much forgotten and held-out records look like members, or why that cannot be had."""

MEMBERS, NONMEMBERS = Reading("forget"), Reading("holdout")
_NAMES: dict[Attack, str] = {
    "loss": "Loss attack",
    "zlib": "Zlib attack",
    "min_k": "Min-K% attack",
    "min_k_pp": "Min-K%++ attack",
    "reference": "Reference attack",
    "grad_norm": "Gradient-norm attack",
}
_OF_TEXT: frozenset[Attack] = frozenset({"zlib", "min_k", "min_k_pp"})
_MEASURED: frozenset[Attack] = frozenset({"zlib", "grad_norm"})


@config
class MiaConfig:
    """Settings of the membership inference audit."""

    attacks: tuple[Attack, ...] = (
        "loss",
        "zlib",
        "min_k",
        "min_k_pp",
        "reference",
    )
    """Attacks to run; those that the data or the lack of retrained models rule out are left out.
    ``grad_norm`` costs a backward pass for every record."""
    k: Annotated[float, Field(gt=0, le=1)] = 0.4
    """Share of a record's targets, the least likely ones, that Min-K% looks at."""
    fpr: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """False-positive rate at which the true-positive rate is read off."""
    max_auc_gap: Annotated[float, Field(ge=0, le=1)] | None = None
    """Largest distance of an AUC to the references' mean that passes, for every attack alike, given
    50 records of either set; no verdict when absent."""


def _reads(config: MiaConfig, dataset: Dataset) -> Iterator[Reading]:
    able = [n for n in get_args(Attack) if dataset.kind != "classifier" or n not in _OF_TEXT]
    attacks = set(config.attacks) & set(able)
    if not attacks:
        raise ConfigError(
            f"attacks = {list(config.attacks)}: none of them can be made on records of a "
            f"{dataset.kind!r}; choose among {listing(able, 6)}"
        )
    measured = tuple(sorted(attacks & _MEASURED))
    for reading in (MEMBERS, NONMEMBERS):
        yield dataclasses.replace(reading, measures=measured)


@audit(
    "mia",
    kinds={"causal_lm", "classifier"},
    reads=_reads,
    source="Yeom et al. (2018); Carlini et al. (2021); Min-K% (Shi et al., 2024); Min-K%++ (Zhang "
    "et al., 2024); Carlini et al. (2022) for the true-positive rate",
)
def mia(evidence: Evidence, config: MiaConfig, run: Run) -> list[Finding]:
    """Can an attacker tell forgotten records from records never seen?

    Each attack gives a record a score and calls it a member when the score is high:

    - ``loss``: minus the loss per target.
    - ``zlib``: minus the loss per target over the bytes of the compressed answer.
    - ``min_k``: the mean log-probability of the least likely targets (a share ``k`` of them).
    - ``min_k_pp``: the same after each log-probability was set beside mean and standard deviation
      of the model's own distribution at that place.
    - ``reference``: how far the loss lies below the mean loss under the retrained models, under the
      other ones for a retrained model.
    - ``grad_norm``: minus the norm of the gradient of the loss over all weights.

    Every answer token counts, the end of text included; public code leaves the last one out of
    Min-K%, Min-K%++ and the gradient norm. Where every record has a single target, as a
    classifier's have, Min-K% is the loss attack and is left out with Min-K%++ and zlib.

    For each attack: the area under the ROC curve (``auc``; of others than the loss attack
    ``auc_min_k`` and so on) with Korn and Graubard's interval, the share of forgotten records
    caught when few held-out ones are called members (``tpr``), and the distance of the AUC to
    retraining (``auc_gap``) with a bootstrap interval over the records, which are resampled alike
    for all models; how retraining with other seeds would vary shows in the noise floor, not in it.
    An AUC of 0.5 means that the attack cannot tell; far below 0.5 the forgotten records stand out
    as unknown, which betrays them as well. What counts is the distance to retraining: forgotten and
    held-out records may differ by nature. Below 50 forgotten or held-out records a bound on it is
    inconclusive.

    It does not show that no other attack can tell; ``lira`` asks with a model of every record. The
    attacks share one pass over forgotten and held-out records; ``grad_norm`` adds a backward pass
    for each of them.

    Source: Yeom et al. (2018), section 3.2; Carlini et al. (2021), section 5.2; Min-K% (Shi et al.,
        2024), eq. 1; Min-K%++ (Zhang et al., 2024); Watson et al. (2022) for the reference attack;
        Nasr et al. (2019) for gradients; Carlini et al. (2022), section III.
    """
    findings: list[Finding] = []
    for attack in _possible(config.attacks, evidence):

        def suspicion(subject: Subject, attack: Attack = attack) -> Suspicion:
            return _suspicion(attack, subject, evidence.others(subject), config.k)

        findings += attack_findings(
            evidence,
            suspicion,
            _NAMES[attack],
            suffix="" if attack == "loss" else f"_{attack}",
            fpr=config.fpr,
            max_auc_gap=config.max_auc_gap,
            seed=run.seed,
            pairwise=attack == "reference",
        )
    return findings


def attack_findings(
    evidence: Evidence,
    suspicion: Callable[[Subject], Suspicion],
    name: str,
    *,
    suffix: str = "",
    fpr: float,
    max_auc_gap: float | None,
    seed: int,
    pairwise: bool = False,
) -> list[Finding]:
    """Return AUC, true-positive rate and distance to retraining of one attack on every model.

    Args:
        evidence: The models.
        suspicion: How much a model's forgotten and held-out records look like members.
        name: The attack in a reader's words.
        suffix: Follows the names of the three numbers.
        fpr: False-positive rate at which the true-positive rate is read off.
        max_auc_gap: Largest distance that passes, given 50 records of either set.
        seed: The run's seed.
        pairwise: The attack compares a model with the other references.
    """
    suspicions = {subject: suspicion(subject) for subject in evidence}
    areas = {subject: _area(found) for subject, found in suspicions.items()}
    draws = {
        subject: bootstrap_aucs(*found, seed, "auc")
        for subject, found in suspicions.items()
        if not isinstance(found, str)
    }

    def gap(subject: Subject) -> Measurement:
        if subject not in draws:
            return areas[subject]
        known = [other for other in evidence.others(subject) if other in draws]
        others = [(areas[other], draws[other]) for other in known]
        sizes = [len(side) for side in suspicions[subject]]
        found = _gap(areas[subject], draws[subject], others, min(sizes))
        judged = max_auc_gap is not None and subject.role == "after" and found.value is not None
        return _unless_few(found, *sizes) if judged else found

    findings = evidence.compare(
        f"auc{suffix}",
        f"{name}, area under the ROC curve (0.5: cannot tell)",
        lambda subject: areas[subject],
        direction="reference",
        record_set="forget",
        pairwise=pairwise,
    )
    findings += evidence.compare(
        f"tpr{suffix}",
        f"{name}, true-positive rate at {100 * fpr:g} % false positives",
        lambda subject: _caught(suspicions[subject], fpr),
        direction="reference",
        record_set="forget",
        pairwise=pairwise,
    )
    findings += evidence.compare(
        f"auc_gap{suffix}",
        f"{name}, distance of the AUC to retraining",
        gap,
        direction="lower",
        record_set="forget",
        threshold=max_auc_gap,
        pairwise=True,
    )
    return findings


def distance(found: Measurement, others: Sequence[Measurement]) -> Measurement:
    """Return how far a number is from the mean of others, its interval, if any, carried over.

    Args:
        found: The number.
        others: The numbers to compare with, which count as exact.
    """
    standards = [other.value for other in others if other.value is not None]
    if found.value is None:
        return found
    if not standards:
        return Measurement(None, found.n, note=NO_REFERENCE)
    mean, interval = float(np.mean(standards)), None
    if found.interval is not None:
        low, high = found.interval.low - mean, found.interval.high - mean
        interval = folded(dataclasses.replace(found.interval, low=low, high=high))
    return Measurement(abs(found.value - mean), found.n, interval, found.note)


def _gap(
    own: Measurement,
    draws: np.ndarray,
    others: Sequence[tuple[Measurement, np.ndarray]],
    pairs: int,
) -> Measurement:
    """Return how far an AUC is from the mean of others, by a bootstrap over shared records.

    Args:
        own: The AUC.
        draws: It in every resample of the records.
        others: The AUC of each reference, and it in the same resamples.
        pairs: Disjoint pairs of a member and a non-member that it rests on.
    """
    standards = [area.value for area, _ in others if area.value is not None]
    if own.value is None or not standards:
        return Measurement(None, own.n, note=own.note or NO_REFERENCE)
    gap = own.value - float(np.mean(standards))
    gaps = draws - np.mean([theirs for _, theirs in others], axis=0)
    return Measurement(abs(gap), own.n, folded(resampled(gap, gaps, pairs)))


def _unless_few(gap: Measurement, members: int, others: int) -> Measurement:
    """Return a gap that a bound is set on; on few records it is not judged."""
    if min(members, others) >= JUDGED_RECORDS:
        return gap
    note = (
        f"{members} forgotten and {others} held-out records; a bound is judged on "
        f"{JUDGED_RECORDS} or more of each"
    )
    return dataclasses.replace(gap, note=note, verdict="inconclusive")


def _possible(attacks: Sequence[Attack], evidence: Evidence) -> list[Attack]:
    """Return the attacks that these scores allow; if that is none, all, so that each says why."""
    members, others = (evidence.after.scores[reading] for reading in (MEMBERS, NONMEMBERS))
    single = max([*members.n_R, *others.n_R], default=0) == 1
    ruled_out: set[Attack] = {name for name in _MEASURED if name not in members.measured}
    if single:
        ruled_out |= {"min_k", "min_k_pp"}
    if not evidence.references:
        ruled_out.add("reference")
    wanted = list(dict.fromkeys(attacks))
    return [attack for attack in wanted if attack not in ruled_out] or wanted


def _suspicion(attack: Attack, subject: Subject, others: Sequence[Subject], k: float) -> Suspicion:
    if not len(subject.scores[NONMEMBERS]):
        return "there are no held-out records to compare with"
    if attack == "reference" and not others:
        return "no other retrained model whose losses could serve as reference"
    if attack in _MEASURED and attack not in subject.scores[MEMBERS].measured:
        return f"the measure {attack!r} was not taken when the model was scored; score it again"

    def of(reading: Reading) -> np.ndarray:
        scores: Scores = subject.scores[reading]
        match attack:
            case "loss":
                return mia_scores.loss(scores)
            case "zlib":
                return mia_scores.loss_per_byte(scores)
            case "min_k":
                return mia_scores.min_k(scores, k)
            case "min_k_pp":
                return mia_scores.min_k_plus(scores, k)
            case "reference":
                known = [other.scores[reading] for other in others]
                return mia_scores.below_reference(scores, known)
            case "grad_norm":
                return -scores.measured["grad_norm"]

    return of(MEMBERS), of(NONMEMBERS)


def _area(suspicion: Suspicion) -> Measurement:
    if isinstance(suspicion, str):
        return Measurement(None, 0, note=suspicion)
    members, others = suspicion
    value, interval = auc(members, others)
    return Measurement(value, len(members) + len(others), interval)


def _caught(suspicion: Suspicion, fpr: float) -> Measurement:
    if isinstance(suspicion, str):
        return Measurement(None, 0, note=suspicion)
    members, others = suspicion
    hits, n = tpr_at_fpr(members, others, fpr)
    few = len(others) * fpr < 1
    note = f"with {len(others)} non-members no false positive is allowed" if few else ""
    return Measurement(hits / n, n, clopper_pearson(hits, n), note)
