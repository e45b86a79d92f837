"""Every method for classifiers at its defaults on small pictures, and how its rate was chosen.

2,000 pictures of Fashion-MNIST at 14 x 14, a perceptron, 200 random records to forget, the collapse
guard on. Rates that a method's settings speak of are compared on the pilot seed; the numbers to
report come from other seeds, each with a retrained model of its own.

Source: SalUn (Fan et al., 2024), section 5 and table 1, at a small scale.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import torch
from output import parser, report
from small_pictures import COUNT, FITTED, Numbers, World, tuning, world

from expunge.core.errors import ExpungeError
from expunge.core.sets import Sets
from expunge.pipeline.request import Request, resolve

PILOT = 100
NUMBERS = ("ua", "ra", "ta", "mia", "average_gap")
# Its default rate belongs to language models; the card has 5 epochs at 1e-5 to 1e-3.
ASCENT = {"schedule": {**tuning(1e-3), "epochs": 5}}
METHODS: Mapping[str, Mapping[str, Any]] = {
    "finetune": {},
    "grad_ascent": ASCENT,
    "random_label": {},
    "salun": {},
    "salun_soft": {},
    "influence": {},
    "boundary_expand": {},
    "boundary_shrink": {},
    "l1_sparse": {},
    "scrub": {},
    "bad_teacher": {},
    "cfk": {},
    "euk": {},
    "neggrad_plus": {},
    "ssd": {},
    "laf": {},
}


def _rate(lr: float) -> dict[str, Any]:
    return {"schedule": {"lr": lr}}


# Beside the defaults: method -> label -> what differs.
TRIED: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "boundary_expand": {"3e-5": _rate(3e-5), "1e-3": _rate(1e-3)},
    "boundary_shrink": {"1e-4": _rate(1e-4), "1e-3": _rate(1e-3)},
    "l1_sparse": {"0.01": _rate(0.01), "0.1": _rate(0.1)},
    "scrub": {"0.01": _rate(0.01), "0.02": _rate(0.02), "0.05": _rate(0.05)},
    "bad_teacher": {"retain share 0.3": {"retain_share": 0.3}, "1e-4": _rate(1e-4)},
    "neggrad_plus": {"0.01": _rate(0.01), "0.05": _rate(0.05)},
    "influence": {"damping 1": {"damping": 1.0}, "alpha 1": {"alpha": 1.0}},
}


def main() -> None:
    """Compare rates on the pilot seed, then report on the others."""
    made = parser("Methods for classifiers at their defaults, beside retraining.")
    made.add_argument("--seeds", type=int, default=3, help="seeds to report on")
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    here, sets, retrained = trial(PILOT)
    pilot = {
        name: {
            label: _gap(here, sets, retrained, name, {**METHODS[name], **own})
            for label, own in {"default": {}, **others}.items()
        }
        for name, others in TRIED.items()
    }
    found: dict[str, list[Numbers]] = {}
    for seed in range(0, 10 * options.seeds, 10):
        here, sets, retrained = trial(seed)
        models = {"original": here.original, "retrained": retrained}
        for name, settings in METHODS.items():
            models[name] = here.unlearned(sets, name, settings, guarded=True)
        for name, model in models.items():
            found.setdefault(name, []).append(here.numbers(model, [retrained], sets))
    means = {
        name: {key: statistics.fmean(one[key] for one in own) for key in NUMBERS}
        for name, own in found.items()
    }
    rows = [
        {"model": name, **{key: f"{own[key]:.2f}" for key in NUMBERS}}
        for name, own in means.items()
    ]
    title = f"Means over {options.seeds} seeds, percent"
    report(title, rows, {"pilot": pilot, "means": means}, options.json)
    for name, gaps in pilot.items():
        listed = ", ".join(f"{label}: {_told(gap)}" for label, gap in gaps.items())
        print(f"pilot, average gap, {name}: {listed}")


def trial(seed: int) -> tuple[World, Sets, torch.nn.Module]:
    """Return the world of a seed, what is to be forgotten, and a model retrained without it."""
    here = world("fashion_mnist", seed, FITTED)
    sets = resolve(Request(count=COUNT), here.dataset, seed)
    return here, sets, here.retrained(sets)


def _gap(
    here: World, sets: Sets, retrained: torch.nn.Module, method: str, settings: Mapping[str, Any]
) -> float | None:
    """Return the average gap; ``None`` where the method refuses or overflows."""
    try:
        model = here.unlearned(sets, method, settings, guarded=True)
    except ExpungeError:
        return None
    return here.numbers(model, [retrained], sets)["average_gap"]


def _told(gap: float | None) -> str:
    return "refused" if gap is None else f"{gap:.2f}"


if __name__ == "__main__":
    main()
