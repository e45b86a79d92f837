"""TOFU's published evaluation logs as findings, under the audit's names.

Shape legend: R records, J wrong answers.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from expunge.audit import tofu_metrics as metrics
from expunge.audit.stats import (
    KSTest,
    harmonic_mean,
    ks_test,
    mean_interval,
    percentile_interval,
)
from expunge.audit.tofu_log import FILES, TofuLog
from expunge.core.digest import digest_json
from expunge.core.errors import ConfigError, DataError, listing
from expunge.core.finding import Direction, Finding, Reference

_UTILITY_SETS = ("retain", "real_authors", "world_facts")
_QUALITY: tuple[tuple[str, str, Direction], ...] = (
    ("p", "forget_quality", "higher"),
    ("log10_p", "forget_quality_log10", "higher"),
    ("statistic", "forget_quality_distance", "lower"),
)
_FEW = 50


def tofu_log_findings(
    log: TofuLog, retrained: TofuLog | None = None, *, common_rows: bool = False, seed: int = 0
) -> list[Finding]:
    """Return the numbers of the TOFU audit from a log, under the same names.

    Args:
        log: Log of the model after forgetting.
        retrained: Log of a model retrained without the forgotten records. Its own number stands
            beside each number whose rows are the same in both logs.
        common_rows: Where the logs have different forgotten rows, test those in both.
        seed: Seed of the bootstrap.

    Raises:
        ConfigError: Common rows are asked for, but there is no second log.
        DataError: The logs have different forgotten rows, or different questions under one id.

    Source: TOFU (Maini et al., 2024), sections 2.2 and 2.3.
    """
    if common_rows and retrained is None:
        raise ConfigError("common rows need a second log: give that of a retrained model")
    quality = None
    if retrained is not None:
        _require_same_questions(log, retrained)
        quality = _forget_quality(log, retrained, common_rows=common_rows)
    own, other = _values(log), _values(retrained) if retrained is not None else {}
    sets = digest_json({name: list(rows.ids) for name, rows in log.sets.items()})
    findings = []
    for name in FILES:
        note = _other_rows(log, retrained, name)
        for metric, values_R in own[name].items():
            value = float(values_R.mean())
            beside = float(other[name][metric].mean()) if retrained and not note else None
            findings.append(
                Finding(
                    audit="tofu",
                    metric=metric,
                    title=metrics.TITLES[metric],
                    subject="after",
                    value=value,
                    n=len(values_R),
                    direction="reference" if name == "forget" else "higher",
                    record_set=name,
                    interval=mean_interval(values_R, seed, name),
                    reference=_beside(value, beside),
                    sets=sets,
                    note=note,
                )
            )
    unlike = [note for name in _UTILITY_SETS if (note := _other_rows(log, retrained, name))]
    means, draws = metrics.utility(own, _UTILITY_SETS, seed)
    reason = _nothing_left(means)
    utility = _harmonic(means)
    beside = None
    if retrained and not unlike:
        beside = _harmonic(metrics.utility(other, _UTILITY_SETS, seed)[0])
    findings.append(
        Finding(
            audit="tofu",
            metric="model_utility",
            title=f"Model utility (harmonic mean of {len(means)} numbers)",
            subject="after",
            value=utility,
            n=sum(len(log.sets[name].ids) for name in _UTILITY_SETS),
            direction="higher",
            interval=percentile_interval(draws),
            reference=_beside(utility, beside),
            sets=sets,
            note="; ".join([*([reason] if reason else []), *unlike]),
        )
    )
    for number, metric, direction in _QUALITY:
        findings.append(
            Finding(
                audit="tofu",
                metric=metric,
                title=metrics.TITLES[metric],
                subject="after",
                value=getattr(quality.test, number) if quality else None,
                n=quality.n if quality else len(log.sets["forget"].ids),
                direction=direction,
                record_set="forget",
                sets=sets,
                note=quality.note if quality else "no log of a retrained model to compare with",
            )
        )
    return findings


@dataclasses.dataclass(frozen=True)
class _Quality:
    test: KSTest
    n: int
    note: str


def _forget_quality(log: TofuLog, retrained: TofuLog, *, common_rows: bool) -> _Quality:
    ours, theirs = log.sets["forget"], retrained.sets["forget"]
    common = sorted(set(ours.ids) & set(theirs.ids))
    note = _other_rows(log, retrained, "forget")
    if len(common) < 2:
        raise DataError(
            f"{log.name} and {retrained.name} share {len(common)} forgotten rows, and forget "
            f"quality needs at least 2: {note}; evaluate both models on the same rows"
        )
    if note and not common_rows:
        raise DataError(
            f"forget quality compares the same rows of {log.name} and {retrained.name}: {note}; "
            f"evaluate both models on the same rows, or test the {len(common)} common ones "
            "(--common-rows)"
        )
    remarks = [f"on the {len(common)} rows in both logs: {note}"] if note else []
    if len(common) < _FEW:
        remarks.append(
            f"only {len(common)} records: models that have not forgotten can pass this test"
        )
    test = ks_test(ours.log_truth_ratio(common), theirs.log_truth_ratio(common))
    return _Quality(test, len(common), "; ".join(remarks))


def _values(log: TofuLog) -> dict[str, dict[str, np.ndarray]]:
    """Return one value per record, by record set and metric."""
    values = {}
    for name, rows in log.sets.items():
        general = name not in ("forget", "retain")  # these are scored as multiple choice
        fold = metrics.cannot_tell if name == "forget" else metrics.prefers_truth
        losses = (rows.paraphrase_R, rows.wrong_RJ)
        values[name] = {
            "probability": metrics.choice_probability(rows.loss_R, rows.wrong_RJ)
            if general
            else metrics.probability(rows.loss_R),
            "rouge_l": rows.rouge_R,
            "truth_ratio": fold(metrics.log_truth_ratio(*losses)),
            "truth_ratio_arithmetic": fold(metrics.log_truth_ratio_arithmetic(*losses)),
        }
    return values


def _harmonic(means: list[tuple[str, float]]) -> float:
    return float(harmonic_mean([mean for _, mean in means]))


def _nothing_left(means: list[tuple[str, float]]) -> str:
    zero = [name for name, mean in means if mean <= 0]
    return f"0, since {', '.join(zero)} is 0" if zero else ""


def _beside(value: float, other: float | None) -> Reference | None:
    if other is None:
        return None
    return Reference(values=(other,), gap=value - other, noise_floor=None)


def _other_rows(log: TofuLog, retrained: TofuLog | None, name: str) -> str:
    """Say how the row ids of two logs differ; empty where they are the same."""
    if retrained is None:
        return ""
    ours, theirs = set(log.sets[name].ids), set(retrained.sets[name].ids)
    if ours == theirs:
        return ""
    return (
        f"of the {name} rows {_amount(ours - theirs)} only in the log and "
        f"{_amount(theirs - ours)} only in the retrained one"
    )


def _amount(ids: set[int]) -> str:
    return f"{len(ids)} ({listing(sorted(ids))}) are" if ids else "none are"


def _require_same_questions(log: TofuLog, retrained: TofuLog) -> None:
    for name, rows in log.sets.items():
        theirs = retrained.sets[name].questions
        unlike = [i for i, q in rows.questions.items() if i in theirs and theirs[i] != q]
        if unlike:
            raise DataError(
                f"{log.name} and {retrained.name} ask different questions under the same row ids "
                f"of {FILES[name]}: {len(unlike)} rows ({listing(sorted(unlike))}); evaluate both "
                "models on the same rows of the same split"
            )
