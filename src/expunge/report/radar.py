"""The six properties of MUSE as a radar: outward is better, retraining is the outermost ring.

Source: MUSE (Shi et al., 2025), section 3, for the properties; the normalisation is Expunge's own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from expunge.report.comparison import Comparison
from expunge.report.plots import DASHES, LABELS, MARKERS, figure_of
from expunge.report.svg import COLOURS, drawing, inline_svg

if TYPE_CHECKING:
    from markupsafe import Markup

AUDIT = "muse"
MIN_MEASURED = 3
ROLES = ("before", "after", "reference")
_RINGS = (0.25, 0.5, 0.75, 1.0)


@dataclasses.dataclass(frozen=True)
class Property:
    """One property of MUSE.

    Attributes:
        metric: The number's name in findings of the audit ``muse``.
        title: The property in a reader's words.
    """

    metric: str
    title: str


PROPERTIES = (
    Property("verbatim", "no verbatim\nmemorization"),
    Property("knowledge", "no knowledge\nmemorization"),
    Property("privleak", "no privacy\nleakage"),
    Property("utility", "utility\npreserved"),
    Property("scalability", "scalability"),
    Property("sustainability", "sustainability"),
)


@dataclasses.dataclass(frozen=True)
class Spoke:
    """One axis of the radar.

    Attributes:
        name: The property in a reader's words.
        unit: Unit of the numbers.
        values: The numbers as they were found, by role.
        places: Where they lie on the axis, 0..1, by role.
    """

    name: str
    unit: str
    values: dict[str, float | None]
    places: dict[str, float]

    @property
    def measured(self) -> bool:
        """Whether the model after forgetting has a place on the axis."""
        return "after" in self.places


def spokes(compared: Sequence[Comparison]) -> list[Spoke] | None:
    """Return the six axes; ``None`` when fewer than three of them were measured."""
    known = {one.after.metric: one for one in compared if one.after.audit == AUDIT}
    found = [_spoke(wanted, known.get(wanted.metric)) for wanted in PROPERTIES]
    return found if sum(one.measured for one in found) >= MIN_MEASURED else None


def spoke(wanted: Property, values: Mapping[str, float | None], unit: str) -> Spoke:
    """Return the axis of one property.

    Args:
        wanted: The property.
        values: Its number ``before``, ``after`` and of the ``reference`` (mean of the retrained).
        unit: Unit of the numbers: ``"%"`` or none.
    """
    told = {role: values.get(role) for role in ROLES}
    scale = 100 if unit == "%" else 1
    places = {
        role: _place(wanted.metric, value / scale, told, scale)
        for role, value in told.items()
        if value is not None
    }
    # PrivLeak is a distance to retraining: known of the model after, it is 0 of retraining.
    if "reference" in places or ("after" in places and wanted.metric == "privleak"):
        places["reference"] = 1.0
    return Spoke(wanted.title.replace("\n", " "), unit, told, places)


def radar(axes_of: Sequence[Spoke]) -> Markup:
    """Draw the axes and a polygon for each role; what was not measured is grey and open."""
    with drawing("radar"):
        figure = figure_of(8, 5)
        axes = figure.subplots()
        axes.set_axis_off()
        axes.set_aspect("equal")
        axes.set(xlim=(-1.75, 1.75), ylim=(-1.4, 1.4))
        for ring in _RINGS:
            corners = [_point(i, ring) for i in range(len(axes_of) + 1)]
            axes.plot(*zip(*corners, strict=True), "-", color=COLOURS["line"], linewidth=0.6)
        for place, spoke in enumerate(axes_of):
            _draw_axis(axes, place, spoke)
        for role in ROLES:
            _draw_polygon(axes, axes_of, role)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return inline_svg(
            figure, "Radar of the six MUSE properties for the original, new and retrained models."
        )


def _spoke(wanted: Property, one: Comparison | None) -> Spoke:
    if one is None:
        return spoke(wanted, {}, "")
    before = one.before.value if one.before else None
    values = {"before": before, "after": one.after.value, "reference": one.retrained}
    return spoke(wanted, values, one.after.unit)


def _place(metric: str, share: float, values: Mapping[str, float | None], scale: int) -> float:
    """Return where a number lies on its axis, between 0 and 1."""
    retrained = values["reference"]
    if metric in ("verbatim", "knowledge"):
        return 1 - _unit(share - (retrained or 0.0) / scale)
    if metric == "privleak":
        return 1 - _unit(abs(share))
    whole = (retrained if retrained is not None else values["before"] or 0.0) / scale
    return _unit(share / whole) if whole > 0 else _unit(share)


def _unit(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def _point(place: int, radius: float) -> tuple[float, float]:
    angle = math.pi / 2 - 2 * math.pi * place / len(PROPERTIES)
    return radius * math.cos(angle), radius * math.sin(angle)


def _draw_axis(axes: Any, place: int, spoke: Spoke) -> None:
    x, y = _point(place, 1.0)
    style = "-" if spoke.measured else ":"
    axes.plot([0, x], [0, y], style, color=COLOURS["line"], linewidth=0.8)
    side = "center" if abs(x) < 1e-9 else ("left" if x > 0 else "right")
    label = PROPERTIES[place].title + ("" if spoke.measured else "\n(not measured)")
    colour = COLOURS["ink" if spoke.measured else "muted"]
    level = "center" if side != "center" else ("bottom" if y > 0 else "top")
    axes.text(1.1 * x, 1.1 * y, label, ha=side, va=level, color=colour)


def _draw_polygon(axes: Any, axes_of: Sequence[Spoke], role: str) -> None:
    """Draw the corners of a role, and edges between neighbours that were both measured."""
    radii = [spoke.places.get(role) if spoke.measured else None for spoke in axes_of]
    points = [None if r is None else _point(i, r) for i, r in enumerate(radii)]
    known = [point for point in points if point is not None]
    if not known:
        return
    for here, there in zip(points, [*points[1:], points[0]], strict=True):
        if here is not None and there is not None:
            axes.plot(
                [here[0], there[0]],
                [here[1], there[1]],
                DASHES[role],
                color=COLOURS[role],
            )
    axes.plot(
        *zip(*known, strict=True),
        MARKERS[role],
        color=COLOURS[role],
        fillstyle="none" if role == "reference" else "full",
        markersize=6,
        label={**LABELS, "before": "original"}[role],
    )
