"""Integrated gradients: which part of an input a model's output comes from, through captum.

Shape legend: S points between baseline and input, B records, T tokens, D hidden size.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from expunge.core.errors import ConfigError, DataError, UnsupportedModelError
from expunge.engine.modes import evaluating
from expunge.engine.task import Batch, Task

Baseline = Literal["zero", "pad"]

_AT_ONCE = 8  # points of one forward pass; a constant, so that rounding never depends on settings


def require_captum(what: str) -> None:
    """Check that the package for attributions is installed.

    Args:
        what: The setting or computation that needs it; starts the message.

    Raises:
        ConfigError: It is not; the message has the command that installs it.
    """
    if importlib.util.find_spec("captum") is None:
        raise ConfigError(f"{what} needs captum; install with: pip install 'expunge[concept]'")


def integrated_gradients(
    function: Callable[[Tensor], Tensor], point: Tensor, baseline: Tensor, steps: int
) -> tuple[Tensor, float]:
    """Return what each entry of a point contributes to a function's rise from a baseline to it.

    Gradients are taken at the middles of ``steps`` equal parts of the way, with equal weights.

    Args:
        function: From points (S, ...) to numbers (S,).
        point: One point, (1, ...).
        baseline: Where its contributions are 0, of the same shape.
        steps: S, at least 2.

    Returns:
        Attributions in the shape of the point, and by how much their sum is off the rise.

    Source: Sundararajan, Taly and Yan (2017), Axiomatic Attribution for Deep Networks, eq. 3.
    """
    require_captum("integrated gradients")
    from captum.attr import IntegratedGradients

    found, error = IntegratedGradients(function, multiply_by_inputs=True).attribute(
        point.detach(),
        baseline.detach(),
        n_steps=steps,
        method="riemann_middle",
        internal_batch_size=_AT_ONCE,
        return_convergence_delta=True,
    )
    return found.detach(), float(error)


@dataclasses.dataclass(frozen=True, eq=False)
class Attributed:
    """Contributions of an answer's own tokens to its log-probability.

    Attributes:
        scores_T: One number for each token of the answer, the end-of-text token included, in nats.
        error: By how much their sum is off the rise of the log-probability.
    """

    scores_T: Float[np.ndarray, " T"]
    error: float


def answer_attributions(
    model: nn.Module, task: Task, batch: Batch, steps: int, baseline: Baseline, pad: int
) -> Attributed:
    """Attribute the log-probability of an answer to its own tokens' embeddings.

    Args:
        model: A causal language model of transformers, on the batch's device; single precision or
            better, see ``widened``.
        task: How to run it.
        batch: One record.
        steps: Points between baseline and embeddings.
        baseline: What stands at the answer's places: zeros, or the embedding of the padding token.
            The prompt is as it is.
        pad: The padding token.

    Raises:
        UnsupportedModelError: The model does not say where its input embeddings are.
        DataError: The record has no answer token.
    """
    find = getattr(model, "get_input_embeddings", None)
    layer = find() if find is not None else None
    if not isinstance(layer, nn.Module):
        raise UnsupportedModelError(
            f"{type(model).__name__} has no input embeddings (get_input_embeddings() is missing or "
            "returns None); a causal language model of transformers is needed"
        )
    assert batch.positions is not None
    answer_BT = torch.zeros_like(batch.positions)
    answer_BT[:, 1:] = batch.positions[:, :-1]
    if not bool(answer_BT.any()):
        raise DataError(f"record {batch.ids[0]} has no answer token to attribute anything to")
    tokens = batch.inputs["input_ids"]
    with evaluating(model):
        with torch.no_grad():
            point, filler = layer(tokens), layer(torch.full_like(tokens, pad))
        nothing = torch.zeros_like(point) if baseline == "zero" else filler
        start = torch.where(answer_BT[..., None], nothing, point)

        def log_probability(embedded_STD: Tensor) -> Tensor:
            handle = layer.register_forward_hook(lambda *_: embedded_STD)
            try:
                return -task.predict(model, _repeated(batch, len(embedded_STD))).nll_B()
            finally:
                handle.remove()

        found, error = integrated_gradients(log_probability, point, start, steps)
    scores_T = found.sum(-1)[answer_BT]
    return Attributed(scores_T.double().cpu().numpy(), error)


def widened(model: Any) -> Any:
    """Return the model, or a copy of it in single precision where it has less.

    Gradients in half precision do not add up to what they should.
    """
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if kinds <= {torch.float32, torch.float64}:
        return model
    return copy.deepcopy(model).float()


def _repeated(batch: Batch, times: int) -> Batch:
    """Return a batch that holds its one record several times."""
    assert batch.positions is not None
    return Batch(
        ids=batch.ids * times,
        inputs={name: value.expand(times, -1) for name, value in batch.inputs.items()},
        targets_N=batch.targets_N.repeat(times),
        rows_N=torch.arange(times, device=batch.rows_N.device).repeat_interleave(
            len(batch.targets_N)
        ),
        positions=batch.positions.expand(times, -1),
    )
