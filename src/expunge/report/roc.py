"""The loss attack as a curve, and as a score of each record, from losses alone."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from expunge.report.losses import Losses
from expunge.report.plots import DASHES, MARKERS, figure_of, role_of
from expunge.report.svg import COLOURS, drawing, inline_svg
from expunge.report.wording import subject_words

if TYPE_CHECKING:
    from markupsafe import Markup

FPR = 0.01
"""False-positive rate at which a point is marked on each curve."""


@dataclasses.dataclass(frozen=True, eq=False)
class Roc:
    """How well the loss tells forgotten records from records never seen.

    Attributes:
        members: Number of forgotten records.
        nonmembers: Number of held-out records.
        fpr_K: False-positive rates of the curve's corners, from 0 to 1.
        tpr_K: True-positive rates of the same.
        auc: Area under the curve; ties count half.
        low: False- and true-positive rate of the last corner with at most 1 % false positives.
    """

    members: int
    nonmembers: int
    fpr_K: np.ndarray
    tpr_K: np.ndarray
    auc: float
    low: tuple[float, float]


def roc(members_R: np.ndarray, nonmembers_S: np.ndarray) -> Roc:
    """Return the curve of the attack that calls a record a member when its loss is low.

    Args:
        members_R: Losses of forgotten records, at least one.
        nonmembers_S: Losses of held-out records, at least one.

    Source: Yeom et al. (2018), section 3.2.
    """
    bars = np.unique(np.concatenate([members_R, nonmembers_S]))
    tpr_K = np.concatenate([[0.0], _share_up_to(members_R, bars)])
    fpr_K = np.concatenate([[0.0], _share_up_to(nonmembers_S, bars)])
    area = float(np.sum(np.diff(fpr_K) * (tpr_K[1:] + tpr_K[:-1]) / 2))
    place = int(np.searchsorted(fpr_K, FPR + 1e-9, side="right")) - 1
    low = float(fpr_K[place]), float(tpr_K[place])
    corner = _corners(fpr_K, tpr_K)
    return Roc(len(members_R), len(nonmembers_S), fpr_K[corner], tpr_K[corner], area, low)


def membership(loss_R: np.ndarray, nonmembers_S: np.ndarray) -> np.ndarray:
    """Return the share of held-out records with a higher loss than each record, ties half.

    Over the forgotten records the mean is the area under the curve; over the held-out ones 0.5.

    Args:
        loss_R: Losses of records.
        nonmembers_S: Losses of held-out records, at least one.
    """
    ordered = np.sort(nonmembers_S)
    below = np.searchsorted(ordered, loss_R, side="left")
    up_to = np.searchsorted(ordered, loss_R, side="right")
    share_R: np.ndarray = 1 - (below + up_to) / (2 * len(ordered))
    return share_R


def rocs(losses: Losses) -> dict[str, Roc]:
    """Return the curve of every model that was scored on forgotten and held-out records."""
    return {
        subject: roc(sets["forget"], sets["holdout"])
        for subject, sets in losses.items()
        if len(sets.get("forget", ())) and len(sets.get("holdout", ()))
    }


def roc_curves(curves: dict[str, Roc]) -> Markup:
    """Draw the curves of all models, the diagonal, and the points at 1 % false positives."""
    with drawing("roc"):
        figure = figure_of(8, 4.6)
        axes = figure.subplots()
        axes.set(
            xlabel="false-positive rate (held-out records called members)",
            ylabel="true-positive rate (forgotten records)",
            xlim=(-0.02, 1.02),
            ylim=(-0.02, 1.02),
        )
        axes.plot([0, 1], [0, 1], ":", color=COLOURS["muted"], linewidth=1, label="cannot tell")
        for subject, curve in curves.items():
            role = role_of(subject)
            name = f"{subject_words(subject)}, AUC {curve.auc:.2f}"
            width, order = (1.2, 2) if role == "reference" else (1.8, 3)
            axes.plot(
                curve.fpr_K,
                curve.tpr_K,
                DASHES[role],
                color=COLOURS[role],
                linewidth=width,
                zorder=order,
                label=name,
            )
            axes.plot(*curve.low, MARKERS[role], color=COLOURS[role], markersize=6, zorder=order)
        axes.set_aspect("equal")
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
        return inline_svg(
            figure, "ROC curves of the loss attack before, after and in retrained models."
        )


def _share_up_to(values: np.ndarray, bars: np.ndarray) -> np.ndarray:
    share: np.ndarray = np.searchsorted(np.sort(values), bars, side="right") / len(values)
    return share


def _corners(fpr_K: np.ndarray, tpr_K: np.ndarray) -> np.ndarray:
    """Return which points a curve needs: those within a straight line up or right are left out."""
    right, up = np.diff(fpr_K) > 0, np.diff(tpr_K) > 0
    turns = (right[1:] != right[:-1]) | (up[1:] != up[:-1]) | (right[1:] & up[1:])
    return np.concatenate([[True], turns, [True]])
