"""What a network knows of a record just before its last linear layer, and where that layer is.

A classifier or regressor is a head on top of an extractor: the head is a linear layer whose output
is the model's output, and its input is the representation of the record.

Shape legend: B records of a batch, N records of a set, D width of the representation.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from expunge.core.errors import NumericalError, UnsupportedModelError, listing
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.modes import evaluating
from expunge.engine.task import Batch, Predictions, Task


@dataclasses.dataclass(frozen=True)
class Split:
    """A model as a head on top of an extractor.

    Attributes:
        head: Name of the head, a linear layer.
        width: Width D of the representation, the head's input.
        extractor: Names of the parameters that are not the head's.
    """

    head: str
    width: int
    extractor: tuple[str, ...]


def split(model: nn.Module, head: str | None = None) -> Split:
    """Find the head of a model and what lies below it.

    Args:
        model: The model.
        head: Name of the head; the linear layer that is registered last when absent.

    Raises:
        UnsupportedModelError: There is no linear layer, or none of that name, or all parameters
            are its own.
    """
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    if not linear:
        raise UnsupportedModelError(
            f"a {type(model).__name__} has no nn.Linear layer, so that there is no head with a "
            "representation as its input; give a model that ends with a linear layer"
        )
    name = next(reversed(linear)) if head is None else head
    if name not in linear:
        raise UnsupportedModelError(
            f"head = {head!r} is no linear layer of the model, which has {listing(linear, 8)}"
        )
    own = {id(parameter) for parameter in linear[name].parameters()}
    extractor = tuple(n for n, p in model.named_parameters() if id(p) not in own)
    if not extractor:
        raise UnsupportedModelError(
            f"the model is its head {name!r} and nothing else: it has no representation that could "
            "be changed; give a model with layers before the last one"
        )
    return Split(name, linear[name].in_features, extractor)


def represent(
    model: nn.Module, task: Task, batch: Batch, head: str
) -> tuple[Float[Tensor, "B D"], Predictions]:
    """Run the model once and return the representations of the records and its predictions.

    Both are part of the graph, so that a loss may be put on either. The caller decides on modes and
    gradients.

    Args:
        model: The model.
        task: How to run it.
        batch: The records.
        head: Name of the head; see ``split``.

    Raises:
        UnsupportedModelError: The head is not run exactly once, is not given one vector for each
            record, or its output is not the output of the model.
    """
    seen: list[tuple[Tensor, Tensor]] = []

    def watch(module: nn.Module, args: Any, named: Any, output: Tensor) -> None:
        # A copy: what follows might change the output in place.
        seen.append((args[0] if args else named["input"], output.detach().clone()))

    handle = model.get_submodule(head).register_forward_hook(watch, with_kwargs=True)
    try:
        predictions = task.predict(model, batch)
    finally:
        handle.remove()
    if len(seen) != 1:
        raise UnsupportedModelError(
            f"the model's forward pass runs head {head!r} {len(seen)} times, which must be once; "
            "name the linear layer that yields the model's output"
        )
    [(features_BD, output)] = seen
    if features_BD.ndim != 2 or len(features_BD) != len(batch):
        raise UnsupportedModelError(
            f"head {head!r} is given shape {tuple(features_BD.shape)} for {len(batch)} records; "
            f"a representation has shape ({len(batch)}, D)"
        )
    if not _same(output, predictions.logits_NV.detach()):
        raise UnsupportedModelError(
            f"the output of head {head!r} is not that of the model: something follows it; "
            "name the linear layer that is applied last"
        )
    return features_BD, predictions


@torch.no_grad()
def representations_ND(
    model: nn.Module,
    task: Task,
    records: Records,
    head: str,
    run: Run,
    *,
    batch_size: int = 256,
) -> Float[Tensor, "N D"]:
    """Return the representations of many records under a model in eval mode, without labels.

    Args:
        model: The model, put in eval mode for the moment.
        task: How to run it.
        records: N records, whose labels are not read.
        head: Name of the head; see ``split``.
        run: Device, progress, cancellation.
        batch_size: Records per forward pass.

    Raises:
        NumericalError: A representation is NaN or infinite.
        UnsupportedModelError: The head does not end the model; see ``represent``.
        Interrupted: The run was cancelled.
    """
    model.to(run.device)
    found = []
    with evaluating(model), run.progress("representations", len(records)) as bar:
        for start in range(0, len(records), batch_size):
            run.check()
            rows = range(start, min(start + batch_size, len(records)))
            batch = task.batch(records, rows, targets=False).to(run.device)
            features_BD, _ = represent(model, task, batch, head)
            wrong = (~features_BD.isfinite().all(1)).nonzero()[:, 0].tolist()
            if wrong:
                raise NumericalError(
                    f"the representations of {listing(batch.ids[row] for row in wrong)} hold NaN "
                    "or infinity; check the model and these inputs"
                )
            found.append(features_BD)
            bar.advance(len(rows))
    return torch.cat(found)


def _same(output: Tensor, logits: Tensor) -> bool:
    if output.numel() != logits.numel():
        return False
    return torch.allclose(output.flatten(), logits.flatten().to(output), 0.0, 0.0, equal_nan=True)
