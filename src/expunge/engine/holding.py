"""How a process holds the weights of a loop: whole, or divided among all (FSDP, DeepSpeed).

The loop gives each of them losses and asks for steps. Weights on disk are always whole.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from expunge.core.errors import ConfigError
from expunge.core.run import Run
from expunge.engine.blocks import block_names
from expunge.engine.checkpoint import Optimizer
from expunge.engine.schedule import Schedule, make_optimizer
from expunge.engine.scope import Selection, frozen_entries
from expunge.engine.workers import Workers


class Copy:
    """The whole model: of a process alone, or of one of several equal ones.

    Args:
        model: The model, changed in place.
        selection: Which of its weights may move.
        schedule: Settings of the loop.
        run: Device.
        workers: The processes.

    Attributes:
        model: What losses are computed with.
        optimizer: Its state, as checkpoints hold it.
        weights: The tensors that a checkpoint holds, by name: those of the model given.
        idle: Whether a process without records must run the model too.
        resumes: Whether a loop can go on from a checkpoint.
    """

    idle = False
    resumes = True

    def __init__(
        self,
        model: nn.Module,
        selection: Selection,
        schedule: Schedule,
        run: Run,
        workers: Workers,
    ) -> None:
        self.model = model
        self.selection, self.schedule, self.run, self.workers = selection, schedule, run, workers
        self.weights: dict[str, Tensor] = {
            **{n: p.data for n, p in selection.parameters.items()},
            **dict(model.named_buffers()),
        }
        self.parameters = self._parameters()
        self.optimizer: Optimizer = make_optimizer(schedule, self.parameters.values())
        if selection.mask is not None:
            selection.mask.check(selection.parameters)
        self.frozen = frozen_entries(selection)

    def start(self, lr: float) -> None:
        """Begin a step."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)

    def backward(self, value: Tensor, *, last: bool) -> None:
        """Add the gradient of a loss; ``last`` is the last one of the step."""
        del last
        value.backward()

    def advance(self) -> float:
        """Take the step; return the norm of the whole gradient, before clipping.

        Nothing moves when the norm is not finite.
        """
        self._sum_gradients()
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = float(_whole(torch.nn.utils.get_total_norm(gradients)))
        if math.isfinite(norm):
            bound = self.schedule.clip_norm
            if bound is not None and norm > bound:
                for gradient in gradients:
                    gradient.mul_(bound / (norm + 1e-6))
            self._update()
        return norm

    def pull(self) -> None:
        """Bring ``weights`` up to date."""

    def push(self) -> None:
        """Go on from ``weights``."""

    def finish(self) -> None:
        """Leave the result in the model given."""
        self.workers.spread(self.weights.values())

    def _parameters(self) -> dict[str, nn.Parameter]:
        return self.selection.parameters

    def _sum_gradients(self) -> None:
        self.workers.sum_gradients(self.parameters.values())

    def _update(self) -> None:
        """Take a step in which masked entries keep their bits, whatever momentum and decay want.

        Source: SalUn (Fan et al., 2024), eq. 4; zeroing gradients alone does not freeze weights.
        """
        mask = self.selection.mask
        if mask is None:
            self.optimizer.step()
            return
        for name, moves in mask.tensors.items():
            parameter = self.parameters[name]
            if parameter.grad is not None:
                parameter.grad.mul_(moves)
        self.optimizer.step()
        for name, moves in mask.tensors.items():
            parameter = self.parameters[name]
            torch.where(moves, parameter.data, self.frozen[name], out=parameter.data)


class _Divided(Copy):
    """A divided copy; the model given stays whole, on the CPU, and takes the result."""

    idle = True

    def finish(self) -> None:
        """Leave the result in the model given, where it was before."""
        self.pull()

    def _parameters(self) -> dict[str, nn.Parameter]:
        self.model = self._divide(copy.deepcopy(self.model))
        found = dict(self.model.named_parameters())
        return {name: found[name] for name in self.selection.parameters}

    def _divide(self, model: nn.Module) -> nn.Module:
        raise NotImplementedError

    def _sum_gradients(self) -> None:
        """Nothing is left to do: gradients are summed while they are computed."""

    def _pull_buffers(self) -> None:
        for name, buffer in self.model.named_buffers():
            if name in self.weights:
                self.weights[name].copy_(buffer)


class Fsdp(_Divided):
    """Weights, gradients and optimiser state divided by PyTorch's FSDP2, block by block."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._inner = self.optimizer
        self.optimizer = _WholeState(self._inner, list(self.parameters.values()), self.workers)

    def _divide(self, model: nn.Module) -> nn.Module:
        from accelerate import FullyShardedDataParallelPlugin
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        plugin = FullyShardedDataParallelPlugin()
        settings = {
            "mesh": init_device_mesh(self.workers.device, (self.workers.size,)),
            "reshard_after_forward": plugin.reshard_after_forward,
            "offload_policy": plugin.cpu_offload,
        }
        for name in block_names(model):
            fully_shard(model.get_submodule(name), **settings)
        fully_shard(model, **settings)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                # Sums, not means: a loss is divided by the whole step's count already.
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        return model

    @torch.no_grad()
    def pull(self) -> None:
        """Gather the weights, one after the other."""
        for name, parameter in self.parameters.items():
            self.weights[name].copy_(_whole(parameter))
        self._pull_buffers()

    @torch.no_grad()
    def push(self) -> None:
        """Give each process its part of the weights."""
        for name, parameter in self.parameters.items():
            parameter.copy_(_part(self.weights[name], parameter))


class DeepSpeed(_Divided):
    """Optimiser state, gradients and (stage 3) weights divided by DeepSpeed's ZeRO.

    A loop that is killed starts again: DeepSpeed's own checkpoints are pickles.
    """

    resumes = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        from accelerate import Accelerator

        self._accelerator = Accelerator()
        plugin = self._accelerator.state.deepspeed_plugin
        settings = plugin.deepspeed_config
        if not settings["zero_optimization"]["stage"]:
            raise ConfigError(
                "zero_stage = 0 divides nothing; set it to 1, 2 or 3, or launch without DeepSpeed"
            )
        settings["train_micro_batch_size_per_gpu"] = 1  # the loop counts by itself
        settings["train_batch_size"] = self.workers.size
        settings["gradient_accumulation_steps"] = 1
        settings["gradient_clipping"] = self.schedule.clip_norm or 0.0
        half = self.schedule.precision == "bfloat16"
        settings["torch_autocast"] = {"enabled": half, "dtype": "bfloat16"}
        self._engine, inner = self._accelerator.prepare(self.model, self.optimizer)
        self.model, self.optimizer = self._engine, _NoState(inner.param_groups)
        self.parameters = {
            name.removeprefix("module."): parameter
            for name, parameter in self.model.named_parameters()
            if name.removeprefix("module.") in self.parameters
        }

    def _divide(self, model: nn.Module) -> nn.Module:
        return model.to(self.run.device)

    def backward(self, value: Tensor, *, last: bool) -> None:
        """Add the gradient of a loss; with the last one the step is taken."""
        self._accelerator.gradient_state._set_sync_gradients(last)
        self._accelerator.backward(value * self.workers.size)  # it takes the mean over processes

    def advance(self) -> float:
        """Return the norm of the whole gradient, before clipping."""
        return float(self._engine.get_global_grad_norm())

    def pull(self) -> None:
        """Gather the weights, one after the other."""
        from deepspeed.utils import (  # type: ignore[import-not-found,unused-ignore]
            safe_get_full_fp32_param,
        )

        with torch.no_grad():
            for name, parameter in self.parameters.items():
                whole = safe_get_full_fp32_param(parameter)
                self.weights[name].copy_(whole.view_as(self.weights[name]))
        self._pull_buffers()

    def push(self) -> None:
        """Give each process its part of the weights."""
        from deepspeed.utils import safe_set_full_fp32_param

        for name, parameter in self.parameters.items():
            safe_set_full_fp32_param(parameter, self.weights[name].to(self.run.device))


class _NoState:
    """Stands for an optimiser that steps by itself and whose state cannot be kept."""

    def __init__(self, param_groups: list[dict[str, Any]]) -> None:
        self.param_groups = param_groups

    def step(self) -> None:
        """Nothing is left to do."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing is left to do."""

    def state_dict(self) -> dict[str, Any]:
        """Return no state."""
        return {"state": {}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """There is none."""


class _WholeState:
    """An optimiser over divided weights whose state goes to disk whole."""

    def __init__(self, inner: Optimizer, parameters: list[nn.Parameter], workers: Workers) -> None:
        self._inner, self._parameters, self._workers = inner, parameters, workers
        self.param_groups = inner.param_groups
        self.step, self.zero_grad = inner.step, inner.zero_grad

    def state_dict(self) -> dict[str, Any]:
        """Gather the state in the main process; the others get none."""
        found = self._inner.state_dict()
        state: dict[int, dict[str, Any]] = {}
        for index, slots in found["state"].items():
            for slot, value in slots.items():
                whole = _whole(value) if isinstance(value, Tensor) else value
                if self._workers.main:
                    kept = whole.cpu() if isinstance(whole, Tensor) else whole
                    state.setdefault(index, {})[slot] = kept
        return {**found, "state": state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Give each process its part of the state."""
        state = {
            index: {slot: _part(value, self._parameters[index]) for slot, value in slots.items()}
            for index, slots in state_dict["state"].items()
        }
        self._inner.load_state_dict({**state_dict, "state": state})


def hold(
    model: nn.Module, selection: Selection, schedule: Schedule, run: Run, workers: Workers
) -> Copy:
    """Hold a model's weights as the launch wants them; see ``Copy`` for the arguments.

    Raises:
        ConfigError: DeepSpeed was launched without a stage that divides anything.
    """
    kinds: dict[str, Callable[..., Copy]] = {"none": Copy, "fsdp": Fsdp, "deepspeed": DeepSpeed}
    return kinds[workers.sharding](model, selection, schedule, run, workers)


@contextmanager
def placed(model: nn.Module, device: str, team: Workers) -> Iterator[None]:
    """Move the model to its device; where weights are divided, the whole stays with the CPU."""
    if team.sharding == "none":
        model.to(device)
        yield
        return
    former = next(model.parameters()).device
    model.to("cpu")
    try:
        yield
    finally:
        model.to(former)


def _whole(value: Tensor) -> Tensor:
    gather = getattr(value, "full_tensor", None)
    return value if gather is None else gather()


def _part(value: Tensor, like: Tensor) -> Tensor:
    """Divide a whole tensor as another one is; counters have no parts."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    moved = value.to(like.device)
    return distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)
