"""What the statistics of batch norm do to methods with the learning rates of their papers.

A residual network of ``expunge bench vision``, a tenth of its records forgotten, one seed. Accuracy
on forgotten, retained and test records in percent, without the collapse guard.
"""

from __future__ import annotations

from typing import Any

import torch
from output import parser, report

from expunge.audit.scores import score
from expunge.core.errors import NumericalError
from expunge.core.run import Run
from expunge.forget.method import apply
from expunge.workloads.vision_fixtures import FIXTURES

ARMS = (
    ("random_label", 0.013),
    ("random_label", 0.003),
    ("salun", 0.013),
    ("scrub", 0.013),
    ("scrub", 0.003),
)


def main() -> None:
    """Apply each method with statistics held and updated."""
    options = parser(str(__doc__)).parse_args()
    torch.set_num_threads(options.threads)
    run = Run(0)
    fixture = FIXTURES["resnet_random_10"].at(0)
    dataset = fixture.dataset()
    sets = fixture.sets(dataset, run)
    loaded = fixture.before(dataset, run)
    given = fixture.given(dataset, sets, loaded)

    def accuracies(model: Any) -> list[float]:
        parts = (given.forget, given.retain, dataset.test)
        found = [score(model, loaded.task, part, Run()) for part in parts if part is not None]
        return [round(100 * float(scores.greedy_N.mean()), 1) for scores in found]

    rows = [{"method": "original", "rate": "", "held": accuracies(loaded.model), "updated": ""}]
    for name, lr in ARMS:
        row: dict[str, Any] = {"method": name, "rate": lr}
        for label, held in (("held", True), ("updated", False)):
            settings = {"schedule": {"lr": lr, "freeze_norm_statistics": held}}
            try:
                row[label] = accuracies(apply(name, loaded.model, given, run, settings).model)
            except NumericalError as error:
                row[label] = str(error).partition(";")[0]
        rows.append(row)
    report("Accuracy on forgotten, retained and test records", rows, rows, options.json)


if __name__ == "__main__":
    main()
