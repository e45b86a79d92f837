"""How long gradient ascent and NPO can run before the rest of the model is lost.

Without and with a retain term, at the same learning rate and in the same batches, for many more
steps than forgetting needs. Every few steps the model is measured on facts that no method sees. A
run has collapsed at the first measurement with less than half of these facts left.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lm_study import Study, spread, study
from output import parser, report
from torch import nn

from expunge.core.files import write_text
from expunge.report.svg import standalone_lines

ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "gradient ascent": ("grad_ascent", {}),
    "NPO, beta 0.1": ("npo", {"retain": "none", "beta": 0.1}),
    "NPO, beta 1": ("npo", {"retain": "none", "beta": 1.0}),
    "gradient difference": ("grad_diff", {}),
    "NPO with retain term, beta 0.1": ("npo", {"beta": 0.1}),
    "NPO with retain term, beta 1": ("npo", {"beta": 1.0}),
}
LOST = 0.5


class Watch:
    """A tracker that measures the model it is given, every few steps."""

    def __init__(self, found: Study, model: nn.Module, every: int) -> None:
        self.found, self.model, self.every = found, model, every
        self.steps: list[int] = []
        self.held: list[float] = []
        self.held_loss: list[float] = []
        self.forget_loss: list[float] = []

    def log(self, values: dict[str, float], step: int) -> None:
        """Take a step; measure where it is due."""
        if "step/step" in values and step % self.every == 0:
            self.measure(step)

    def measure(self, step: int) -> None:
        """Measure exact match on held facts, and the loss of forgotten ones."""
        with torch.no_grad():
            self.steps.append(step)
            self.held.append(self.found.exact(self.model, self.found.held))
            self.held_loss.append(self.found.loss(self.model, self.found.held))
            self.forget_loss.append(self.found.loss(self.model, self.found.forget))

    def collapse(self) -> int | None:
        """Return the first measured step at which half of the held facts are lost, if any."""
        return next((s for s, h in zip(self.steps, self.held, strict=True) if h < LOST), None)


def main() -> None:
    """Run every arm with every seed, and draw the curves of the first one."""
    made = parser("Held facts and losses by step: gradient ascent and NPO.")
    made.add_argument("--seeds", type=int, default=3, help="runs of each arm")
    made.add_argument("--epochs", type=int, default=100, help="passes, 3 steps each")
    made.add_argument("--lr", type=float, default=5e-5, help="learning rate")
    made.add_argument("--every", type=int, default=6, help="steps between two measurements")
    made.add_argument("--svg", type=Path, help="draw the curves of the first seed here")
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    found = study()
    curves = {
        arm: [watched(found, arm, seed, options) for seed in range(options.seeds)] for arm in ARMS
    }
    numbers = {
        arm: {
            "collapse_step": [watch.collapse() for watch in watches],
            "steps": watches[0].steps,
            "held": [watch.held for watch in watches],
            "held_loss": [watch.held_loss for watch in watches],
            "forget_loss": [watch.forget_loss for watch in watches],
        }
        for arm, watches in curves.items()
    }
    last = 3 * options.epochs
    rows = [
        {
            "method": arm,
            "collapses at step": _steps([watch.collapse() for watch in watches], last),
            "held at the end": spread([watch.held[-1] for watch in watches], ".2f"),
            "held loss at the end": spread([watch.held_loss[-1] for watch in watches], ".1f"),
            "forgotten loss half-way": spread(
                [watch.forget_loss[len(watch.steps) // 2] for watch in watches], ".1f"
            ),
            "forgotten loss at the end": spread(
                [watch.forget_loss[-1] for watch in watches], ".1f"
            ),
        }
        for arm, watches in curves.items()
    ]
    report(f"{last} steps; collapse: held < {LOST}", rows, numbers, options.json)
    if options.svg:
        lines = {arm: (watches[0].steps, watches[0].held) for arm, watches in curves.items()}
        title = "Facts that no method saw, by step (first seed)"
        drawn = standalone_lines({"share still exact": lines}, title, "optimiser step")
        write_text(options.svg, drawn)


def watched(found: Study, arm: str, seed: int, options: Any) -> Watch:
    """Run one arm and return its curve."""
    method, settings = ARMS[arm]
    model = copy.deepcopy(found.before.model)
    watch = Watch(found, model, options.every)
    watch.measure(0)
    longer = {**settings, "schedule": {"epochs": options.epochs, "lr": options.lr}}
    found.apply(method, longer, seed, model=model, tracker=watch, in_place=True)
    return watch


def _steps(values: Sequence[int | None], last: int) -> str:
    known = [f"> {last}" if value is None else str(value) for value in values]
    return ", ".join(known)


if __name__ == "__main__":
    main()
