"""Label-Agnostic Forgetting: make representations of the forget set inexplicable, without labels.

Shape legend: B records of a batch, N records of a set, D width of a representation.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from expunge.core.config import config
from expunge.core.errors import ConfigError, DataError
from expunge.core.records import concatenate
from expunge.core.run import Run
from expunge.engine.loop import Stream, Term, fit
from expunge.engine.modes import evaluating
from expunge.engine.representation import Split, represent, representations_ND, split
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope
from expunge.engine.task import Batch
from expunge.engine.turns import Turns
from expunge.engine.unlabelled import Unlabelled, without_labels
from expunge.engine.vae import Decoder, Noise, Vae, fit_vae
from expunge.engine.workers import workers
from expunge.forget.method import Given, Need, Sight, method
from expunge.train.supervised import likelihood

SEPARABLE = 0.7
"""Least AUC at which the two autoencoders tell forget from retain representations apart."""

_USUAL_CODE = 8
_EPS = 1e-8


@config
class LAFConfig:
    """Settings of Label-Agnostic Forgetting."""

    head: str | None = None
    """Name of the linear layer that ends the model; the one registered last when absent."""
    z: Annotated[int, Field(ge=1)] | None = None
    """Size of the autoencoders' codes; the paper: 8 for small networks, 16 for ResNet-18. When
    absent 8, or half the representation's width where that is less."""
    decoder: Decoder = "sigmoid"
    """Last activation of the autoencoders: ``sigmoid`` as in the official code, which cannot
    rebuild representations outside 0..1, or ``linear``."""
    h_data: Literal["all", "retain"] = "all"
    """On what the first autoencoder is fitted: ``all`` records, as in the official code, or
    ``retain``."""
    vae_epochs: Annotated[int, Field(ge=1)] = 10
    """Passes of each autoencoder's training."""
    vae_lr: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate of the autoencoders."""
    sample: bool = True
    """Draw codes anew in every epoch; with false they are their means, which varies less."""
    tau: Annotated[float, Field(gt=0)] = 20.0
    """Temperature of the forget part of the alignment (τ): small repels strongly. The paper: 20 for
    classes, 5 for random records of small pictures."""
    alignment_rate: Annotated[float, Field(gt=0)] = 2.0
    """Learning rate of the alignment, as a multiple of ``schedule.lr``; the paper: 2 for small
    networks, 4 or 5 for ResNet-18."""
    steps: Literal["both", "extractor", "alignment"] = "both"
    """Which of the two steps are taken; one alone is an ablation."""
    repair: Annotated[int, Field(ge=0)] = 0
    """Epochs in which the head alone is then trained on labelled retain records (LAF+R)."""
    repair_lr: Annotated[float, Field(gt=0)] = 1e-4
    """Learning rate of the repair."""
    schedule: Schedule = Schedule(epochs=20, batch_size=32, lr=5e-5, weight_decay=0.0)
    """Settings of the loop; each epoch passes over the forget set twice, once for each step. Weight
    decay draws weights to where they were, not to 0."""


@dataclasses.dataclass(frozen=True)
class _RepairConfig:
    schedule: Schedule
    scope: Scope


def _needs(config: LAFConfig) -> set[Need]:
    return {"forget", "retain", *({"labels"} if config.repair else set())}  # type: ignore[arg-type]


@torch.no_grad()
def _check(model: nn.Module, given: Given, config: LAFConfig) -> None:
    parts = split(model, config.head)
    _moving(model, parts)
    if len(given.forget) < 2:
        raise DataError("laf fits an autoencoder to the forget set, which needs 2 records at least")
    if config.z is not None and config.z >= parts.width:
        warnings.warn(
            f"forget.z = {config.z} is no less than the representation's width {parts.width}: the "
            "autoencoders can copy what they are given; lower it",
            stacklevel=2,
        )
    if workers().sharding != "none":
        raise ConfigError("laf needs whole weights in each process; launch without FSDP, DeepSpeed")
    device = next(model.parameters()).device
    probe = given.task.batch(without_labels(given.task, given.forget), [0], targets=False)
    with evaluating(model):
        represent(model, given.task, probe.to(device), parts.head)


@method(
    "laf",
    kinds={"classifier"},
    needs=_needs,
    source="LAF (Shen et al., 2024)",
    check=_check,
)
def laf(model: nn.Module, sight: Sight, config: LAFConfig) -> nn.Module:
    """Push representations of the forget set to where no representation was; read no label.

    Two autoencoders learn the representations e = g(x) of all records (h) and of the forget set
    (h_f). Then two steps take turns on the extractor g, each with an optimiser of its own:
    ``L_1 = mean b(r(e; h)) over retain - mean b(r(e; h_f)) over forget``, with r the squared error
    of rebuilding and ``b(r) = exp(r / (r + 1))``, and
    ``L_2 = mean a over retain - log Σ exp(c / τ) over forget``, with a and c the cosine distances
    to the original's representations. The head keeps its bits. An event tells whether the
    autoencoders tell the two sets apart at all (``separability``, an AUC); where they do not, as
    for random records, little can be expected, and a note in the report says so. Which records are
    to be forgotten may well have been chosen by labels.

    Source: LAF (Shen et al., 2024), eq. 5 to 8 and algorithm 1.
    Needs: inputs of forget and retain records; labels of retain records for ``repair`` only.
    Units: none.
    When to use: no labels are at hand, and what must go is unlike the rest, such as a class.
    Cost: two small autoencoders, then two forward and backward passes over forget records and as
        many retain records, and one forward pass over forget records; three copies of the
        extractor's weights and the optimiser state of two.
    Differs from the official code: the two steps see batches of their own; retain records are drawn
        at random for each forget record; the model is in eval mode throughout; losses are means
        over the batch; a code's noise is drawn for each record and epoch.
    """
    parts, task = split(model, config.head), Unlabelled(sight.task)
    retain, forget = (without_labels(sight.task, r) for r in (sight.retain, sight.forget))
    records = concatenate([retain, forget])
    e_ND = representations_ND(model, task, records, parts.head, sight.run)
    e_ND = e_ND.to(torch.promote_types(e_ND.dtype, torch.float32))
    whole, own = _autoencoders(records.ids, e_ND, len(retain), config, sight.run)
    auc = separability(whole, own, e_ND[: len(retain)], e_ND[len(retain) :])
    zeros = int((e_ND.norm(dim=1) < _EPS).sum())
    sight.run.emit("separability", auc=auc, separable=int(auc >= SEPARABLE), zero_vectors=zeros)
    if auc < SEPARABLE:
        sight.note(
            f"The forget set cannot be told from the rest (area under the curve {auc:.2f}, below "
            f"{SEPARABLE}), so that little can be expected of a method that reads no label."
        )

    rates = {"extractor": 1.0, "alignment": config.alignment_rate}
    steps: list[str] = [*rates] if config.steps == "both" else [config.steps]
    turns = Turns(model, _moving(model, parts), [rates[s] for s in steps], config.schedule)
    epoch = -(-len(forget) // config.schedule.batch_size)
    objective = _Objective(
        turns,
        steps,
        task,
        parts.head,
        whole,
        own,
        {record_id: row for row, record_id in enumerate(records.ids)},
        e_ND,
        Noise(records.ids, whole.mean.out_features, epoch, sight.run.seed, "laf-code"),
        config,
    )
    sight.history = fit(
        turns,
        task,
        {"forget": Stream(forget), "retain": Stream(retain)},
        objective.terms(),
        # A batch serves one of the steps, so that as many of each need as many passes.
        dataclasses.replace(config.schedule, epochs=len(steps) * config.schedule.epochs),
        sight.run,
        scope=turns.scope,
        label="forgetting",
    )
    result = turns.settle()
    return _repaired(result, parts, sight, config) if config.repair else result


def bounded(misfit_B: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Return ``exp(r / (r + 1))``, between 1 and e: a loss that cannot run away.

    Source: LAF's code; the paper has the plain error.
    """
    return torch.exp(misfit_B / (misfit_B + 1))


def turned_B(e_BD: Float[Tensor, "B D"], original_BD: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
    """Return the cosine distance of representations to those of the original model, 0 to 2."""
    return 1 - F.cosine_similarity(e_BD, original_BD, dim=1, eps=_EPS)


@torch.no_grad()
def separability(
    whole: Vae, own: Vae, retain_ND: Float[Tensor, "N D"], forget_ND: Float[Tensor, "N D"]
) -> float:
    """Return how well two autoencoders tell forget from retain representations, as an AUC.

    The score of a record is the error of the first autoencoder less that of the second.

    Args:
        whole: Fitted to all records, or to those to be kept.
        own: Fitted to the forget set.
        retain_ND: Representations to keep.
        forget_ND: Representations to forget.
    """
    kept, gone = (
        np.sort((whole.misfit_B(e) - own.misfit_B(e)).double().cpu().numpy())
        for e in (retain_ND, forget_ND)
    )
    below, not_above = (np.searchsorted(kept, gone, side) for side in ("left", "right"))
    return float((below + not_above).mean() / (2 * len(kept)))


def _autoencoders(
    ids: Sequence[str], e_ND: Tensor, retained: int, config: LAFConfig, run: Run
) -> tuple[Vae, Vae]:
    """Fit one autoencoder to all records or the first ones, which are kept, one to the rest."""
    schedule = Schedule(
        epochs=config.vae_epochs,
        batch_size=config.schedule.batch_size,
        lr=config.vae_lr,
        weight_decay=0.0,
    )
    code = config.z or max(1, min(_USUAL_CODE, e_ND.shape[1] // 2))

    def fitted(rows: slice, name: str) -> Vae:
        return fit_vae(ids[rows], e_ND[rows], code, config.decoder, schedule, run.child(name))

    whole = slice(None) if config.h_data == "all" else slice(retained)
    return fitted(whole, "vae-whole"), fitted(slice(retained, None), "vae-forget")


def _moving(model: nn.Module, parts: Split) -> list[str]:
    moving = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    names = [name for name in parts.extractor if name in moving]
    if not names:
        raise ConfigError("no parameter below the head needs a gradient; thaw some of the model's")
    return names


@dataclasses.dataclass
class _Objective:
    """The losses of both steps.

    Attributes:
        turns: The model, with as many turns as there are steps.
        steps: Which step each turn is.
        task: How to run the model.
        head: Name of the head.
        whole: Autoencoder of all records.
        own: Autoencoder of the forget set.
        original: Row of each record in ``e_ND``.
        e_ND: Representations under the original model.
        noise: Draws for codes.
        config: The settings.
    """

    turns: Turns
    steps: list[str]
    task: Unlabelled
    head: str
    whole: Vae
    own: Vae
    original: dict[str, int]
    e_ND: Tensor
    noise: Noise
    config: LAFConfig

    def terms(self) -> list[Term]:
        """Return one term for each set, whose loss is that of the step whose turn it is."""
        return [
            Term("forget", self.gone, self.begin, slope=self.slope),
            Term("retain", self.kept, self.begin),
        ]

    @property
    def aligns(self) -> bool:
        """Whether it is the alignment's turn."""
        return self.steps[self.turns.turn] == "alignment"

    def begin(self, steps: Sequence[Mapping[str, float]]) -> float:
        """Take note of the step, from the steps so far; the weight 1 of a term."""
        return self.turns.begin(steps) * self.noise.begin(steps)

    def slope(self, value: float) -> float:
        """Return the derivative of -log of the mean, in the alignment."""
        return -1.0 / value if self.aligns else 1.0

    def kept(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of each retain record."""
        e_BD = self._now(model, batch)
        return self._turned(e_BD, batch) if self.aligns else self._misfit(self.whole, e_BD, batch)

    def gone(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of each forget record; in the alignment -log of its mean counts."""
        e_BD = self._now(model, batch)
        if self.aligns:
            return torch.exp(self._turned(e_BD, batch) / self.config.tau)
        return -self._misfit(self.own, e_BD, batch)

    def _now(self, model: nn.Module, batch: Batch) -> Tensor:
        with evaluating(model):
            features_BD, _ = represent(model, self.task, batch, f"model.{self.head}")
        return features_BD.to(self.e_ND.dtype)

    def _misfit(self, vae: Vae, e_BD: Tensor, batch: Batch) -> Tensor:
        codes = self.noise.of(batch.ids, e_BD) if self.config.sample else None
        return bounded(vae.misfit_B(e_BD, codes))

    def _turned(self, e_BD: Tensor, batch: Batch) -> Tensor:
        return turned_B(e_BD, self.e_ND[[self.original[i] for i in batch.ids]])


def _repaired(model: nn.Module, parts: Split, sight: Sight, config: LAFConfig) -> nn.Module:
    history = sight.history
    schedule = Schedule(
        epochs=config.repair,
        batch_size=config.schedule.batch_size,
        lr=config.repair_lr,
        weight_decay=0.0,
    )
    settings = _RepairConfig(schedule, Scope(patterns=(f"{parts.head}.*",)))
    streams = {"retain": Stream(sight.retain)}
    sight.fit(model, streams, [likelihood(sight.task, "retain")], settings, part="repair")
    sight.history = history
    return model
