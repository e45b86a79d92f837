"""Four requests, one after the other: O3 against gradient difference and NPO applied in sequence.

O3 reads the request alone; the other methods read retained records as well. After each request the
model is measured on every request so far, and on facts that no method sees. The gate is judged too:
how well it tells forgotten from held prompts. ``--world people`` asks SmolLM2 to forget two
invented people at a time; ``--world country_facts`` asks a character-level GPT to forget six
countries at a time, whose prompts look like all others.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from lm_study import Study, spread, study
from output import parser, report
from sklearn.metrics import roc_auc_score
from torch import nn

from expunge.core.records import Records, concatenate
from expunge.core.run import Run
from expunge.workloads.lm_fixtures import FIXTURES

REQUESTS = 4
PEOPLE, QUESTIONS = 12, 5


@dataclasses.dataclass(frozen=True)
class World:
    """A trained model, four requests, and the methods' settings.

    Attributes:
        found: The model and its records; ``retain`` and ``held`` are never requested.
        requests: Records to forget, in their order.
        arms: Method and settings by label.
    """

    found: Study
    requests: list[Records]
    arms: dict[str, tuple[str, dict[str, Any]]]


def country_facts() -> World:
    """Return requests of six countries each (18 facts)."""
    found = study()
    schedule = {"epochs": 50, "batch_size": 18}
    return World(
        found,
        [found.countries(6, 6 * place) for place in range(REQUESTS)],
        {
            "o3": ("o3", {"schedule": {**schedule, "lr": 2e-3, "weight_decay": 0.1}}),
            "grad_diff": ("grad_diff", {"schedule": schedule}),
            "npo": ("npo", {"beta": 1.0, "schedule": schedule}),
        },
    )


def people() -> World:
    """Return requests of two invented people each (10 facts); two others are kept, two held."""
    data = {"num_people": PEOPLE, "num_holdout_people": 0, "questions_per_person": QUESTIONS}
    fixture = dataclasses.replace(FIXTURES["people"], data=("people", data))
    dataset = fixture.dataset()
    train = dataset.train

    def told(start: int, count: int = 2) -> Records:
        return train.take(range(start * QUESTIONS, (start + count) * QUESTIONS))

    requests = [told(2 * place) for place in range(REQUESTS)]
    forget = concatenate(requests)
    rest = train.take(range(len(forget), len(train)))
    before = fixture.before(dataset, Run(quiet=False))
    found = Study(before, dataset, forget, told(8), told(10), rest, fixture.schedule)
    own = {"scope": fixture.scope, "schedule": {"batch_size": 5}}
    adapter = {"epochs": 10, "batch_size": 5, "lr": 1e-3, "weight_decay": 0.1, "warmup_epochs": 0}
    return World(
        found,
        requests,
        {
            "o3": ("o3", {"schedule": adapter}),
            "grad_diff": ("grad_diff", own),
            "npo": ("npo", {"beta": 0.5, **own}),
        },
    )


WORLDS = {"country_facts": country_facts, "people": people}


def main() -> None:
    """Run every arm through the four requests."""
    made = parser("Forgotten and held facts after each of four successive requests.")
    made.add_argument("--seeds", type=int, default=3, help="runs of each arm")
    made.add_argument("--world", choices=WORLDS, default="people", help="model and requests")
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    world = WORLDS[options.world]()
    numbers = {
        arm: [in_sequence(world, *told, seed) for seed in range(options.seeds)]
        for arm, told in world.arms.items()
    }
    rows = []
    for arm, runs in numbers.items():
        for request in range(REQUESTS):
            after = [run[request] for run in runs]
            rows.append(
                {
                    "method": arm,
                    "after request": request + 1,
                    "forgotten so far": spread([max(one["forgotten"]) for one in after], ".2f"),
                    "held": spread([one["held"] for one in after], ".2f"),
                    "held loss": spread([one["held_loss"] for one in after], ".2f"),
                    "held, adapter always on": _cell(after, "held_always_on"),
                    "gate tells them apart (AUROC)": _cell(after, "auroc"),
                }
            )
    title = "Exact match; forgotten is the worst of the requests so far"
    report(title, rows, numbers, options.json)


def in_sequence(
    world: World, method: str, settings: dict[str, Any], seed: int
) -> list[dict[str, Any]]:
    """Apply a method to one request after the other and measure after each."""
    found, requests = world.found, world.requests
    model: nn.Module = found.before.model
    told = []
    for place, forget in enumerate(requests):
        model = found.apply(method, settings, seed, forget=forget, model=model).model
        one: dict[str, Any] = {
            "forgotten": [found.exact(model, earlier) for earlier in requests[: place + 1]],
            "held": found.exact(model, found.held),
            "held_loss": found.loss(model, found.held),
        }
        if method == "o3":
            one |= _gate(found, model, requests[: place + 1])
        told.append(one)
    return told


def _gate(found: Study, model: Any, requests: list[Records]) -> dict[str, float]:
    from expunge.engine.composites.gated_adapter import request_features

    with model.forced(1.0):
        always = found.exact(model, found.held)

    def weights(records: Records) -> np.ndarray:
        features = request_features(model, found.before.task, records, Run())
        return np.max([gate.weight(features) for gate in model.gates], axis=0)

    inside, outside = weights(concatenate(requests)), weights(found.held)
    labels = np.concatenate([np.ones(len(inside)), np.zeros(len(outside))])
    return {
        "held_always_on": always,
        "auroc": float(roc_auc_score(labels, np.concatenate([inside, outside]))),
        "gate_forgotten": float(inside.mean()),
        "gate_held": float(outside.mean()),
    }


def _cell(runs: list[dict[str, Any]], name: str) -> str:
    return spread([run[name] for run in runs], ".2f") if name in runs[0] else ""


if __name__ == "__main__":
    main()
