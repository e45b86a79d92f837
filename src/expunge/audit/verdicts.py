"""Verdicts of one run, corrected for the number of its bounds.

Each bound is judged by an interval or a test of its own. Who sets twenty of them must expect one to
pass or fail by chance; Holm's correction asks more of each verdict whose error is known.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from scipy import stats

from expunge.audit.multiplicity import holm
from expunge.core.finding import Finding

ALPHA = 0.05
"""Chance that any corrected verdict of a run is wrong, at most."""


def judged_together(findings: Sequence[Finding]) -> list[Finding]:
    """Return findings whose verdicts hold at once; what no longer holds is inconclusive.

    A verdict for which the corrected p-value is above 5 % becomes inconclusive, never the opposite.
    Every bound counts, decided or not. One bound alone is judged as it was. Verdicts without a
    known error stay as they were: see ``p_value``.

    Args:
        findings: Every finding of one run.

    Source: Holm (1979).
    """
    changed = list(findings)
    judged = [row for row, one in enumerate(findings) if one.threshold is not None]
    if len(judged) == 1:
        return changed
    adjusted = holm([p_value(findings[row]) for row in judged])
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
    """Return how likely a value as far from the bound is if the verdict were wrong.

    With an interval: if the bound were met exactly, two-sided, with a normal error. The interval's
    half on the side of the bound is a known number of standard errors. Where the value is the end
    of its interval on that side, half of the width stands in. An interval without width knows
    nothing of its error: 1.

    What an audit says of the error of its verdict goes before the interval. ``None`` where nothing
    is known: without a bound or a number, or with neither of the two.

    Args:
        finding: A judged number.
    """
    interval, bound, value = finding.interval, finding.threshold, finding.value
    if bound is None or value is None:
        return None
    if finding.error is not None:
        return finding.error
    if interval is None:
        return None
    half = value - interval.low if bound < value else interval.high - value
    if half <= 0:
        half = (interval.high - interval.low) / 2
    if half <= 0:
        return 1.0
    errors = stats.norm.isf((1 - interval.level) / 2) * abs(value - bound) / half
    return float(2 * stats.norm.sf(errors))
