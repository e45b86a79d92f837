"""Ablation: does taking something out of the model bring the forgotten records back?

Shape legend: B records of a batch, N target positions, D hidden size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from expunge.audit.audit import audit
from expunge.audit.evidence import Evidence
from expunge.audit.quantize import weight_matrices
from expunge.audit.readings import Reading
from expunge.audit.recovery import Attack, By, Trial, readings_by, recovery_findings
from expunge.audit.treatments import (
    GROUP,
    NOT_BEFORE,
    NotApplicable,
    attacked_ids,
    groups_of,
    groups_read,
    require_two_groups,
    split_words,
    treatment,
)
from expunge.audit.views import Scene
from expunge.core.config import config
from expunge.core.errors import NumericalError
from expunge.core.finding import Finding
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.core.sets import sample_ids
from expunge.data.dataset import Dataset
from expunge.engine.blocks import block_names
from expunge.engine.features import features_ND
from expunge.engine.masks.gradients import set_gradient
from expunge.engine.masks.mask import Mask, top_entries
from expunge.engine.modes import evaluating
from expunge.engine.task import Task

_BATCH = 32
_FORGET = Reading("forget", measures=(GROUP,))


@config
class AblationConfig:
    """Settings of the ablation audit."""

    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the forget records that the attack looks at; the others are scored."""
    directions: bool = True
    """Project out the direction between forget and retain records after every block."""
    pruned: tuple[Annotated[float, Field(gt=0, lt=100)], ...] = (0.5,)
    """Percent of the weights to set to 0, those that matter most to forget records alone."""
    by: By = "probability"
    """Score of a record: ``probability``, ``exact`` or ``knowledge``."""
    max_excess: float | None = None
    """Largest recovery beyond retraining that passes; no verdict when absent."""


@treatment("ablate_direction", roles=NOT_BEFORE)
def ablate_direction(
    model: nn.Module, task: Task, scene: Scene, parameters: str, run: Run
) -> tuple[nn.Module, Task]:
    """Project the direction from retain to forget records out of every block's output.

    The direction of a block is the mean of its output at the target positions of the forget records
    that the attack sees, minus that of as many retain records, all read off the model as it is.

    Args:
        model: Gets a hook on every block.
        task: How to run it.
        scene: The data.
        parameters: Share of the forget records that the attack sees.
        run: Context.

    Raises:
        NotApplicable: The model is a composite, there are no retain records, or all forget records
            are one group.

    Source: Open Problems in Machine Unlearning for AI Safety (Barez et al., 2025), audit S6; Łucki
        et al. (2024), orthogonalisation.
    """
    seen, benign = _looked_at(model, scene, float(parameters))
    model.to(run.device)
    directions = {}
    for block in block_names(model):
        forget_D = _mean_output(model, task, seen, block, run)
        directions[block] = forget_D - _mean_output(model, task, benign, block, run)
    for block, direction_D in directions.items():
        model.get_submodule(block).register_forward_hook(_projecting(direction_D))
    return model, task


@treatment("prune_difference", roles=NOT_BEFORE)
def prune_difference(
    model: nn.Module, task: Task, scene: Scene, parameters: str, run: Run
) -> tuple[nn.Module, Task]:
    """Set the weights to 0 that matter more to forget than to retain records.

    A weight's score is ``|w dL_forget/dw| - |w dL_retain/dw|`` with the mean cross entropy per
    target of the forget records that the attack sees, and of as many retain records. The highest
    over all matrices but embeddings and output head go.

    Args:
        model: Loses weights.
        task: How to run it.
        scene: The data.
        parameters: Percent of the weights, and share of the forget records that the attack sees.
        run: Context.

    Raises:
        NotApplicable: The model is a composite or has no weight matrix, there are no retain
            records, all forget records are one group, or the percentage is less than one weight.

    Source: Open Problems in Machine Unlearning for AI Safety (Barez et al., 2025), audit S7; Wei et
        al. (2024), set difference; Łucki et al. (2024).
    """
    percent, share = map(float, parameters.split(":"))
    seen, benign = _looked_at(model, scene, share)
    weights = {n: w for n, (w, _) in weight_matrices(model, embeddings=False).items()}
    if percent / 100 * sum(weight.numel() for weight in weights.values()) < 1:
        raise NotApplicable(f"{percent:g} % of the model's weight matrices is less than one weight")
    model.to(run.device).requires_grad_(True)
    forget, retain = (_gradient(model, task, records, run) for records in (seen, benign))
    scores = {
        name: (weight * forget[name]).abs() - (weight * retain[name]).abs()
        for name, weight in ((name, weight.detach()) for name, weight in weights.items())
    }
    for name, goes in top_entries(scores, percent / 100).tensors.items():
        weights[name].data.masked_fill_(goes, 0.0)
    return model, task


def projected_out(
    hidden: Float[Tensor, "... D"], direction_D: Float[Tensor, " D"]
) -> Float[Tensor, "... D"]:
    """Return hidden states without their part along a direction; a direction of 0 takes nothing.

    Args:
        hidden: The states.
        direction_D: The direction, of any length.
    """
    length = direction_D.norm()
    unit_D = direction_D / length if length > 0 else direction_D
    return hidden - (hidden @ unit_D).unsqueeze(-1) * unit_D


def _projecting(direction_D: Tensor) -> Any:
    def project(module: nn.Module, args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        changed = projected_out(wide, direction_D.to(wide)).to(hidden.dtype)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return project


def _looked_at(model: nn.Module, scene: Scene, share: float) -> tuple[Records, Records]:
    """Return the forget records that the attack sees, and as many retain records."""
    if hasattr(model, "parts"):
        raise NotApplicable("a composite is attacked part by part")
    forget, retain = scene.records("forget"), scene.records("retain")
    if len(forget) < 2 or not len(retain):
        raise NotApplicable("an attack by comparison needs two forget records and a retain record")
    groups_R = groups_of(forget)
    require_two_groups(groups_R)
    seen = attacked_ids(forget.ids, share, scene.seed, groups_R)
    count = min(len(seen), len(retain))
    return forget.select(seen), retain.select(
        sample_ids(retain.ids, count, scene.seed, "ablation-retain")
    )


@torch.no_grad()
def _mean_output(
    model: nn.Module, task: Task, records: Records, block: str, run: Run
) -> Float[Tensor, " D"]:
    """Return the mean output of a block over the target positions of records, in float64."""
    total, count = None, 0
    with evaluating(model):
        for start in range(0, len(records), _BATCH):
            run.check()
            rows = range(start, min(start + _BATCH, len(records)))
            batch = task.batch(records, rows).to(run.device)
            hidden_ND = features_ND(model, task, batch, block).double()
            total = hidden_ND.sum(0) if total is None else total + hidden_ND.sum(0)
            count += len(hidden_ND)
    if total is None or not torch.isfinite(total).all():
        raise NumericalError(f"the output of block {block!r} is not finite; the model is damaged")
    return total / count


def _gradient(model: nn.Module, task: Task, records: Records, run: Run) -> dict[str, Tensor]:
    settings = Mask(by="difference", batch_size=_BATCH)
    return set_gradient(model, task, {"seen": records}, "seen", settings, run, over="targets")


def _reads(config: AblationConfig, dataset: Dataset) -> Iterator[Reading]:
    for spec in ("", *_specs(config)):
        reading = dataclasses.replace(_FORGET, treatment=spec)
        yield from readings_by(reading, config.by, dataset)


@audit(
    "ablation",
    kinds={"causal_lm"},
    reads=_reads,
    source="Open Problems in Machine Unlearning for AI Safety (Barez et al., 2025), S6 and S7",
)
def ablation(evidence: Evidence, config: AblationConfig, run: Run) -> list[Finding]:
    """Is the forgetting itself a small part of the model that can be cut out again?

    Two attacks without training by someone who has the weights:

    - ``directions``: the direction in which hidden states of forget and retain records differ is
      projected out of every block's output. Methods that steer forgotten topics to a direction of
      nonsense are undone by it.
    - ``pruned``: the weights that matter most to the forget records' loss, and less to that of the
      retain records, are set to 0.

    Both look at a share of the forget records and as many retain records; the other forget records
    are scored. Equal records are divided whole, and so are authors, countries or groups where the
    data name 4 or more, so that no fact of one tells of another; the notes say which. For each:
    their score after it, the recovery (how much of what unlearning took came back) and the excess
    over the retrained references under the same attack. The excess of the stronger one is the
    headline; a bound judges it.

    What it does not show: that no other direction or set of weights would do. Composites are
    attacked part by part.

    Cost: two short passes per block and two over the records with gradients, then one scoring of
    the forget set per attack and model.

    Source: Open Problems in Machine Unlearning for AI Safety (Barez et al., 2025); Łucki et al.
        (2024), An Adversarial Perspective on Machine Unlearning for AI Safety.
    """
    known = evidence.after.scores[_FORGET]
    groups_R = groups_read(known)
    seen = frozenset(attacked_ids(known.ids, config.share, run.seed, groups_R))
    trials = {
        spec: (Trial(dataclasses.replace(_FORGET, treatment=spec), seen),)
        for spec in _specs(config)
    }
    attacks = [
        Attack(name, title, trials[spec], note=split_words(groups_R))
        for spec, (name, title) in _specs(config).items()
    ]
    return recovery_findings(evidence, config, run, attacks)


def _specs(config: AblationConfig) -> dict[str, tuple[str, str]]:
    """Return name and title of every attack by its treatment."""
    found = {}
    if config.directions:
        found[f"ablate_direction:{config.share}"] = ("direction", "Direction projected out")
    for percent in config.pruned:
        name = f"{percent:g}".replace(".", "_")
        found[f"prune_difference:{percent}:{config.share}"] = (
            f"pruned_{name}_percent",
            f"{percent:g} % of the weights pruned by their part in forgetting",
        )
    return found
