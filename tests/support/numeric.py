"""Plain numpy beside the code under test: the fixtures whose published values are known.

Shape legend: B records, T tokens, V symbols, N target positions.
"""

import numpy as np
import torch

from expunge.engine.task import Batch, Predictions

_EVEN = [0.25] * 4

# Fixture T1: probabilities of the model and of the reference; position t predicts label t + 1.
MODEL_BTV = [
    [_EVEN, [0.1, 0.2, 0.6, 0.1], _EVEN, [0.7, 0.1, 0.1, 0.1]],
    [[0.1, 0.8, 0.05, 0.05], [0.5, 0.2, 0.2, 0.1], [0.4, 0.3, 0.2, 0.1], _EVEN],
]
REFERENCE_BTV = [
    [_EVEN, [0.05, 0.05, 0.8, 0.1], [0.1, 0.1, 0.1, 0.7], _EVEN],
    [[0.05, 0.9, 0.025, 0.025], [0.9, 0.05, 0.03, 0.02], _EVEN, _EVEN],
]
LABELS_BT = [[-100, -100, 2, 3], [-100, 1, 0, -100]]
WIN_BT = [[-100, 0, 1, -100], [-100, -100, 3, 2]]  # of the answers that are to win

LM_LABELS_BT = [[-100, -100, 2, 3, 1], [-100, 2, 1, 0, -100]]
LM_WIN_BT = [[-100, -100, 1, 1, 0], [-100, 0, 3, 3, -100]]


def lm_logits():
    """Fixture LM: logits of model and reference, 2 x 5 x 4."""
    b, t, v = np.meshgrid(np.arange(2), np.arange(5), np.arange(4), indexing="ij")
    angle = 20 * b + 4 * t + v
    return np.sin(1.0 + angle), np.cos(0.5 + angle)


def targets(labels_BT):
    """Return rows, positions and symbols of the targets, record by record."""
    shifted = np.array(labels_BT)[:, 1:]
    rows, places = np.nonzero(shifted != -100)
    return rows, places, shifted[rows, places]


def pack(logits_BTV, labels_BT):
    """Return the predictions at the targets; a tensor keeps its graph."""
    logits = torch.as_tensor(logits_BTV, dtype=torch.float64)
    rows, places, symbols = map(torch.from_numpy, targets(labels_BT))
    return Predictions(logits[rows, places], symbols, rows, len(logits))


def t1_logits():
    """Fixture T1: logits of model and reference as arrays, 2 x 4 x 4."""
    return np.log(np.array(MODEL_BTV)), np.log(np.array(REFERENCE_BTV))


def log_softmax(z):
    """Return the logarithm of the softmax over the last axis."""
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def nll(z_BTV, labels_BT):
    """Return the summed negative log-likelihood of each record."""
    rows, places, symbols = targets(labels_BT)
    values = -log_softmax(z_BTV)[rows, places, symbols]
    return np.bincount(rows, values, minlength=len(z_BTV))


def slope(function, z, step=1e-5):
    """Return the gradient of a function of an array by central differences."""
    gradient = np.zeros_like(z)
    for place in np.ndindex(z.shape):
        moved = np.zeros_like(z)
        moved[place] = step
        gradient[place] = (function(z + moved) - function(z - moved)) / (2 * step)
    return gradient


class AnswersTask:
    """Runs the tables of fixture T1; the card's other labels are its neutral answers."""

    kind = "causal_lm"

    def batch(self, records, rows, *, targets=True):
        chosen = [records["row"][i] for i in rows]
        source = WIN_BT if "win" in records else LABELS_BT
        labels_BT = torch.tensor([source[r] for r in chosen])
        positions_BT = torch.nn.functional.pad(labels_BT[:, 1:] != -100, (0, 1))
        return Batch(
            ids=tuple(records.ids[i] for i in rows),
            inputs={"rows": torch.tensor(chosen)},
            targets_N=labels_BT[:, 1:][labels_BT[:, 1:] != -100],
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

    def neutral(self, records, seed, epoch, answers=()):
        return records.replace(win=[True] * len(records))

    def fingerprint(self):
        return {"kind": self.kind}


def with_answers(world):
    """Return a T1 world whose forget records have other answers too."""
    world.task = AnswersTask()
    return world
