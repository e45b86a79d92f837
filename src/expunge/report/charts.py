"""The charts of a report, each with the rows of the table that stands behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from expunge.report import memorized, plots, radar, roc
from expunge.report.comparison import Comparison
from expunge.report.facts import Facts
from expunge.report.losses import Losses


def charts(facts: Facts, compared: Sequence[Comparison], losses: Losses) -> dict[str, Any]:
    """Return the charts by name; ``None`` for those that the run has no numbers for.

    Args:
        facts: Everything that the report says.
        compared: Every number, side by side.
        losses: Loss of every record under every model.
    """
    return {
        "curves": _curves(facts),
        "plane": _plane(compared),
        "memorized": _memorized(compared),
        "radar": _radar(compared),
        "distributions": _distributions(losses),
        "roc": _roc(losses),
    }


def _curves(facts: Facts) -> dict[str, Any] | None:
    drawn = plots.loss_curves(facts.histories)
    if drawn is None:
        return None
    rows = [
        (name, term, len(values), values[0], values[len(values) // 2], values[-1])
        for name, history in facts.histories.items()
        for term, values in ((t, curve.values) for t, curve in plots.terms(history).items())
    ]
    return {"svg": drawn, "rows": rows}


def _plane(compared: Sequence[Comparison]) -> dict[str, Any] | None:
    pair = plots.plane_numbers(compared)
    if pair is None:
        return None
    return {
        "svg": plots.forget_utility_plane(pair),
        "labels": [one.after.title for one in pair],
        "points": [point[1:] for point in plots.plane_points(pair)],
    }


def _memorized(compared: Sequence[Comparison]) -> dict[str, Any] | None:
    numbers = memorized.memorized(compared)
    if not numbers:
        return None
    rows = [(one.after.title, one.after.audit, memorized.shares(one)) for one in numbers]
    return {"svg": memorized.dumbbells(numbers), "rows": rows}


def _radar(compared: Sequence[Comparison]) -> dict[str, Any] | None:
    spokes = radar.spokes(compared)
    return {"svg": radar.radar(spokes), "spokes": spokes} if spokes else None


def _distributions(losses: Losses) -> dict[str, Any] | None:
    edges = plots.loss_bins(losses, "forget")
    if edges is None:
        return None
    rows = [
        (record_set, subject, len(values), *np.quantile(values, [0.25, 0.5, 0.75]).tolist())
        for record_set in dict.fromkeys(name for sets in losses.values() for name in sets)
        for subject, sets in losses.items()
        if len(values := sets.get(record_set, np.empty(0)))
    ]
    return {"svg": plots.loss_distributions(losses, "forget", edges), "rows": rows}


def _roc(losses: Losses) -> dict[str, Any] | None:
    curves = roc.rocs(losses)
    return {"svg": roc.roc_curves(curves), "rows": curves} if curves else None
