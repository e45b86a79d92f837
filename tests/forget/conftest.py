"""Two worlds small enough to compute by hand.

``t1``: two records of four positions over four symbols, the fixture for which the loss values of
public implementations are known. ``linear``: a linear softmax classifier with a plain numpy oracle.
"""

import numpy as np
import pytest
import torch
from torch import nn

from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.task import Batch, Predictions
from expunge.engine.tasks.classifier import Classifier
from expunge.forget.method import Given, Sight, apply, methods, parse_config

FLAT = [0.25] * 4
CURRENT = [
    [FLAT, [0.1, 0.2, 0.6, 0.1], FLAT, [0.7, 0.1, 0.1, 0.1]],
    [[0.1, 0.8, 0.05, 0.05], [0.5, 0.2, 0.2, 0.1], [0.4, 0.3, 0.2, 0.1], FLAT],
]
REFERENCE = [
    [FLAT, [0.05, 0.05, 0.8, 0.1], [0.1, 0.1, 0.1, 0.7], FLAT],
    [[0.05, 0.9, 0.025, 0.025], [0.9, 0.05, 0.03, 0.02], FLAT, FLAT],
]
LABELS = [[-100, -100, 2, 3], [-100, 1, 0, -100]]  # position t predicts the label of t + 1
ONE_STEP = {"epochs": 1, "optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "batch_size": 64}


class Table(nn.Module):
    """A model whose logits are its parameters."""

    def __init__(self, probabilities):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(probabilities, dtype=torch.float64).log())

    def forward(self, rows):
        return self.logits[rows]


class TableTask:
    """Predicts the labels of a table's rows; prompt and padding have none."""

    kind = "causal_lm"

    def batch(self, records, rows, *, targets=True):
        chosen = torch.tensor([records["row"][i] for i in rows])
        labels_BT = torch.tensor(LABELS)[chosen][:, 1:]
        positions_BT = nn.functional.pad(labels_BT != -100, (0, 1))
        return Batch(
            ids=tuple(records.ids[i] for i in rows),
            inputs={"rows": chosen},
            targets_N=labels_BT[labels_BT != -100],
            rows_N=positions_BT.nonzero()[:, 0],
            positions=positions_BT,
        )

    def num_targets(self, records):
        return [2] * len(records)

    def lengths(self, records):
        return [4] * len(records)

    def predict(self, model, batch):
        logits_BTV = model(**batch.inputs)
        return Predictions(logits_BTV[batch.positions], batch.targets_N, batch.rows_N, len(batch))

    def neutral(self, records, seed, epoch):
        return records

    def fingerprint(self):
        return {"kind": self.kind}


class T1:
    """Runs one step of a method on the fixture, with a reference that differs from the model."""

    task = TableTask()
    forget = Records(("a", "b"), {"row": [0, 1]})

    def __init__(self, retain=("c",), rows=(0,)):
        self.retain = Records(retain, {"row": list(rows)})

    def step(self, name, **settings):
        """Return the step's numbers and the gradient that it followed."""
        info = methods.get(name)
        config = parse_config(info, {"schedule": {**ONE_STEP, "lr": 1.0}, **settings})
        given = Given(self.task, self.forget, self.retain, guard=None)
        sight = Sight(given, info.needs(config), Table(REFERENCE), Run())
        model = Table(CURRENT)
        start = model.logits.detach().clone()
        info.function(model, sight, config)
        return sight.history.steps[0], (start - model.logits).detach().numpy()


class LinearWorld:
    """A linear softmax classifier over 4 classes and its oracle in plain numpy."""

    task = Classifier(4)

    def __init__(self):
        draw = np.random.default_rng(7)
        self.w, self.b = draw.normal(size=(4, 3)), draw.normal(size=4)
        self.x, self.y = draw.normal(size=(6, 3)), draw.integers(4, size=6)
        self.kept_x, self.kept_y = draw.normal(size=(1, 3)), draw.integers(4, size=1)
        self.forget = Records(tuple("abcdef"), {"x": self.x, "y": self.y})
        self.retain = Records(("z",), {"x": self.kept_x, "y": self.kept_y})

    def model(self, w=None, b=None):
        made = nn.Linear(3, 4).double()
        with torch.no_grad():
            made.weight.copy_(torch.from_numpy(self.w if w is None else w))
            made.bias.copy_(torch.from_numpy(self.b if b is None else b))
        return made

    def nll(self, x, y, w=None, b=None):
        """Negative log-likelihood of each record."""
        logits = x @ (self.w if w is None else w).T + (self.b if b is None else b)
        logits = logits - logits.max(1, keepdims=True)
        return np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]

    def gradient(self, x, y, weights=None, w=None, b=None):
        """Gradient of the mean NLL, each record multiplied by its weight."""
        logits = x @ (self.w if w is None else w).T + (self.b if b is None else b)
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        p[np.arange(len(y)), y] -= 1
        p *= (np.ones(len(y)) if weights is None else weights)[:, None] / len(y)
        return p.T @ x, p.sum(0)

    def apply(self, name, settings=None, *, lr=0.1, model=None, **given):
        """Apply one full-batch step of plain gradient descent; return weight and bias."""
        offer = Given(self.task, self.forget, self.retain, guard=None, **given)
        whole = {"schedule": {**ONE_STEP, "lr": lr}, **(settings or {})}
        result = apply(name, model or self.model(), offer, Run(), whole).model
        return result.weight.detach().numpy(), result.bias.detach().numpy()


@pytest.fixture
def t1():
    return T1


@pytest.fixture
def linear():
    return LinearWorld()
