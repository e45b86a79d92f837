"""Gates: one verdict of one audit each, under bounds that are fixed before any model is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from expunge.audit.audit import AuditInfo, audits, parse_config, run_audit
from expunge.audit.evidence import Evidence
from expunge.core.finding import Finding, Verdict
from expunge.core.run import Run

FAR = 0.1
"""Distance to retraining beyond which an audit without bounds of its own is taken to fail."""

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "mia": {"max_auc_gap": 0.1},
    "lira": {"max_auc_gap": 0.1},
    "tofu": {
        "utility_sets": ["retain", "test"],
        "max_utility_records": 100,
        "max_new_tokens": 0,
        "min_forget_quality": 0.05,
        "min_utility_kept": 0.8,
    },
    "memorization": {"record_sets": ["forget"]},
    "relearn": {
        "steps": [5, 20],
        "lr": 1e-3,
        "benign": ["retain"],
        "benign_steps": 20,
        "max_excess": 0.1,
        "min_steps_ratio": 0.5,
    },
    "quantize": {"scales": ["channel"], "max_records": 100, "max_excess": 0.1},
    "probe": {"blocks": [-1], "max_excess": 0.05, "max_lens_excess": 0.1},
    "paraphrase": {
        "rephrasers": [],
        "prefixes": [],
        "noise": [],
        "languages": [],
        "again": False,
        "turns": [],
        "search_steps": 0,
        "max_excess": 0.1,
        "max_rewording_gain": 0.1,
    },
    "neighbours": {"calibration": False, "max_excess_drop": 0.03},
}
"""Settings of each audit: bounds, and sizes that fit the small world."""


@dataclasses.dataclass(frozen=True)
class Gate:
    """One verdict.

    Attributes:
        name: What the tables call it.
        audit: Registered audit.
        metrics: Judged numbers that count; all of the audit's when empty.
        distance: Numbers without a bound of their own: they fail when their whole interval is
            farther than ``FAR`` from the mean of the retrained models, above or below.
    """

    name: str
    audit: str
    metrics: tuple[str, ...] = ()
    distance: tuple[str, ...] = ()


GATES = (
    Gate("mia", "mia"),
    Gate("lira", "lira"),
    Gate("tofu: forget quality", "tofu", ("forget_quality",)),
    Gate("tofu: utility", "tofu", ("utility_kept",)),
    Gate("memorization", "memorization", distance=("verbatim", "knowledge")),
    Gate("relearn", "relearn"),
    Gate("quantize", "quantize"),
    Gate("probe", "probe"),
    Gate("paraphrase", "paraphrase"),
    Gate("neighbours", "neighbours"),
)


def chosen_audits(names: Sequence[str]) -> list[tuple[AuditInfo, Any]]:
    """Return audits with the settings above.

    Args:
        names: Registered names.

    Raises:
        ConfigError: There is no such audit.
    """
    infos = [audits.get(name) for name in names]
    return [(info, parse_config(info, SETTINGS[info.name])) for info in infos]


def gates_of(names: Sequence[str]) -> list[Gate]:
    """Return the gates that some audits serve."""
    return [gate for gate in GATES if gate.audit in names]


def judge_all(
    chosen: Sequence[tuple[AuditInfo, Any]], evidence: Evidence, run: Run
) -> dict[str, Verdict]:
    """Return the verdict of every gate on the model after unlearning, each bound judged alone.

    False alarms and power are those of a gate, whichever others are tried beside it; the correction
    that a run applies to all its bounds (``judged_together``) is left out.

    Args:
        chosen: Audits with their settings.
        evidence: The models.
        run: Gives the audits' seed.
    """
    found = {info.name: run_audit(info, own, evidence, run) for info, own in chosen}
    return {gate.name: verdict(gate, found[gate.audit]) for gate in gates_of([*found])}


def verdict(gate: Gate, findings: Sequence[Finding]) -> Verdict:
    """Return the worst verdict that counts: fail, then inconclusive, then pass.

    Args:
        gate: Which numbers count.
        findings: Everything the audit found.
    """
    own = [finding for finding in findings if finding.subject == "after"]
    verdicts: set[Verdict] = {
        finding.verdict
        for finding in own
        if finding.threshold is not None and finding.metric in (gate.metrics or {finding.metric})
    }
    verdicts |= {_by_distance(finding) for finding in own if finding.metric in gate.distance}
    order: tuple[Verdict, ...] = ("fail", "inconclusive", "pass")
    return next((worst for worst in order if worst in verdicts), "inconclusive")


def _by_distance(finding: Finding) -> Verdict:
    if finding.value is None or finding.interval is None or finding.reference is None:
        return "inconclusive"
    mean = finding.value - finding.reference.gap
    low, high = finding.interval.low - mean, finding.interval.high - mean
    if low > FAR or high < -FAR:
        return "fail"
    return "pass" if low >= -FAR and high <= FAR else "inconclusive"
