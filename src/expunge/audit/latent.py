"""What a block of a language model holds: the logit lens and trained probes, as treatments.

A block is named by its number, counted from the input and from 0 (``3``; ``-1`` is the last), or by
its depth (``2/6``: the block that ends the second sixth), which serves models of any depth.

Shape legend: B records of a batch, R records, N target positions, D hidden size, H units.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from expunge.audit.treatments import NotApplicable, attacked_ids, groups_of, treatment
from expunge.audit.views import Scene
from expunge.audit.wrong_answers import with_wrong_answers
from expunge.core.records import Records, concatenate
from expunge.core.run import Run
from expunge.core.sets import sample_ids
from expunge.core.streams import stream_seed
from expunge.engine.blocks import block_names
from expunge.engine.features import features_ND
from expunge.engine.modes import evaluating
from expunge.engine.task import Batch, Predictions, Task

Kind = Literal["linear", "mlp"]
"""A logistic regression, or a network with one hidden layer."""

HIDDEN = 64
"""Units of the hidden layer of an ``mlp`` probe."""

_BATCH = 32
_MAX_ITERATIONS = 5000
_MAX_ITERATIONS_MLP = 500


@treatment("lens")
def lens(
    model: nn.Module, task: Task, scene: Scene, parameters: str, run: Run
) -> tuple[nn.Module, Task]:
    """Keep the blocks up to one; the final norm and the output head read what it yields.

    Args:
        model: Loses its later blocks.
        task: Stays as it is.
        scene: Not looked at.
        parameters: The last block to keep.
        run: Not looked at.

    Raises:
        NotApplicable: The model has no single stack of blocks, or no such block.

    Source: Open Problems in Machine Unlearning for AI Safety (Barez et al., 2025), audit S5; the
        logit lens of nostalgebraist (2020).
    """
    del scene, run
    names = stack_of(model)
    kept = place_of(names, parameters) + 1
    del model.get_submodule(names[0].rpartition(".")[0])[kept:]  # type: ignore[operator]
    settings: Any = model.config
    kinds = getattr(settings, "layer_types", None)
    settings.num_hidden_layers = kept
    if kinds:
        settings.layer_types = list(kinds)[:kept]
    return model, task


@treatment("probe")
def probe(
    model: nn.Module, task: Task, scene: Scene, parameters: str, run: Run
) -> tuple[nn.Module, Task]:
    """Train probes on one block: does a record end in its true or in a wrong answer?

    They look at the standardised output of the block at the last token of the answer. They learn
    from the forget records that the attack may see and from as many retain records, each with its
    true and a wrong answer.

    Args:
        model: Stays as it is.
        task: How to run it.
        scene: Where the records come from.
        parameters: The block, the share of the forget records that the attack sees, and the
            kinds of probe, joined by ``+``.
        run: Context.

    Raises:
        NotApplicable: The model has no single stack of blocks, or no such block; or there are too
            few records with unlike answers to learn from.

    Source: Open Problems in Machine Unlearning for AI Safety (Barez et al., 2025), audit S5.
    """
    place, share, kinds = parameters.split(":")
    names = stack_of(model)
    block = names[place_of(names, place)]
    true_R, wrong_R = _training_records(scene, float(share))
    if not len(wrong_R):
        raise NotApplicable("a probe needs two forget records whose answers differ, or more")
    parts = [hidden_RD(model, task, part, block, run) for part in (true_R, wrong_R)]
    labels_R = np.repeat([1, 0], [len(true_R), len(wrong_R)])
    hidden_R = np.concatenate(parts)
    fitted = [Probe.fitted(kind, hidden_R, labels_R, scene.seed) for kind in kinds.split("+")]
    return model, ProbeTask(task, block, tuple(fitted))


def stack_of(model: nn.Module) -> list[str]:
    """Return the names of a model's blocks, from input to output.

    Raises:
        NotApplicable: It is a composite, or not one stack of transformer blocks.
    """
    if hasattr(model, "parts"):
        raise NotApplicable(
            "a composite has several stacks of blocks; its parts are looked into one by one"
        )
    names = block_names(model)
    depth = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    if depth != len(names):
        raise NotApplicable(f"a {type(model).__name__} has no stack of blocks that can be cut")
    return names


def place_of(names: Sequence[str], place: str) -> int:
    """Return the number of the block that a specification names.

    Args:
        names: The model's blocks.
        place: A number such as ``3`` or ``-1``, or a depth such as ``2/6``.

    Raises:
        NotApplicable: There is no such block, or the next depth names the same one.
    """
    part, _, whole = place.partition("/")
    if not whole:
        number = int(part)
        if not -len(names) <= number < len(names):
            raise NotApplicable(f"there is no block {number}; the model has {len(names)}")
        return number % len(names)
    number, after = (math.ceil(j * len(names) / int(whole)) - 1 for j in (int(part), int(part) + 1))
    if number == after:
        raise NotApplicable(f"with {len(names)} blocks depth {place} is that of the next one")
    return number


def _training_records(scene: Scene, share: float) -> tuple[Records, Records]:
    """Return what the probe learns from, with true and with wrong answers, in the same order."""
    forget, retain = scene.records("forget"), scene.records("retain")
    seen = attacked_ids(forget.ids, share, scene.seed, groups_of(forget))
    count = min(len(seen), len(retain))
    others = sample_ids(retain.ids, count, scene.seed, "probe-retain")
    true, wrong = [], []
    for part in (forget.select(seen), retain.select(others)):
        wrong.append(with_wrong_answers(part, np.zeros(len(part), dtype=bool), scene.seed))
        true.append(part.select(wrong[-1].ids))
    return concatenate(true), concatenate(wrong)


@torch.no_grad()
def hidden_RD(
    model: nn.Module, task: Task, records: Records, block: str, run: Run
) -> Float[np.ndarray, "R D"]:
    """Return the output of a block at the last token of every record's answer.

    Args:
        model: The model, put in eval mode for the moment and moved to ``run.device``.
        task: How to run it.
        records: The data, at least one record.
        block: Name of the block.
        run: Context: device, cancellation.
    """
    model.to(run.device)
    order = np.argsort(task.lengths(records), kind="stable")
    found: dict[int, np.ndarray] = {}
    with evaluating(model):
        for start in range(0, len(order), _BATCH):
            run.check()
            rows = order[start : start + _BATCH].tolist()
            hidden_BD = _last_BD(model, task, task.batch(records, rows).to(run.device), block)
            found |= dict(zip(rows, hidden_BD.float().cpu().numpy(), strict=True))
    return np.stack([found[row] for row in range(len(records))])


def _last_BD(model: nn.Module, task: Task, batch: Batch, block: str) -> Float[Tensor, "B D"]:
    hidden_ND = features_ND(model, task, batch, block)
    return hidden_ND[batch.counts_B.cumsum(0) - 1]


@dataclasses.dataclass(frozen=True, eq=False)
class Probe:
    """A small classifier of hidden states.

    Its distance from the boundary is divided by the largest one in training: no rank changes, and
    none is lost to rounding.

    Attributes:
        mean_D: Mean of the features in training.
        scale_D: Their standard deviation; 1 for a constant one.
        layers: Weights (inputs, outputs) and biases; between two layers stands a ReLU.
    """

    mean_D: Float[Tensor, " D"]
    scale_D: Float[Tensor, " D"]
    layers: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def fitted(cls, kind: str, hidden_RD: np.ndarray, labels_R: np.ndarray, seed: int) -> Probe:
        """Return a probe that was fitted to hidden states.

        ``linear`` is a logistic regression (L2, C = 1). ``mlp`` has one hidden layer of 64 units
        under the same penalty, fitted by L-BFGS in at most 500 iterations; where they do not
        suffice, the weights are those that it came to.

        Args:
            kind: ``"linear"`` or ``"mlp"``.
            hidden_RD: The hidden states.
            labels_R: 1 for a true answer, 0 for a wrong one; both occur.
            seed: The run's seed, which decides where the ``mlp`` begins.
        """
        scaler = StandardScaler().fit(hidden_RD.astype(np.float64))
        features_RD = scaler.transform(hidden_RD.astype(np.float64))
        fit = _regression if kind == "linear" else _network
        layers = fit(features_RD, labels_R, seed)
        values_RH = features_RD
        for place, (weight, bias) in enumerate(layers):
            values_RH = (np.maximum(values_RH, 0) if place else values_RH) @ weight + bias
        largest = float(np.abs(values_RH).max()) or 1.0
        layers[-1] = (layers[-1][0] / largest, layers[-1][1] / largest)
        tensors = [tuple(torch.tensor(one, dtype=torch.float32) for one in pair) for pair in layers]
        mean_D, scale_D = (
            torch.tensor(values, dtype=torch.float32) for values in (scaler.mean_, scaler.scale_)
        )
        return cls(mean_D, scale_D, tuple((weight, bias) for weight, bias in tensors))

    def logit_B(self, hidden_BD: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        """Return how far hidden states lie on the side of a true answer.

        Args:
            hidden_BD: The hidden states.
        """
        device = hidden_BD.device
        values_BH = (hidden_BD.float() - self.mean_D.to(device)) / self.scale_D.to(device)
        for place, (weight, bias) in enumerate(self.layers):
            values_BH = (values_BH.relu() if place else values_BH) @ weight.to(device)
            values_BH = values_BH + bias.to(device)
        return values_BH[:, 0]


_Layers = list[tuple[np.ndarray, np.ndarray]]


def _regression(features_RD: np.ndarray, labels_R: np.ndarray, seed: int) -> _Layers:
    del seed
    fit = LogisticRegression(max_iter=_MAX_ITERATIONS).fit(features_RD, labels_R)
    return [(fit.coef_.T, fit.intercept_)]


def _network(features_RD: np.ndarray, labels_R: np.ndarray, seed: int) -> _Layers:
    network = MLPClassifier(
        (HIDDEN,),
        solver="lbfgs",
        alpha=1.0,
        max_iter=_MAX_ITERATIONS_MLP,
        random_state=stream_seed(seed, "probe") % 2**32,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        network.fit(features_RD, labels_R)
    return list(zip(network.coefs_, network.intercepts_, strict=True))


@dataclasses.dataclass(frozen=True, eq=False)
class ProbeTask:
    """A task of two classes, 1 for a true answer, that probes on hidden states decide.

    Every record has one target for each probe and is scored as if it were true, so that the
    probability says how true it looks.

    Attributes:
        inner: How to run the model.
        block: The block whose output is read.
        probes: What reads it.
    """

    kind: ClassVar[str] = "causal_lm"

    inner: Task
    block: str
    probes: tuple[Probe, ...]

    def batch(self, records: Records, rows: Sequence[int], *, targets: bool = True) -> Batch:
        """Make records ready as the inner task does."""
        return self.inner.batch(records, rows, targets=targets)

    def num_targets(self, records: Records) -> list[int]:
        """Return one target of each record for each probe."""
        return [len(self.probes)] * len(records)

    def lengths(self, records: Records) -> list[int]:
        """Return the input length of every record."""
        return self.inner.lengths(records)

    def predict(self, model: nn.Module, batch: Batch) -> Predictions:
        """Return two logits for each record and probe; the target is class 1."""
        hidden_BD = _last_BD(model, self.inner, batch, self.block)
        logit_N = torch.stack([probe.logit_B(hidden_BD) for probe in self.probes], dim=1).flatten()
        owners_B = torch.arange(len(batch), device=logit_N.device)
        return Predictions(
            torch.stack([torch.zeros_like(logit_N), logit_N], dim=1),
            torch.ones_like(logit_N, dtype=torch.long),
            owners_B.repeat_interleave(len(self.probes)),
            len(batch),
        )

    def neutral(
        self, records: Records, seed: int, epoch: int, answers: Sequence[str] = ()
    ) -> Records:
        """Return the records with answers that carry no information, as the inner task does."""
        return self.inner.neutral(records, seed, epoch, answers)

    def fingerprint(self) -> dict[str, Any]:
        """Return the inner task's fingerprint, and the block."""
        return {**self.inner.fingerprint(), "probe": self.block}
