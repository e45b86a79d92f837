"""The plots of a report, each as inline SVG; matplotlib is imported when one is drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from expunge.report.comparison import Comparison
from expunge.report.facts import History
from expunge.report.losses import Losses
from expunge.report.svg import COLOURS, drawing, inline_svg
from expunge.report.wording import clean, subject_words

if TYPE_CHECKING:
    from markupsafe import Markup

MAX_POINTS = 200
NUM_BINS = 24
LOWEST_LOSS = 1e-5

# By role.
MARKERS = {"before": "o", "after": "D", "reference": "s"}
LABELS = {"before": "before", "after": "after", "reference": "retrained"}
DASHES = {"before": "-", "after": "-", "reference": "--"}

# Which two numbers span the forget-utility plane: utility to the right, forgetting upwards.
_PLANES = (
    (("tofu", "model_utility", ""), ("tofu", "forget_quality_log10", "forget")),
    (("tofu", "model_utility", ""), ("tofu", "probability", "forget")),
    (("unlearning_gap", "ta", "test"), ("unlearning_gap", "ua", "forget")),
)
_NOT_TERMS = ("step", "lr", "grad_norm")


@dataclasses.dataclass(frozen=True)
class Curve:
    """A loss term of one training loop.

    Attributes:
        steps: The steps that had the term; where streams are read in turn, not every step has.
        values: Its value at each of them.
    """

    steps: np.ndarray
    values: np.ndarray


def figure_of(width: float, height: float) -> Any:
    """Return an empty figure of a size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def role_of(name: str) -> str:
    """Return the role, and so the colour, of a model, a training loop or a loss term."""
    if name.startswith("reference"):
        return "reference"
    return {"train": "before", "retain": "before", "before": "before"}.get(name, "after")


def terms(history: History) -> dict[str, Curve]:
    """Return the loss terms of a training loop by name."""
    names = sorted({name for step in history.steps for name in step} - {*_NOT_TERMS})
    points = {name: [(s["step"], s[name]) for s in history.steps if name in s] for name in names}
    return {name: Curve(*np.array(found).T) for name, found in points.items()}


def loss_curves(histories: Mapping[str, History]) -> Markup | None:
    """Draw the loss terms of forgetting and of training by step; ``None`` without any step.

    Long histories are averaged over equal spans of steps.
    """
    forgetting = terms(histories["forget"]) if "forget" in histories else {}
    lines = [
        [(name, role_of(name), curve) for name, curve in forgetting.items()],
        [
            (subject_words("before" if name == "train" else name), role_of(name), curve)
            for name, history in _training(histories)
            for curve in terms(history).values()
        ],
    ]
    panels = [
        (title, drawn)
        for title, drawn in zip(("Forgetting", "Training"), lines, strict=True)
        if drawn
    ]
    if not panels:
        return None
    with drawing("loss-curves"):
        figure = figure_of(8, 3)
        grid = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (title, drawn) in zip(grid, panels, strict=True):
            axes.set(title=title, xlabel="step", ylabel="loss")
            for name, role, curve in drawn:
                _line(axes, curve, name, role)
            axes.legend()
        return inline_svg(figure, "Line plot of the loss by step while forgetting and training.")


def plane_numbers(compared: Sequence[Comparison]) -> tuple[Comparison, Comparison] | None:
    """Return the two numbers of the forget-utility plane, or ``None`` when no pair is complete."""
    known = {one.key: one for one in compared}
    for right, up in _PLANES:
        if right in known and up in known:
            pair = known[right], known[up]
            complete = all(one.after.value is not None for one in pair)
            if complete and len(pair[0].references) == len(pair[1].references):
                return pair
    return None


def plane_points(pair: tuple[Comparison, Comparison]) -> list[tuple[str, str, float, float]]:
    """Return role, name, utility and forgetting of every model that has both."""
    right, up = pair
    points = []
    for role in ("before", "after"):
        x, y = getattr(right, role), getattr(up, role)
        if x is not None and y is not None and x.value is not None and y.value is not None:
            points.append((role, role, x.value, y.value))
    for place, (x, y) in enumerate(zip(right.references, up.references, strict=True)):
        if x.value is not None and y.value is not None:
            points.append(("reference", subject_words(f"reference-{place}"), x.value, y.value))
    return points


def forget_utility_plane(pair: tuple[Comparison, Comparison]) -> Markup:
    """Draw every model as a point: utility to the right, forgetting upwards."""
    points = plane_points(pair)
    with drawing("forget-utility"):
        figure = figure_of(8, 3.6)
        axes = figure.subplots()
        axes.set(xlabel=clean(pair[0].label), ylabel=clean(pair[1].label))
        axes.margins(0.15)
        # A range of a few thousandths would make noise look like damage.
        best, worst = max(x for *_, x, _ in points), min(x for *_, x, _ in points)
        room = best or 1.0  # a model that can do nothing has no utility at all
        axes.set_xlim(min(0.75 * best, worst) - 0.05 * room, 1.1 * room)
        for role, marker in MARKERS.items():
            here = [(x, y) for of, _, x, y in points if of == role]
            if here:
                axes.plot(
                    *zip(*here, strict=True),
                    marker,
                    color=COLOURS[role],
                    fillstyle="none" if role == "reference" else "full",
                    markeredgewidth=1.8,
                    markersize=9,
                    label=LABELS[role],
                )
        axes.legend()
        return inline_svg(
            figure, "Scatter plot of forgetting against utility for each model of this run."
        )


def loss_bins(losses: Losses, record_set: str) -> np.ndarray | None:
    """Return the edges of bins, equal on a logarithmic scale, over the losses of all models."""
    groups = [sets[record_set] for sets in losses.values() if record_set in sets]
    values = np.concatenate(groups) if groups else np.empty(0)
    if not len(values):
        return None
    values = np.clip(values, LOWEST_LOSS, None)
    low, high = values.min(), values.max()
    if low == high:
        low, high = low / 2, high * 2
    return np.geomspace(low, high, NUM_BINS + 1)


def loss_distributions(losses: Losses, record_set: str, edges: np.ndarray) -> Markup:
    """Draw the distribution of losses of a record set: before, after, retrained (pooled).

    Args:
        losses: Losses of every model.
        record_set: The set.
        edges: Bins; see ``loss_bins``.
    """
    pooled: dict[str, list[np.ndarray]] = {"before": [], "after": [], "reference": []}
    for subject, sets in losses.items():
        if record_set in sets:
            pooled[role_of(subject)].append(sets[record_set])
    with drawing("loss-distributions"):
        figure = figure_of(8, 3)
        axes = figure.subplots()
        axes.set(xscale="log", xlabel="loss per target (nats)", ylabel="share of records (%)")
        axes.set_xticks(edges[::4], [f"{edge:.2g}" for edge in edges[::4]])
        axes.minorticks_off()
        for role, parts in pooled.items():
            if parts:
                counts, _ = np.histogram(_within(np.concatenate(parts), edges), edges)
                axes.stairs(
                    100 * counts / counts.sum(),
                    edges,
                    color=COLOURS[role],
                    linestyle=DASHES[role],
                    linewidth=1.8,
                    label=LABELS[role],
                )
        axes.legend()
        return inline_svg(
            figure, "Histogram of the loss per record before, after and in retrained models."
        )


def _within(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.clip(values, edges[0], edges[-1])


def _training(histories: Mapping[str, History]) -> list[tuple[str, History]]:
    """Return the training loops, the original model's first."""
    named = [item for item in histories.items() if item[0] != "forget"]
    return sorted(named, key=lambda item: (item[0] != "train", item[0]))


def _line(axes: Any, curve: Curve, name: str, role: str) -> None:
    x, y = _thinned(curve.steps), _thinned(curve.values)
    axes.plot(x, y, DASHES[role], color=COLOURS[role], label=clean(name))


def _thinned(values: np.ndarray) -> np.ndarray:
    """Return values averaged over at most ``MAX_POINTS`` equal spans."""
    spans = np.array_split(values, min(len(values), MAX_POINTS))
    return np.array([span.mean() for span in spans])
