"""Verdicts that hold together: one correction over every bound of a run.

Each bound is judged by an interval of its own. Who sets twenty of them must expect one to pass by
chance; Holm's correction asks more of each, so that all verdicts of a run hold together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from scipy import stats

from expunge.audit.multiplicity import holm
from expunge.core.finding import Finding

ALPHA = 0.05
"""Chance that any verdict of a run is wrong, at most."""


def judged_together(findings: Sequence[Finding]) -> list[Finding]:
    """Return findings whose verdicts hold at once; what no longer holds is inconclusive.

    A verdict for which the corrected p-value is above 5 % becomes inconclusive, never the opposite.
    Every bound counts, decided or not. One bound alone is judged as it was. Findings without an
    interval have no error to correct.

    Args:
        findings: Every finding of one run.

    Source: Holm (1979).
    """
    judged = [row for row, one in enumerate(findings) if one.threshold is not None]
    adjusted = holm([p_value(findings[row]) for row in judged])
    changed = list(findings)
    for row, p in zip(judged, adjusted, strict=True):
        if p is not None and p > ALPHA and findings[row].verdict in ("pass", "fail"):
            told = (
                f"without the other {len(judged) - 1} bounds this would be a "
                f"{changed[row].verdict}; corrected for them (Holm) p is {p:.2g}"
            )
            note = f"{changed[row].note}; {told}" if changed[row].note else told
            changed[row] = dataclasses.replace(changed[row], verdict="inconclusive", note=note)
    return changed


def p_value(finding: Finding) -> float | None:
    """Return how likely a value as far from the bound is if the bound were met exactly, two-sided.

    Recovered from the interval: its half on the side of the bound is a known number of standard
    errors. ``None`` without an interval or a bound.

    Args:
        finding: A judged number.
    """
    interval, bound, value = finding.interval, finding.threshold, finding.value
    if interval is None or bound is None or value is None:
        return None
    distance = abs(value - bound)
    half = value - interval.low if bound < value else interval.high - value
    if half <= 0:
        return 1.0  # an interval without width knows nothing of its error
    errors = stats.norm.isf((1 - interval.level) / 2) * distance / half
    return float(2 * stats.norm.sf(errors))
