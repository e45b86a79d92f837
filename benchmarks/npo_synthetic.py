"""NPO's synthetic study: how far gradient ascent and NPO drift, in logistic regression.

Two classes, random ReLU features, full-batch gradient descent in double precision. Distances are
KL(retrained || unlearned) over fresh inputs, in nats. Methods run through the same loop and losses
as on any model.

Source: Negative Preference Optimization (Zhang et al., 2024), section 3 and its parameter file.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from output import parser, report
from torch import Tensor, nn

from expunge.core.records import Records
from expunge.core.run import Run
from expunge.core.streams import stream
from expunge.engine.tasks.classifier import Classifier
from expunge.forget.method import Given, apply

NUM_INPUTS, NUM_FEATURES = 16, 128
NUM_FORGET, NUM_RETAIN, NUM_FRESH = 200, 1000, 10_000
STEPS = 2000
# A step of the order "mixed" divides by all its records; these weights make it a sum of two means.
MEANS = {
    "gamma": (NUM_FORGET + NUM_RETAIN) / NUM_FORGET,
    "alpha": (NUM_FORGET + NUM_RETAIN) / NUM_RETAIN,
}
METHODS: dict[str, tuple[str, dict[str, Any], float]] = {
    "grad_ascent": ("grad_ascent", {}, 5e-4),
    "grad_diff": ("grad_diff", MEANS, 5e-4),
    "npo": ("npo", {"beta": 1.0, "retain": "none"}, 5e-3),
    "npo + retain": ("npo", {"beta": 1.0, **MEANS}, 5e-3),
    "npo, beta 0.01": ("npo", {"beta": 0.01, "retain": "none"}, 5e-4),
}


class RandomFeatures(nn.Module):
    """Two-class model with logits (a · relu(W x), 0); only ``a`` is learned.

    Args:
        weights: The fixed W, (features, inputs).
    """

    weights: Tensor

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", weights)
        self.a = nn.Parameter(torch.zeros(len(weights), dtype=weights.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, (B, 2)."""
        logit_B = torch.relu(x @ self.weights.T) @ self.a
        return torch.stack([logit_B, torch.zeros_like(logit_B)], dim=1)


@dataclasses.dataclass(frozen=True)
class Half:
    """Inputs and labels of one of the two groups.

    Attributes:
        x: Inputs, (rows, 16).
        y: Classes, (rows,).
    """

    x: np.ndarray
    y: np.ndarray

    def records(self, name: str) -> Records:
        """Return the same as records with ids of their own."""
        ids = tuple(f"{name}-{row}" for row in range(len(self.y)))
        return Records(ids, {"x": self.x, "y": self.y})  # type: ignore[dict-item]


def main() -> None:
    """Run every method on every seed and print the distances."""
    made = parser("Forget and retain distance of gradient ascent and NPO, and their drift.")
    made.add_argument("--seeds", type=int, default=1, help="worlds to average over")
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    worlds = [world(1000 * (index + 1)) for index in range(options.seeds)]
    rows = [
        {
            "method": method,
            **{
                number: " ".join(f"{found[method][number]:.3f}" for found in worlds)
                for number in worlds[0][method]
            },
        }
        for method in worlds[0]
    ]
    report(f"After {STEPS} steps, one number per seed", rows, worlds, options.json)


def world(seed: int) -> dict[str, dict[str, float]]:
    """Train, retrain, and unlearn by every method in the world of one seed."""
    draw = stream(seed, "features").normal(0, NUM_INPUTS**-0.5, (NUM_FEATURES, NUM_INPUTS))
    forget, retain = _half(seed, "forget", NUM_FORGET), _half(seed, "retain", NUM_RETAIN)
    fresh = {name: _half(seed, name, NUM_FRESH, "fresh").x for name in ("forget", "retain")}
    start = RandomFeatures(torch.from_numpy(draw))
    original, retrained = copy.deepcopy(start), copy.deepcopy(start)
    _descend(original, [forget, retain])
    _descend(retrained, [retain])
    given = Given(Classifier(2), forget.records("f"), retain.records("r"), guard=None)

    def unlearned(method: str, steps: int) -> RandomFeatures:
        name, own, lr = METHODS[method]
        found = apply(name, original, given, Run(checkpoint_every=steps), _settings(own, lr, steps))
        assert isinstance(found.model, RandomFeatures)
        return found.model

    def distances(model: RandomFeatures) -> dict[str, float]:
        return {name: _divergence(retrained, model, x) for name, x in fresh.items()}

    numbers = {"original": {**distances(original), "drift_half_way": 0.0, "drift": 0.0}}
    for method in METHODS:
        end = unlearned(method, STEPS)
        half_way = unlearned(method, STEPS // 2)
        numbers[method] = {
            **distances(end),
            "drift_half_way": _distance(half_way, original),
            "drift": _distance(end, original),
        }
    return numbers


def _half(seed: int, name: str, count: int, purpose: str = "train") -> Half:
    """Draw a group: forgotten inputs lie around +1 and favour class 1, retained ones the rest."""
    draw = stream(seed, name, purpose)
    mean, favoured = (1.0, 1) if name == "forget" else (-1.0, 0)
    noise = draw.normal(size=(count, NUM_INPUTS))
    logit = noise.sum(1) / NUM_INPUTS**0.5 + 1
    hit = draw.random(count) < 1 / (1 + np.exp(-logit))
    return Half(noise + mean, np.where(hit, favoured, 1 - favoured).astype(np.int64))


def _descend(model: RandomFeatures, halves: list[Half], steps: int = 20_000) -> None:
    """Train by plain gradient descent; the loop's bookkeeping would take longer than the steps."""
    x = torch.from_numpy(np.concatenate([half.x for half in halves]))
    y = torch.from_numpy(np.concatenate([half.y for half in halves]))
    features = torch.relu(x @ model.weights.T)
    sign = 1.0 - 2.0 * y  # class 0 has the learned logit
    a = model.a.data
    for _ in range(steps):
        pull = sign * torch.sigmoid(-sign * (features @ a))
        a += 0.05 * (features.T @ pull) / len(y)


def _settings(own: dict[str, Any], lr: float, steps: int) -> dict[str, Any]:
    schedule = {
        "epochs": steps,
        "batch_size": NUM_FORGET + NUM_RETAIN,
        "order": "mixed",
        "lr": lr,
        "optimizer": "sgd",
        "momentum": 0.0,
        "weight_decay": 0.0,
        "warmup_epochs": 0.0,
        "decay": "constant",
    }
    return {**own, "schedule": schedule}


def _distance(one: RandomFeatures, other: RandomFeatures) -> float:
    return float((one.a.data - other.a.data).norm())


@torch.no_grad()
def _divergence(reference: nn.Module, model: nn.Module, x: np.ndarray) -> float:
    inputs = torch.from_numpy(x)
    p, q = (F.log_softmax(m(inputs), dim=1) for m in (reference, model))
    return float((p.exp() * (p - q)).sum(1).mean())


if __name__ == "__main__":
    main()
