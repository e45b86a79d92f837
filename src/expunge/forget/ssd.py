"""Selective Synaptic Dampening: shrink weights that matter more to the forget set than to all."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from expunge.core.config import config
from expunge.core.errors import ConfigError, listing
from expunge.core.records import Records, concatenate
from expunge.core.run import Run
from expunge.core.streams import stream
from expunge.engine.importance import (
    Estimator,
    Importance,
    measure_importance,
    require_comparable,
)
from expunge.engine.unlabelled import without_labels
from expunge.forget.method import Need, Sight, method


@config
class SSDConfig:
    """Settings of Selective Synaptic Dampening."""

    alpha: Annotated[float, Field(gt=0)] = 10.0
    """A weight is dampened when it matters so many times more to the forget set (α); the paper: 10
    for ResNet-18, 50 for faces, 5 to 25 for ViT."""
    lambda_: Annotated[float, Field(ge=0)] = 1.0
    """How weakly it is dampened (λ): by λ times the ratio of the importances, at most 1."""
    whole: Literal["all", "retain"] = "all"
    """With what the forget set is compared: ``all`` records, as in the paper, or ``retain``."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Records whose mean gradient is squared, in both sets; the size of a smaller forget set."""
    per_sample: bool = False
    """Square each record's own gradient, one at a time; α is then on another scale."""
    label_free: bool = False
    """Read no labels: squared length of the outputs for the loss, absolute gradients (LFSSD)."""
    max_records: Annotated[int, Field(ge=1)] | None = 20_000
    """Most records that stand for the compared set, drawn at random; null is all of them."""
    passes: Annotated[int, Field(ge=1)] = 2
    """Passes over each set, each for a part of the layers: less memory, more time, same result."""
    max_dampened: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Refuse to dampen more than this share of any layer's weights."""
    force: bool = False
    """Dampen however many there are."""


@dataclasses.dataclass(frozen=True)
class Dampening:
    """What is done to one parameter.

    Attributes:
        name: The parameter.
        selected: Which of its entries are dampened.
        scale: Factor of every entry; 1 where it is not selected.
    """

    name: str
    selected: Tensor
    scale: Tensor


def _needs(config: SSDConfig) -> set[Need]:
    needs: set[Need] = {"forget", "retain"}
    return needs if config.label_free else {*needs, "labels"}


@method(
    "ssd",
    kinds={"classifier", "regressor"},
    needs=_needs,
    source="SSD (Foster et al., 2024)",
)
def ssd(model: nn.Module, sight: Sight, config: SSDConfig) -> nn.Module:
    """Shrink the weights that matter far more to the forget set than to all data; train nothing.

    With I the mean over batches of the squared gradient of a batch's mean loss, every weight with
    ``I_forget > α I_all`` becomes ``min(λ I_all / I_forget, 1)`` times what it was. Batch-norm
    weights and biases take part, running statistics do not.

    Source: Foster et al., 2024 (Selective Synaptic Dampening), section 4; LFSSD: Foster et al.,
        2024 (Loss-Free Machine Unlearning).
    Needs: forget and retain records with labels; with ``label_free`` their inputs only.
    Units: none; importances are squared gradients of the loss in nats (or target units).
    When to use: a class or a flaw must go at once, without training. What it does to the rest must
        be looked at, class by class: too small an α wrecks it for good.
    Cost: on ResNet-18 with 60,000 pictures 0.6 of a training epoch and 1.8 times the memory of the
        weights, activations aside; with one pass over all records 1.1 and 2.2. A forget set smaller
        than a batch makes all batches that small and both passes slower. Two models' size on disk
        while it runs.
    Differs from the official code: one batch size for both sets (the public scripts mix 64 and 128,
        and a small forget set's one ragged batch, whose squares are larger by their nature, is
        compared with full batches); records are shuffled by a named stream, batches weighted by
        their size; 20,000 records at most stand for all; it refuses where a layer would lose more
        than ``max_dampened`` of its weights.
    """
    forget, retain = sight.forget, sight.retain
    if config.label_free:
        forget, retain = (without_labels(sight.task, records) for records in (forget, retain))
    whole = concatenate([forget, retain]) if config.whole == "all" else retain
    size = 1 if config.per_sample else min(config.batch_size, len(forget))
    estimator = Estimator(size, config.label_free)
    sets = {"whole": _drawn(whole, config.max_records, sight.run.seed), "forget": forget}
    found = {}
    for name, records in sets.items():
        found[name] = measure_importance(
            model,
            sight.task,
            records,
            estimator,
            sight.run.child(f"importance-{name}"),
            passes=config.passes,
            label=f"importance, {name} set",
        )
        sight.run.emit("importance", records=len(records), **dataclasses.asdict(estimator))
    if not dampen(model, found["whole"], found["forget"], config, sight.run):
        sight.note("No weight matters enough more to the forget set: the model is as it was.")
    return model


@torch.no_grad()
def dampen(
    model: nn.Module, whole: Importance, own: Importance, config: SSDConfig, run: Run
) -> int:
    """Dampen a model's weights in place, one parameter after the other.

    Args:
        model: The model; untouched when this raises.
        whole: Importances for all records.
        own: Importances for the forget set.
        config: The settings.
        run: Takes an event for each parameter that is dampened, and one with the sum, which says
            ``no_op`` where nothing is.

    Returns:
        The number of entries that were dampened.

    Raises:
        ConfigError: The importances cannot be compared, or too much of a layer would be dampened.
        DataError: They are of other parameters.
    """
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    require_comparable(whole, own, list(parameters))
    if not config.force:
        _require_few(_each(parameters, whole, own, config), config.max_dampened)
    total = 0
    for step in _each(parameters, whole, own, config):
        parameters[step.name].mul_(step.scale)
        count = int(step.selected.sum())
        total += count
        if count:
            scale = float(step.scale[step.selected].double().mean())
            run.emit("dampened", parameter=step.name, entries=count, mean_scale=scale)
    run.emit("dampening", entries=total, no_op=int(total == 0))
    return total


def dampening(whole: Tensor, own: Tensor, alpha: float, lambda_: float) -> tuple[Tensor, Tensor]:
    """Return which entries are selected, and the factor of every entry.

    Args:
        whole: Importances for all records.
        own: Importances for the forget set.
        alpha: Selection threshold (α).
        lambda_: Dampening constant (λ).

    Source: Foster et al., 2024, eq. 3 to 5.
    """
    selected = own > alpha * whole
    ratio = lambda_ * whole / own.clamp(min=torch.finfo(own.dtype).tiny)
    return selected, torch.where(selected, ratio.clamp(max=1.0), torch.ones_like(ratio))


def _each(
    parameters: dict[str, nn.Parameter], whole: Importance, own: Importance, config: SSDConfig
) -> Iterator[Dampening]:
    for name, parameter in parameters.items():
        pair = whole.of(name, parameter), own.of(name, parameter)
        selected, scale = dampening(*pair, config.alpha, config.lambda_)
        yield Dampening(name, selected, scale.to(parameter.dtype))


def _require_few(steps: Iterator[Dampening], most: float) -> None:
    """Check that no layer, weights and biases together, loses more than a share of its entries."""
    counts: dict[str, list[int]] = {}
    for step in steps:
        layer = step.name.rpartition(".")[0]
        count = counts.setdefault(layer, [0, 0])
        count[0] += int(step.selected.sum())
        count[1] += step.selected.numel()
    wrong = [
        f"{layer or 'the model'}: {chosen / size:.0%}"
        for layer, (chosen, size) in counts.items()
        if chosen > most * size
    ]
    if wrong:
        raise ConfigError(
            f"ssd would dampen more than {most:.0%} of {len(wrong)} layers ({listing(wrong)}), "
            "which cannot be undone; raise forget.alpha, or set forget.force to do it all the same"
        )


def _drawn(records: Records, most: int | None, seed: int) -> Records:
    if most is None or most >= len(records):
        return records
    return records.take(sorted(stream(seed, "importance-sample").permutation(len(records))[:most]))
