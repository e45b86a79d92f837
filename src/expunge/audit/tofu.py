"""TOFU: probability, ROUGE-L, truth ratio, model utility and forget quality."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from expunge.audit.audit import audit
from expunge.audit.evidence import Evidence, Measurement, Subject
from expunge.audit.readings import PARAPHRASE, PERTURBED, Reading, num_perturbed
from expunge.audit.recovery import JUDGED_RECORDS
from expunge.audit.stats import (
    KSTest,
    clopper_pearson,
    ks_test,
    mean_interval,
    percentile_interval,
)
from expunge.audit.tofu_metrics import TITLES, UTILITY_METRICS, Values, log_truth_ratio
from expunge.audit.tofu_values import Utility, answer_losses, model_utility, record_values
from expunge.audit.verdicts import ALPHA
from expunge.core.config import config
from expunge.core.finding import Finding, Interval
from expunge.core.run import Run
from expunge.core.sets import ROLES
from expunge.data.dataset import Dataset

_NO_WIDTH = 1e-9  # resamples that differ less do so by rounding
_COLLAPSED = "the model has collapsed: too little of its utility is left for this to mean anything"

Utilities = Mapping[Subject, Utility]


@config
class TofuConfig:
    """Settings of the TOFU audit."""

    utility_sets: tuple[str, ...] = ("retain", "real_authors", "world_facts")
    """Record sets of model utility; those that the data lack are named in a note."""
    max_utility_records: Annotated[int, Field(ge=0)] = 300
    """Most records of each utility set, those with wrong answers first; 0 takes all."""
    max_new_tokens: Annotated[int, Field(ge=0)] = 200
    """Longest generated answer in tokens; 0 generates nothing and leaves ROUGE out."""
    collapse_below: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Forget quality fails when model utility falls below this share of that before forgetting."""
    min_forget_quality: Annotated[float, Field(ge=0, le=1)] | None = None
    """Smallest p-value of the model after forgetting that passes, given 50 records; no verdict when
    absent."""
    min_utility_kept: Annotated[float, Field(ge=0)] | None = None
    """Smallest share of the utility before forgetting that passes; no verdict when absent."""


def _reads(config: TofuConfig, dataset: Dataset) -> Iterator[Reading]:
    for name in ("forget", *config.utility_sets):
        if name not in (*ROLES, *dataset.probes):
            continue
        records = dataset.records("train" if name in ("forget", "retain") else name)
        plain = _plain(config, name)
        tokens = config.max_new_tokens if "answer" in records else 0
        measures = ("rouge_l",) if tokens else ()
        yield dataclasses.replace(plain, max_new_tokens=tokens, measures=measures)
        if "paraphrased_answer" in records:
            yield dataclasses.replace(plain, view=PARAPHRASE)
        for place in range(num_perturbed(records)):
            yield dataclasses.replace(plain, view=f"{PERTURBED}{place}")


@audit(
    "tofu",
    kinds={"causal_lm"},
    reads=_reads,
    source="TOFU: A Task of Fictitious Unlearning for LLMs (Maini et al., COLM 2024)",
)
def tofu(evidence: Evidence, config: TofuConfig, run: Run) -> list[Finding]:
    """Forget quality and model utility of a language model, as TOFU defines them.

    Forget quality is the p-value of a Kolmogorov-Smirnov test between the truth ratios of the model
    and of a retrained one on the forgotten records: high means "no evidence of a difference", not
    proof of forgetting. With several references it is the median's (of two, the smaller one), and
    each p-value stands in the note. A reference is tested against the others: that is the ceiling.
    The test sees little on few records: below 50 a bound on it can fail, and never passes.

    Intervals of utility are bootstrap percentiles over the records. Where no resample differs, as
    when all utility is lost, they reach as far as unseen records can move it, of which there may be
    as many as Clopper and Pearson allow.

    Source: TOFU (Maini et al., 2024), sections 2.2 and 2.3.
    """
    names = ("forget", *config.utility_sets)
    values = {
        subject: {name: record_values(subject, _plain(config, name)) for name in names}
        for subject in evidence
    }
    findings = []
    for name in names:
        for metric in values[evidence.after][name]:

            def mean(subject: Subject, name: str = name, metric: str = metric) -> Measurement:
                return _mean(values[subject][name][metric], run.seed, name)

            findings += evidence.compare(
                metric,
                TITLES[metric],
                mean,
                direction="reference" if name == "forget" else "higher",
                record_set=name,
            )
    utilities = {
        subject: model_utility(values[subject], config.utility_sets, run.seed)
        for subject in evidence
    }
    findings += _utility_findings(evidence, config, values, utilities, run.seed)
    findings += _quality_findings(evidence, config, utilities)
    return findings


def _plain(config: TofuConfig, name: str) -> Reading:
    return Reading(name, limit=0 if name == "forget" else config.max_utility_records)


def _mean(values_R: np.ndarray, seed: int, purpose: str) -> Measurement:
    interval = mean_interval(values_R, seed, purpose)
    return Measurement(float(values_R.mean()), len(values_R), interval)


def _utility_findings(
    evidence: Evidence,
    config: TofuConfig,
    values: Mapping[Subject, Mapping[str, Values]],
    utilities: Utilities,
    seed: int,
) -> list[Finding]:
    before = utilities[evidence.before] if evidence.before is not None else None

    def interval(subject: Subject, base: np.ndarray) -> Interval | None:
        return _interval(utilities[subject].draws, base, values[subject], config, seed)

    def utility(subject: Subject) -> Measurement:
        own = utilities[subject]
        if own.value is None:
            return Measurement(None, 0, note="no utility set has records: nothing to measure")
        note = f"not measured: {', '.join(own.absent)}" if own.absent else ""
        return Measurement(own.value, own.n, interval(subject, np.ones_like(own.draws)), note)

    def kept(subject: Subject) -> Measurement:
        own = utilities[subject]
        if before is None or not before.value or own.value is None:
            return Measurement(None, own.n, note="no model with utility before forgetting")
        return Measurement(own.value / before.value, own.n, interval(subject, before.draws))

    count = len(UTILITY_METRICS) * len(config.utility_sets)
    findings = evidence.compare(
        "model_utility",
        f"Model utility (harmonic mean of {count} numbers)",
        utility,
        direction="higher",
    )
    findings += evidence.compare(
        "utility_kept",
        "Model utility as a share of that before forgetting",
        kept,
        direction="higher",
        threshold=config.min_utility_kept,
    )
    return findings


def _interval(
    draws: np.ndarray,
    base: np.ndarray,
    values: Mapping[str, Values],
    config: TofuConfig,
    seed: int,
) -> Interval | None:
    """Return the interval of utility as a share of a base, with the same resamples of records.

    Where no resample differs (all utility is lost, or none), it reaches from a utility whose unseen
    records are all worth 0 to one whose unseen records are all worth 1.

    Args:
        draws: Draws of the utility.
        base: Draws of the base.
        values: The values that the utility is made of.
        config: Names the utility sets.
        seed: Seed of the bootstrap.
    """
    good = base > 0  # a resample in which the base is nothing yields no share
    if not good.any():
        return None
    found = percentile_interval(draws[good] / base[good])
    if found.high - found.low > _NO_WIDTH:
        return found
    worst, best = (
        percentile_interval(
            model_utility(_with_unseen(values, worth), config.utility_sets, seed).draws[good]
            / base[good]
        )
        for worth in (0.0, 1.0)
    )
    return dataclasses.replace(found, low=worst.low, high=best.high, method="zero-count")


def _with_unseen(values: Mapping[str, Values], worth: float) -> dict[str, Values]:
    """Return values mixed with as many unseen ones as Clopper and Pearson allow of n records."""

    def mixed(values_R: np.ndarray) -> np.ndarray:
        share = clopper_pearson(0, len(values_R)).high
        return (1 - share) * values_R + share * worth

    return {
        name: {metric: mixed(values_R) for metric, values_R in own.items()}
        for name, own in values.items()
    }


def _quality_findings(
    evidence: Evidence, config: TofuConfig, utilities: Utilities
) -> list[Finding]:
    tests = _tests(evidence, _plain(config, "forget"))
    collapsed = _collapsed(evidence, config, utilities)

    def quality(subject: Subject, number: Literal["p", "log10_p", "statistic"]) -> Measurement:
        n, found = tests[subject]
        if n < 2:
            return Measurement(None, n, note="fewer than 2 forgotten records have wrong answers")
        if not found:
            return Measurement(None, n, note="no other retrained model to compare with")
        remarks = []
        if len(found) > 1:
            remarks.append("p against each reference: " + ", ".join(f"{t.p:.2g}" for t in found))
        if n < JUDGED_RECORDS:
            remarks.append(f"only {n} records: models that have not forgotten can pass this test")
        if collapsed and subject is evidence.after:
            remarks.append(_COLLAPSED)
        return Measurement(
            getattr(found[(len(found) - 1) // 2], number), n, note="; ".join(remarks)
        )

    def judged(subject: Subject) -> Measurement:
        found, bound = quality(subject, "p"), config.min_forget_quality
        if subject is not evidence.after or found.value is None:
            return found
        if collapsed:  # a rule and no test, so that no error belongs to it
            return dataclasses.replace(found, verdict="fail")
        if bound is not None and found.value < bound:
            error = error_of_fail(found.value, len(tests[subject][1]), bound)
            return dataclasses.replace(found, error=error)
        # Of a pass no error is known: to find no difference does not show that there is none.
        if bound is None or found.n >= JUDGED_RECORDS:
            return found
        # On few records the test can condemn a model, but not clear it.
        note = (
            f"{found.note}; a pass needs {JUDGED_RECORDS} records: forget more of those that have "
            "wrong answers"
        )
        return dataclasses.replace(found, note=note, verdict="inconclusive")

    findings = evidence.compare(
        "forget_quality",
        TITLES["forget_quality"],
        judged,
        direction="higher",
        pairwise=True,
        record_set="forget",
        threshold=config.min_forget_quality,
    )
    findings += evidence.compare(
        "forget_quality_log10",
        TITLES["forget_quality_log10"],
        lambda subject: quality(subject, "log10_p"),
        direction="higher",
        pairwise=True,
        record_set="forget",
    )
    findings += evidence.compare(
        "forget_quality_distance",
        TITLES["forget_quality_distance"],
        lambda subject: quality(subject, "statistic"),
        direction="lower",
        pairwise=True,
        record_set="forget",
    )
    return findings


def error_of_fail(p: float, references: int, bound: float) -> float:
    """Return the chance that a forget quality below its bound is of a model like a retrained one.

    The median of k p-values is small k / ceil(k / 2) times as often as one of them, at most. A fail
    under a bound below 5 % is corrected at that level, one under a larger bound at 5 %.

    Args:
        p: The median of the p-values.
        references: k.
        bound: The bound.

    Source: Rüger (1978).
    """
    return min(p * references / ((references + 1) // 2) * max(1.0, ALPHA / bound), 1.0)


def _tests(evidence: Evidence, plain: Reading) -> dict[Subject, tuple[int, list[KSTest]]]:
    """Return for each model how many records were tested, and a test per reference, by rising p."""
    ratios = {s: log_truth_ratio(*answer_losses(s, plain)) for s in evidence}
    tests = {}
    for subject, own in ratios.items():
        found = [ks_test(own, ratios[s]) for s in evidence.others(subject)] if len(own) > 1 else []
        tests[subject] = (len(own), sorted(found, key=lambda test: test.log10_p))
    return tests


def _collapsed(evidence: Evidence, config: TofuConfig, utilities: Utilities) -> bool:
    if evidence.before is None:
        return False
    before, after = utilities[evidence.before].value, utilities[evidence.after].value
    return before is not None and after is not None and after < config.collapse_below * before
