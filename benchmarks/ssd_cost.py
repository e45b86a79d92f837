"""What SSD costs on ResNet-18 with pictures of 28 x 28: time against one epoch, and memory.

Every arm is a process of its own. The unit is one epoch of plain training of the same network on
the same pictures, in the same batches, through the library's one loop. A tenth of the pictures is
forgotten; importances are taken over that tenth, and over a third of all pictures (20,000 of 60,000
by default) or all of them, as the paper does. Times are processor time, for a fraction of 60,000
pictures; each part of both is proportional to their number, but for checks of weights and files.

Memory is counted twice. By hand: the weights, the importances of one pass, and the most gradients
that are alive at once, over the weights. By the kernel: the largest memory that the process held
during the call, over what it held with the network loaded; activations of a batch are part of it,
so that an arm with batches of one record shows the rest. The C library is told to give back at once
what is freed.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from output import parser, report
from timing import in_child, resident, watched
from torch import Tensor, nn

from expunge.core.records import Records
from expunge.core.run import Run
from expunge.core.streams import stream
from expunge.data.arrays import from_arrays
from expunge.engine.schedule import Schedule
from expunge.forget.method import Given, apply
from expunge.models.source import load_model_source
from expunge.train.supervised import learn

WIDTHS = (64, 128, 256, 512)
BATCH = 64
UNIT = "one epoch of training"
SAMPLE = 20_000 / 60_000  # what the default stands for
SSD: dict[str, dict[str, Any]] = {
    "ssd": {"max_records": SAMPLE},
    "ssd, 1 pass": {"max_records": SAMPLE, "passes": 1},
    "ssd, all records": {"max_records": 1.0},
    "ssd, all records, 1 pass": {"max_records": 1.0, "passes": 1},
    "ssd, all records, 1 pass, whole = retain": {
        "max_records": 1.0,
        "passes": 1,
        "whole": "retain",
    },
    "ssd, 1 pass, one record at a time": {"max_records": 1.0, "passes": 1, "per_sample": True},
}
ALONE = "ssd, 1 pass, one record at a time"
FEW = 64


class Watch:
    """Counts the bytes of gradients that are alive, whenever a parameter gets its own."""

    def __init__(self, model: nn.Module) -> None:
        self.most = 0
        self._parameters = list(model.parameters())
        for parameter in self._parameters:
            parameter.register_post_accumulate_grad_hook(self._count)

    def _count(self, parameter: Tensor) -> None:
        del parameter
        alive = sum(p.grad.nbytes for p in self._parameters if p.grad is not None)
        self.most = max(self.most, alive)


def measured(arm: str, count: int) -> dict[str, float]:
    """Run one arm; return processor seconds, MiB and the ratio counted by hand."""
    draw = stream(0, "pictures")
    x, y = draw.normal(size=(count, 1, 28, 28)).astype(np.float32), draw.integers(10, size=count)
    dataset = from_arrays(x, y, num_classes=10)
    loaded = load_model_source("resnet", {"widths": list(WIDTHS)}, dataset, 0)
    model, task, records = loaded.model, loaded.task, dataset.train
    size = sum(p.nbytes for p in model.parameters())
    _warm(model)
    watch = Watch(model)
    with TemporaryDirectory() as folder:
        run, before = Run(folder=Path(folder)), resident()
        started = time.process_time()
        if arm == UNIT:
            schedule = Schedule(epochs=1, batch_size=BATCH, freeze_norm_statistics=False)
            peak, _ = watched(lambda: learn(model, task, records, schedule, run))
            state = 3 * size  # importances have no place; AdamW has two numbers for each weight
        else:
            forget, retain = _divided(records)
            most = round(SSD[arm]["max_records"] * count)
            settings = {**SSD[arm], "max_records": most, "force": True}
            given = Given(task, forget, retain, guard=None)
            peak, _ = watched(lambda: apply("ssd", model, given, run, settings, in_place=True))
            files = Path(folder).rglob("importance-*.safetensors")
            state = size + max(file.stat().st_size for file in files)
        return {
            "cpu": time.process_time() - started,
            "model": size / 2**20,
            "over": peak - before,
            "by_hand": (state + watch.most) / size,
        }


def _warm(model: nn.Module) -> None:
    """Let torch load what it loads with the first pass and optimiser, which is nobody's."""
    model(torch.zeros(2, 1, 28, 28)).sum().backward()
    model.zero_grad(set_to_none=True)
    torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)


def _divided(records: Records) -> tuple[Records, Records]:
    gone = len(records) // 10
    return records.take(range(gone)), records.take(range(gone, len(records)))


def main() -> None:
    """Measure every arm."""
    options = _options()
    torch.set_num_threads(options.threads)
    if options.arm:
        print(json.dumps(measured(options.arm, options.pictures)))
        return
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # read by the arms' processes as they start
    found = {
        arm: in_child(
            __file__,
            [
                *("--threads", str(options.threads), "--arm", arm),
                *("--pictures", str(FEW if arm == ALONE else options.pictures)),
            ],
        )
        for arm in (UNIT, *SSD)
    }
    unit = found[UNIT]["cpu"] / options.pictures
    rows = [_row(arm, numbers, unit, options.pictures) for arm, numbers in found.items()]
    title = f"ResNet-18, {options.pictures} pictures, a tenth forgotten, batches of {BATCH}"
    numbers = {"pictures": options.pictures, "few": FEW, "widths": list(WIDTHS), "arms": found}
    report(title, rows, numbers, options.json)


def _row(arm: str, own: Mapping[str, float], unit: float, pictures: int) -> dict[str, str]:
    each = own["cpu"] / (FEW if arm == ALONE else pictures)
    return {
        "arm": arm,
        "cpu-ms per picture": f"{1000 * each:.1f}",
        "hours for 60,000": f"{each * 60_000 / 3600:.2f}",
        "epochs": f"{each / unit:.2f}",
        "memory by hand, weights = 1": f"{own['by_hand']:.2f}",
        "weights MiB": f"{own['model']:.1f}",
        "MiB over the loaded network": f"{own['over']:.0f}",
    }


def _options() -> argparse.Namespace:
    made = parser("Time and memory of SSD against one epoch of training.")
    made.add_argument("--pictures", type=int, default=960, help="how many stand for 60,000")
    made.add_argument("--arm", help="run one arm once and print its numbers")
    return made.parse_args()


if __name__ == "__main__":
    main()
