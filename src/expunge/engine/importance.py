"""How much a set of records depends on each weight: squares of the gradients of its batches.

One pass in eval mode, no training. A gradient is squared and dropped as soon as its parameter has
it, so that a pass holds the weights, one number for each of them, and one parameter's gradient. The
result lies on disk and is read one parameter at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from expunge.core.digest import digest_file, digest_json
from expunge.core.errors import (
    ConfigError,
    DataError,
    IntegrityError,
    Interrupted,
    NumericalError,
    listing,
)
from expunge.core.files import read_json, write_json
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.core.streams import stream
from expunge.engine.checkpoint import Checkpoints, State
from expunge.engine.modes import evaluating
from expunge.engine.task import Batch, Task
from expunge.engine.weights import save_tensors, state_digest
from expunge.engine.workers import workers


@dataclasses.dataclass(frozen=True)
class Estimator:
    """What is squared; importances are comparable under the same one only.

    Attributes:
        batch_size: Records whose mean gradient is squared; with 1, each record's own.
        label_free: Take the mean squared length of the outputs for the loss, and absolute values
            for squares.
    """

    batch_size: int
    label_free: bool = False


@dataclasses.dataclass(frozen=True)
class Importance:
    """Importances of the weights of a model for one set of records, on disk.

    Attributes:
        estimator: How they were estimated.
        files: In which file each parameter's lie.
    """

    estimator: Estimator
    files: Mapping[str, Path]

    def of(self, name: str, like: Tensor) -> Tensor:
        """Return the importances of one parameter, on the device of ``like``."""
        with safe_open(self.files[name], framework="pt") as file:
            found: Tensor = file.get_tensor(name)
        return found.to(like.device)


def measure_importance(
    model: nn.Module,
    task: Task,
    records: Records,
    estimator: Estimator,
    run: Run,
    *,
    passes: int = 1,
    label: str = "importance",
) -> Importance:
    """Estimate how much a set depends on each weight that needs a gradient.

    ``I = Σ_b |b| (∂ mean loss of batch b / ∂θ)² / Σ_b |b|`` over shuffled batches, the last of them
    smaller where the size does not divide. A call that was killed or cancelled goes on from its
    last checkpoint with the same bits.

    Args:
        model: In eval mode for the moment; its weights stay as they are.
        task: How to run it; gives each record's loss.
        records: The set; its labels are not read when the estimator is label-free.
        estimator: What is squared.
        run: Device, folder for the result, progress, cancellation.
        passes: Divide the parameters into so many groups, with a pass for each: less memory.
        label: Words beside the progress bar.

    Source: Selective Synaptic Dampening (Foster et al., 2024), eq. 7, as its code estimates it;
        label-free: Loss-Free SSD (Foster et al., 2024).

    Raises:
        DataError: There is no record.
        NumericalError: A gradient is NaN or infinite.
        ConfigError: No parameter needs a gradient, or the folder holds the result of other data.
        Interrupted: Cancelled, or the budget is spent; call again to resume.
    """
    if not len(records):
        raise DataError(f"{label}: there is no record to take gradients of")
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise ConfigError(f"{label}: no parameter of the model needs a gradient; thaw some")
    model.to(run.device)
    rows = stream(run.seed, "importance").permutation(len(records))
    what = [
        state_digest(model),
        task.fingerprint(),
        records.digest(),
        digest_json(records.ids),
        dataclasses.asdict(estimator),
        run.seed,
    ]
    files: dict[str, Path] = {}
    for number, names in enumerate(_groups(parameters, passes)):
        key = digest_json([*what, names])
        path = run.folder / f"importance-{number}.safetensors"
        if not _is_kept(path, key):
            chosen = {name: parameters[name] for name in names}
            part = f"{label}, part {number + 1} of {passes}" if passes > 1 else label
            held = Checkpoints(run.folder / f"partial-{number}", key, workers())
            sums = _Pass(model, task, records, rows, estimator, chosen).sums(held, run, part)
            _keep(sums, path, key)
            held.clear()
            del sums
        files.update(dict.fromkeys(names, path))
    return Importance(estimator, files)


class _Pass:
    """One pass over the records, for some of the parameters."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        records: Records,
        rows: np.ndarray,
        estimator: Estimator,
        parameters: Mapping[str, nn.Parameter],
    ) -> None:
        self.model, self.task, self.records, self.rows = model, task, records, rows
        self.estimator, self.parameters = estimator, parameters
        self._share = 0.0

    def sums(self, held: Checkpoints, run: Run, label: str) -> dict[str, Tensor]:
        """Return the importances; see ``measure_importance``."""
        found = {n: torch.zeros_like(p, dtype=_wide(p.dtype)) for n, p in self.parameters.items()}
        total, size = sum(self.task.num_targets(self.records)), self.estimator.batch_size
        starts = range(0, len(self.rows), size)
        # A checkpoint holds an optimiser's state; sums have none.
        nothing = torch.optim.SGD([nn.Parameter(torch.zeros(0))], 0.0)
        state = held.load(found, nothing) or State()
        with (
            evaluating(self.model),
            self._taking(found),
            run.progress(label, len(self.rows), min(state.step * size, len(self.rows))) as bar,
        ):
            while state.step < len(starts):
                try:
                    run.check()
                except Interrupted:
                    held.save(state, found, nothing)
                    raise
                start = starts[state.step]
                chosen = self.rows[start : start + size].tolist()
                batch = self.task.batch(
                    self.records, chosen, targets=not self.estimator.label_free
                ).to(run.device)
                self._share = batch.rows_N.numel() / total
                self._loss(batch).backward()
                state.step += 1
                bar.advance(len(chosen))
                if state.step % run.checkpoint_every == 0 and state.step < len(starts):
                    held.save(state, found, nothing)
        _require_finite(found, label)
        return found

    def _loss(self, batch: Batch) -> Tensor:
        predictions = self.task.predict(self.model, batch)
        if self.estimator.label_free:
            return predictions.logits_NV.square().sum(1).mean()
        return predictions.nll_B().sum() / batch.rows_N.numel()

    @contextmanager
    def _taking(self, found: Mapping[str, Tensor]) -> Iterator[None]:
        """Add each parameter's gradient to its sum, and drop it, as soon as it is there."""

        def take(sum_: Tensor) -> Callable[[Tensor], None]:
            def hook(parameter: Tensor) -> None:
                assert parameter.grad is not None
                gradient = parameter.grad.to(sum_.dtype)
                if self.estimator.label_free:
                    sum_.add_(gradient.abs_(), alpha=self._share)
                else:
                    sum_.addcmul_(gradient, gradient, value=self._share)
                parameter.grad = None

            return hook

        self.model.zero_grad(set_to_none=True)
        flags = {p: p.requires_grad for p in self.model.parameters()}
        handles = []
        try:
            for parameter in flags:
                parameter.requires_grad_(False)
            for name, parameter in self.parameters.items():
                parameter.requires_grad_(True)
                handles.append(parameter.register_post_accumulate_grad_hook(take(found[name])))
            yield
        finally:
            for handle in handles:
                handle.remove()
            for parameter, flag in flags.items():
                parameter.grad = None
                parameter.requires_grad_(flag)


def _groups(parameters: Mapping[str, Tensor], count: int) -> list[list[str]]:
    """Divide parameters, in their order, into groups of nearly equal size; none is empty."""
    total = sum(p.numel() for p in parameters.values())
    groups: list[list[str]] = [[] for _ in range(count)]
    before = 0
    for name, parameter in parameters.items():
        middle = before + parameter.numel() / 2
        groups[min(int(middle * count / total), count - 1)].append(name)
        before += parameter.numel()
    return [names for names in groups if names]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _require_finite(sums: Mapping[str, Tensor], label: str) -> None:
    wrong = [name for name, value in sums.items() if not bool(torch.isfinite(value).all())]
    if wrong:
        raise NumericalError(
            f"{label}: the gradients of {len(wrong)} parameters are NaN or infinite, or their "
            f"squares overflow ({listing(wrong)}); check the model and the inputs"
        )


def _keep(sums: dict[str, Tensor], path: Path, key: str) -> None:
    team = workers()
    if team.main:
        save_tensors(sums, path)
        head = {"key": key, "digest": digest_file(path)}
        write_json(path.with_suffix(".json"), head)
    team.wait()


def _is_kept(path: Path, key: str) -> bool:
    head_path = path.with_suffix(".json")
    if not head_path.exists():
        return False
    head = read_json(head_path)
    if not isinstance(head, dict) or head.get("key") != key:
        raise ConfigError(
            f"the importances in {path.parent} are those of another model, of other data or "
            "settings; choose another folder with --out, or delete this one"
        )
    if not path.exists() or digest_file(path) != head.get("digest"):
        raise IntegrityError(f"{path} is not what was written; delete {path.parent}")
    return True


def require_comparable(whole: Importance, own: Importance, names: Sequence[str]) -> None:
    """Check that the importances of two sets are estimated alike and are those of a model.

    Args:
        whole: Of one set.
        own: Of the other one.
        names: The model's parameters that need a gradient.

    Raises:
        ConfigError: Batch size or loss differ: their squares are on different scales.
        DataError: They are of other parameters.
    """
    if whole.estimator != own.estimator:
        raise ConfigError(
            f"importances under {whole.estimator} and {own.estimator} cannot be compared; "
            "estimate both with the same batch size and loss"
        )
    for found in (whole, own):
        different = set(found.files) ^ set(names)
        if different:
            raise DataError(
                f"importances and model differ in {len(different)} parameters "
                f"({listing(sorted(different))}); estimate them on this model"
            )
