"""Memorization of the forgotten records before and after: which numbers tell it, and their plot."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from expunge.report.comparison import Comparison
from expunge.report.plots import LABELS, MARKERS, figure_of
from expunge.report.svg import COLOURS, drawing, inline_svg
from expunge.report.wording import clean

if TYPE_CHECKING:
    from markupsafe import Markup

MAX_NUMBERS = 8
_LABEL_WIDTH = 40

# Audits, and numbers of audits, that come first.
_FIRST = (
    ("memorization", ""),
    ("muse", ""),
    ("tofu", "probability"),
    ("tofu", "rouge_l"),
)
# Attacks are told by their own numbers and curves.
_ATTACKS = ("mia",)
_ATTACKING = ("privleak", "min_k_auc")


def memorized(compared: Sequence[Comparison]) -> list[Comparison]:
    """Return the numbers of the forgotten records that ought to become those of retraining.

    They are shares (0 to 1, or percent) and known of the model after forgetting and at least one
    other; numbers about memorization come first, at most eight are returned.
    """
    return sorted((one for one in compared if _fits(one)), key=_order)[:MAX_NUMBERS]


def shares(one: Comparison) -> dict[str, float]:
    """Return a number of every role that has it, between 0 and 1."""
    told = {
        "before": one.before.value if one.before else None,
        "after": one.after.value,
        "reference": one.retrained,
    }
    scale = 100 if one.after.unit == "%" else 1
    return {role: value / scale for role, value in told.items() if value is not None}


def dumbbells(numbers: Sequence[Comparison]) -> Markup:
    """Draw a line from before to after for each number, with retraining marked on it."""
    with drawing("memorized"):
        figure = figure_of(8, 1.1 + 0.45 * len(numbers))
        axes = figure.subplots()
        for place, one in enumerate(numbers):
            told = shares(one)
            ends = [told[role] for role in ("before", "after") if role in told]
            axes.plot(ends, [place] * len(ends), "-", color=COLOURS["line"], linewidth=3)
        for role, marker in MARKERS.items():
            points = [
                (shares(one)[role], i) for i, one in enumerate(numbers) if role in shares(one)
            ]
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    marker,
                    color=COLOURS[role],
                    fillstyle="none" if role == "reference" else "full",
                    markeredgewidth=1.8,
                    markersize=8,
                    label=LABELS[role],
                    clip_on=False,
                )
        axes.set(xlim=(-0.02, 1.02), ylim=(len(numbers) - 0.5, -0.5), xlabel="share")
        axes.set_yticks(range(len(numbers)), labels(numbers))
        axes.yaxis.grid(visible=False)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
        return inline_svg(
            figure, "Numbers of the forgotten records before, after and in retrained models."
        )


def labels(numbers: Sequence[Comparison]) -> list[str]:
    """Return the numbers' names on the plot: in short, where that tells them apart."""
    short = [(one.label, one.after.audit) for one in numbers]
    names = [
        one.label if short.count((one.label, one.after.audit)) == 1 else one.after.title
        for one in numbers
    ]
    return [
        textwrap.fill(clean(f"{name} ({one.after.audit})"), _LABEL_WIDTH, break_on_hyphens=False)
        for name, one in zip(names, numbers, strict=True)
    ]


def _fits(one: Comparison) -> bool:
    after = one.after
    asks_probe = (after.audit, after.metric) == ("muse", "knowledge")
    if after.direction != "reference" or not (after.record_set == "forget" or asks_probe):
        return False
    if after.audit in _ATTACKS or after.metric in _ATTACKING:
        return False
    if after.value is None or after.unit not in ("", "%"):
        return False
    told = shares(one)
    return len(told) > 1 and all(0 <= value <= 1 for value in told.values())


def _order(one: Comparison) -> int:
    known = [
        place
        for place, (audit, metric) in enumerate(_FIRST)
        if one.after.audit == audit and metric in ("", one.after.metric)
    ]
    return known[0] if known else len(_FIRST)
