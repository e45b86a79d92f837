"""Influence: one step along the inverse Fisher matrix, as if the forget set had never counted.

Shape legend: P parameters in scope, B records of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from expunge.core.config import config
from expunge.core.errors import NumericalError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.core.streams import stream
from expunge.engine.modes import evaluating
from expunge.engine.scope import Scope, Selection, scoped
from expunge.engine.task import Task
from expunge.forget.method import Sight, method

Vector = Float[Tensor, " P"]


@config
class InfluenceConfig:
    """Settings of influence unlearning."""

    alpha: Annotated[float, Field(gt=0)] = 5.0
    """How far to go (α); 1 is the influence function itself, SalUn searches 1 to 20. Chosen on
    2,000 small pictures of Fashion-MNIST: with λ = 0.1 the average gap to retraining is 8.0 points
    at 1 and 5.4 at 5 (``benchmarks/baselines.py``)."""
    damping: Annotated[float, Field(gt=0)] = 0.1
    """What is added to the diagonal of the Fisher matrix (λ); 1 in the public code, where much of F
    has no say. Below 0.01 the step is no longer small."""
    fisher_records: Annotated[int, Field(ge=1)] | None = 1000
    """Retained records that the Fisher matrix is averaged over, drawn once; all when absent."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Records of one forward pass. Changes memory, not results."""
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """Largest error of the solution: |v - (F + λI) u| / |v|."""
    max_iterations: Annotated[int, Field(ge=1)] = 200
    """Most passes over the Fisher matrix's records."""
    scope: Scope = Scope()
    """Which weights may move."""


@method(
    "influence",
    kinds={"classifier"},
    needs={"forget", "retain", "labels"},
    source="Izzo et al., 2021; SalUn (Fan et al., 2024), baseline IU",
)
def influence(model: nn.Module, sight: Sight, config: InfluenceConfig) -> nn.Module:
    """Add the estimated change of the weights if the forget set had no weight (WoodFisher).

    ``θ_u = θ_0 + α (F + λI)^-1 v`` with ``v = |D_f| / (|D_f| + |D_r|) (g_f - g_r)``, g the mean
    gradients, and F the empirical Fisher matrix ``1/n Σ_i g_i g_i^T`` over single retained records.
    The system is solved by conjugate gradients: F is never built and no record's gradient is kept,
    so memory holds a handful of vectors.

    Source: SalUn (Fan et al., 2024), baseline IU; Koh & Liang, 2017, eq. 3; WoodFisher (Singh &
        Alistarh, 2020), section 3 (the empirical Fisher matrix).
    Needs: forget and retain records with labels.
    Units: parameters; gradients in nats.
    When to use: few records are to go from a model at its optimum and training cannot be repeated.
    Cost: one forward and backward pass over all records for v, and some three of them over the
        Fisher matrix's records in each iteration; a large λ needs few.
    Differs from the official code: its recursion passes one vector on that starts from a single
        record's gradient, and yields v plus a multiple of that, no product with an inverse; for
        ImageNet it reads the forget set where the retain set is meant. Here the product is that of
        the formula, to ``tolerance``.
    """
    sources = {"forget": sight.forget, "retain": sight.retain}
    model.to(sight.run.device)
    with (
        scoped(model, sight.task, config.scope, sources, sight.run) as selection,
        evaluating(model),
        sdpa_kernel(SDPBackend.MATH),  # the kernel of attention that has second derivatives
    ):
        slopes = _Slopes(model, sight.task, selection, config.batch_size, sight.run)
        wanted = slopes.mean(sources["forget"]) - slopes.mean(sources["retain"])
        sizes = [len(records) for records in sources.values()]
        wanted *= sizes[0] / sum(sizes)
        if not bool(torch.isfinite(wanted).all()):
            raise NumericalError(
                "a gradient on the forget or retain records is NaN or infinite; check their inputs"
            )
        kept = sources["retain"]
        count = min(config.fisher_records or len(kept), len(kept))
        rows = sorted(stream(sight.run.seed, "fisher").permutation(len(kept))[:count].tolist())
        sample = kept.take(rows)
        with sight.run.progress("inverse Fisher", config.max_iterations) as bar:

            def product(vector: Vector) -> Vector:
                sight.run.check()
                bar.advance()
                return slopes.fisher(sample, vector)

            change = damped_solve(
                product,
                wanted,
                config.damping,
                tolerance=config.tolerance,
                max_iterations=config.max_iterations,
            )
        _add(selection, config.alpha * change)
    return model


def damped_solve(
    product: Callable[[Vector], Vector],
    vector: Vector,
    damping: float,
    *,
    tolerance: float = 1e-5,
    max_iterations: int = 200,
) -> Vector:
    """Return ``(F + λI)^-1 v`` by conjugate gradients.

    Args:
        product: Yields F u for a vector u; F is symmetric and has no negative eigenvalue.
        vector: v.
        damping: λ, above 0.
        tolerance: Largest length of what is left of v, as a share of its own.
        max_iterations: Most calls of ``product``.

    Source: Hestenes & Stiefel, 1952.

    Raises:
        NumericalError: It is not as near as asked for after all iterations.
    """
    solution, left = torch.zeros_like(vector), vector.clone()
    direction, square = left.clone(), left @ left
    bound = float(tolerance**2 * square)
    for _ in range(max_iterations):
        if float(square) <= bound:
            return solution
        image = product(direction) + damping * direction
        step = square / (direction @ image)
        solution += step * direction
        left -= step * image
        before, square = square, left @ left
        direction = left + (square / before) * direction
    if float(square) <= bound:
        return solution
    raise NumericalError(
        f"the inverse Fisher product is off by {float(square / (vector @ vector)) ** 0.5:.1e} of "
        f"its length after {max_iterations} iterations; raise forget.damping (now {damping:g}), "
        "forget.max_iterations or forget.tolerance"
    )


class _Slopes:
    """Gradients with respect to the parameters in scope, as flat vectors in double precision."""

    def __init__(
        self, model: nn.Module, task: Task, selection: Selection, batch_size: int, run: Run
    ) -> None:
        self.model, self.task, self.run = model, task, run
        self.parameters = list(selection.parameters.values())
        self.batch_size = batch_size

    def mean(self, records: Records) -> Vector:
        """Return the gradient of the mean loss."""
        total = self._zeros()
        for nll_B in self._losses(records):
            total += self._flat(nll_B, torch.ones_like(nll_B))
        return total / len(records)

    def fisher(self, records: Records, vector: Vector) -> Vector:
        """Return ``1/n Σ_i g_i (g_i · u)``: each record's slope along u weighs its gradient."""
        total = self._zeros()
        parts = vector.split([p.numel() for p in self.parameters])
        along = [part.view_as(p).to(p) for part, p in zip(parts, self.parameters, strict=True)]
        for nll_B in self._losses(records):
            # Σ w_i g_i is linear in w, so that its derivative by w_i along u is g_i · u.
            weights_B = torch.ones_like(nll_B, requires_grad=True)
            sums = self._gradients(nll_B, weights_B, create_graph=True)
            slope = sum((g * u).sum() for g, u in zip(sums, along, strict=True))
            (slopes_B,) = torch.autograd.grad(slope, weights_B, retain_graph=True)
            total += self._flat(nll_B, slopes_B)
        return total / len(records)

    def _losses(self, records: Records) -> Iterator[Tensor]:
        for start in range(0, len(records), self.batch_size):
            rows = range(start, min(start + self.batch_size, len(records)))
            batch = self.task.batch(records, rows).to(self.run.device)
            yield self.task.predict(self.model, batch).nll_B()

    def _gradients(
        self, nll_B: Tensor, weights_B: Tensor, *, create_graph: bool = False
    ) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            nll_B,
            self.parameters,
            weights_B,
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )

    def _flat(self, nll_B: Tensor, weights_B: Tensor) -> Vector:
        return torch.cat([g.flatten().double() for g in self._gradients(nll_B, weights_B)])

    def _zeros(self) -> Vector:
        count = sum(p.numel() for p in self.parameters)
        return torch.zeros(count, dtype=torch.float64, device=self.run.device)


@torch.no_grad()
def _add(selection: Selection, change: Vector) -> None:
    """Add a flat vector to the parameters in scope; entries outside the mask keep their bits."""
    parts = change.split([p.numel() for p in selection.parameters.values()])
    for (name, parameter), part in zip(selection.parameters.items(), parts, strict=True):
        moved = parameter + part.view_as(parameter).to(parameter)
        if selection.mask is not None:
            moved = torch.where(selection.mask.tensors[name], moved, parameter)
        parameter.copy_(moved)
