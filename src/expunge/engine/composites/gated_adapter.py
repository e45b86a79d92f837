"""A target and one low-rank adapter that works only on inputs like those of earlier requests.

Shape legend: B inputs, T tokens, D hidden size, R rank, I and O sizes of a linear layer's input and
output, N records.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.pytorch_utils import Conv1D

from expunge.core.errors import ConfigError, DataError, UnsupportedModelError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.core.streams import stream_seed
from expunge.engine.blocks import block_names
from expunge.engine.composites.composite import Composite, composites
from expunge.engine.gate import Gate
from expunge.engine.modes import evaluating
from expunge.engine.task import Batch, Task

GateMap = Literal["soft", "official"]
SCORED_BLOCKS = 12


class _Reached(Exception):
    """What was wanted of the forward pass has been seen; no error."""


@composites.register("gated_adapter")
class GatedAdapter(Composite):
    """A bare target, one adapter for all requests, and a gate for each of them.

    Every linear layer of the blocks says ``W x + w (α/r) B A x``, with one weight w for an input:
    the maximum of all gates. They read the hidden states of the bare target at the outputs of its
    first blocks, 12 at most, averaged over the tokens that were asked and never over padding. The
    paper trains a RoBERTa of its own for that, by masked-token and contrastive-entropy losses; the
    frozen target's states take its place, so that there is no second model and nothing but the
    forget set is read.

    The gates' banks hold features of forgotten records: they are derived personal data, to be
    guarded like the records. The target still knows what is suppressed, and whoever runs the model
    can shut the gate (``forced(0.0)``).

    Args:
        target: The model before unlearning; its weights never change.
        rank: Rank of the adapter (r).
        alpha: Its scale (α).
        down: A of every adapted layer, by the layer's name, shape (R, I); see ``new``.
        up: B of every adapted layer, shape (O, R).
        snapshots: A of every adapted layer as each request left it.
        gates: One for each request.
        gate_map: ``soft`` uses the gate as it is; ``official`` as the authors' evaluation on TOFU
            does, with constants that were read off its test split.

    Raises:
        DataError: A gate was fitted on features of another shape.
    """

    kind = "gated_adapter"
    reads_prompt = True
    supports_gradient_checkpointing = False  # hooks are gone when activations are computed again

    def __init__(
        self,
        target: Any,
        *,
        rank: int,
        alpha: float,
        down: Mapping[str, Tensor],
        up: Mapping[str, Tensor],
        snapshots: Sequence[Mapping[str, Tensor]] = (),
        gates: Sequence[Gate] = (),
        gate_map: GateMap = "soft",
    ) -> None:
        super().__init__(target)
        self.rank, self.alpha, self.gate_map = rank, alpha, gate_map
        self.down = nn.ParameterDict({_key(name): value for name, value in down.items()})
        self.up = nn.ParameterDict({_key(name): value for name, value in up.items()})
        self.earlier = _Snapshots(snapshots)
        self.bank = _Bank(gates)
        self.forced_gate: float | None = None
        """Weight of every input in place of the gates': 1 to train, 0 to audit what is below."""
        for gate in gates:
            self._check(gate)
        for module in (self, self.down, self.up, self.earlier, self.bank):
            module.training = target.training

    @classmethod
    def new(
        cls, target: Any, *, rank: int, alpha: float, seed: int, gate_map: GateMap = "soft"
    ) -> GatedAdapter:
        """Put an adapter that changes nothing yet beside a target.

        A is drawn as in ``torch.nn.Linear``, each layer from a stream of its own; B is 0.

        Args:
            target: The model.
            rank: Rank of the adapter.
            alpha: Its scale.
            seed: The run's seed.
            gate_map: How gates become weights.

        Raises:
            ConfigError: The rank is larger than a layer.
            UnsupportedModelError: The blocks have no linear layer.
        """
        like = next(target.parameters())
        made = {"dtype": torch.promote_types(like.dtype, torch.float32), "device": like.device}
        down, up = {}, {}
        for name, (inputs, outputs) in linear_layers(target).items():
            if rank > min(inputs, outputs):
                raise ConfigError(
                    f"forget.rank = {rank} but layer {name!r} is {inputs} x {outputs}; set it to "
                    f"at most {min(inputs, outputs)}"
                )
            generator = torch.Generator().manual_seed(stream_seed(seed, "gated-adapter", name))
            uniform = torch.rand(rank, inputs, dtype=torch.float64, generator=generator)
            down[name] = ((2 * uniform - 1) / math.sqrt(inputs)).to(**made)
            up[name] = torch.zeros(outputs, rank, **made)
        return cls(target, rank=rank, alpha=alpha, down=down, up=up, gate_map=gate_map)

    @property
    def gates(self) -> tuple[Gate, ...]:
        """One gate for each request, in their order."""
        return self.bank.gates

    @property
    def snapshots(self) -> tuple[dict[str, Tensor], ...]:
        """A of every adapted layer as each request left it."""
        return self.earlier.by_request()

    def add_request(self, gate: Gate) -> None:
        """Keep the adapter as it is now as the snapshot of a request, and the request's gate.

        Raises:
            DataError: The gate was fitted on features of another shape.
        """
        self._check(gate)
        now = {_name(key): value.detach().clone() for key, value in self.down.items()}
        self.earlier.append(now)
        self.bank.append(gate)

    def orthogonality(self) -> Float[Tensor, ""]:
        """Return how much the adapter reads what its earlier snapshots read; 0 without any.

        ``(1 / blocks) Σ_layers Σ_k ||A_k A^T||_F^2``, with A_k constant.
        """
        total = next(iter(self.down.values())).new_zeros(())
        for snapshot in self.snapshots:
            for name, earlier in snapshot.items():
                total = total + overlap(earlier, self.down[_key(name)])
        return total / len(block_names(self.target))

    @contextmanager
    def forced(self, weight: float | None) -> Iterator[None]:
        """Give every input this weight for the block, whatever the gates say; None asks them."""
        before, self.forced_gate = self.forced_gate, weight
        try:
            yield
        finally:
            self.forced_gate = before

    def settings(self) -> dict[str, Any]:
        """Return rank, scale, map and the settings of every gate."""
        return {
            "rank": self.rank,
            "alpha": self.alpha,
            "gate_map": self.gate_map,
            "gates": [gate.settings_json() for gate in self.gates],
        }

    def extra_tensors(self) -> dict[str, Tensor]:
        """Return the adapter, its snapshots and the gates."""
        tensors = {f"down/{name}": value for name, value in self.down.items()}
        tensors.update({f"up/{name}": value for name, value in self.up.items()})
        tensors.update({f"snapshot/{name}": value for name, value in self.earlier.named_buffers()})
        tensors.update({f"gate/{name}": value for name, value in self.bank.named_buffers()})
        return tensors

    @classmethod
    def assemble(
        cls,
        parts: Mapping[str, Any],
        settings: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
    ) -> GatedAdapter:
        """Make a composite of its parts; see ``Composite.assemble``."""
        requests = range(len(settings["gates"]))
        return cls(
            parts["target"],
            rank=settings["rank"],
            alpha=settings["alpha"],
            gate_map=settings["gate_map"],
            down=_named(_under("down/", tensors)),
            up=_named(_under("up/", tensors)),
            snapshots=[_named(_under(f"snapshot/{t}/", tensors)) for t in requests],
            gates=[Gate.of(_under(f"gate/{t}/", tensors), settings["gates"][t]) for t in requests],
        )

    @torch.no_grad()
    def pooled(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        **_: Any,
    ) -> list[Float[Tensor, "B D"]]:
        """Return what the gates read: mean hidden states of the bare target, block by block.

        Args:
            input_ids: Tokens, shape (B, T).
            attention_mask: Which of them are no padding, shape (B, T); all when absent.
            position_ids: Their positions.
            prompt_mask: Which of them were asked, shape (B, up to T), counted from the first; what
                is no padding when absent.
        """
        asked_BT = _asked(input_ids, attention_mask, prompt_mask)
        blocks = block_names(self.target)[:SCORED_BLOCKS]
        found: list[Tensor] = []

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            found.append(_mean(output[0] if isinstance(output, tuple) else output, asked_BT))
            if len(found) == len(blocks):
                raise _Reached

        handles = [self.target.get_submodule(b).register_forward_hook(keep) for b in blocks]
        try:
            with evaluating(self.target):
                self.target(
                    input_ids=input_ids,
                    attention_mask=attention_mask,
                    position_ids=position_ids,
                    use_cache=False,
                )
        except _Reached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return found

    def prompt_features(self, task: Task, batch: Batch) -> list[Float[Tensor, "B D"]]:
        """Return ``pooled`` for a batch of records, with the prompts that the task tells.

        Args:
            task: How to run the model.
            batch: The records, on the model's device.
        """
        asked: dict[str, Any] = {}

        def stop(module: nn.Module, args: Any, inputs: dict[str, Any]) -> None:
            asked.update(inputs)
            raise _Reached

        handle = self.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            task.predict(self, batch)
        except _Reached:
            pass
        finally:
            handle.remove()
        return self.pooled(**asked)

    def request_weights(self, features: Sequence[Float[Tensor, "B D"]]) -> Float[Tensor, "B Q"]:
        """Return how far the gate of each of Q requests opens, in double precision on the CPU.

        Args:
            features: What ``pooled`` or ``prompt_features`` returned.
        """
        return torch.stack([gate.weight(features) for gate in self.gates], dim=1)

    def gate(self, features: Sequence[Float[Tensor, "B D"]]) -> Float[Tensor, " B"]:
        """Return the weight of each input: the maximum over all requests, mapped.

        Args:
            features: What ``pooled`` or ``prompt_features`` returned.
        """
        return mapped(self.request_weights(features).amax(1), self.gate_map)

    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Generate as transformers does; the gate is the prompt's, whatever has been written."""
        ids, seen = kwargs.get("input_ids", inputs), kwargs.get("attention_mask")
        if ids is not None and kwargs.get("prompt_mask") is None:
            kwargs["prompt_mask"] = torch.ones_like(ids).bool() if seen is None else seen.bool()
        return super().generate(inputs, *args, **kwargs)  # type: ignore[misc]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        prompt_mask: Tensor | None = None,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Run the target once to ask the gates, then with the adapter.

        While answers are written, the gates are asked about the prompt only; their answer rides on
        the key/value cache.

        Raises:
            DataError: The cache was begun by another model.
            UnsupportedModelError: The target has gradient checkpointing turned on.
        """
        if input_ids is None:
            raise DataError("the gates read tokens; pass input_ids")
        if self.training and _recomputes(self.target):
            raise UnsupportedModelError(
                "the target has gradient checkpointing turned on, where the adapter cannot be "
                "trained; turn it off, and set schedule.micro_batch to save memory"
            )
        cache = past_key_values
        if use_cache and cache is None:
            cache = DynamicCache(config=self.target.config)

        def ask() -> Tensor | None:
            return self._weights(input_ids, attention_mask, position_ids, prompt_mask)

        weights_B = _remembered(cache, ask) if use_cache else ask()
        with self._adapted(weights_B, input_ids.shape[1]):
            output = self.target(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=bool(use_cache),
                logits_to_keep=logits_to_keep,
            )
        return CausalLMOutputWithPast(logits=output.logits, past_key_values=cache)

    def _weights(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        prompt_mask: Tensor | None,
    ) -> Float[Tensor, " B"] | None:
        """Return the weight of each input; None leaves the target bare, bit by bit."""
        if self.forced_gate is not None:
            forced_B = torch.full((len(input_ids),), self.forced_gate, device=input_ids.device)
            return forced_B if self.forced_gate else None
        if not self.gates:
            return None
        weights_B = self.gate(self.pooled(input_ids, attention_mask, position_ids, prompt_mask))
        return weights_B.to(input_ids.device, torch.float32) if weights_B.any() else None

    @contextmanager
    def _adapted(self, weights_B: Float[Tensor, " B"] | None, length: int) -> Iterator[None]:
        """Add the adapter's output to that of every adapted layer for the block."""
        handles = []
        try:
            if weights_B is not None:
                for key in self.down:
                    layer = self.target.get_submodule(_name(key))
                    hook = self._hook(key, weights_B * (self.alpha / self.rank), length)
                    handles.append(layer.register_forward_hook(hook))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, key: str, scale_B: Tensor, length: int) -> Any:
        down, up = self.down[key], self.up[key]

        def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = args[0]
            scale = _per_token(scale_B, x, length, key).to(down.dtype)
            change = scale * (x.to(down.dtype) @ down.T @ up.T)
            return output + change.to(output.dtype)

        return add

    def _check(self, gate: Gate) -> None:
        blocks = min(len(block_names(self.target)), SCORED_BLOCKS)
        size = int(self.target.get_input_embeddings().weight.shape[1])
        if (len(gate.layers), gate.size) != (blocks, size):
            raise DataError(
                f"the gate reads {len(gate.layers)} blocks of size {gate.size}, the model has "
                f"{blocks} of size {size}; fit it on the hidden states of this model"
            )


def linear_layers(target: Any) -> dict[str, tuple[int, int]]:
    """Return input and output size of every linear layer of a model's blocks, by name.

    Args:
        target: A language model of transformers; its output head lies outside its blocks.

    Raises:
        UnsupportedModelError: There are none.
    """
    blocks = tuple(f"{name}." for name in block_names(target))
    found = {}
    for name, module in target.named_modules():
        if not name.startswith(blocks):
            continue
        if isinstance(module, Conv1D):
            found[name] = (int(module.weight.shape[0]), int(module.weight.shape[1]))
        elif isinstance(module, nn.Linear):
            found[name] = (module.in_features, module.out_features)
    if not found:
        raise UnsupportedModelError(
            f"the blocks of {type(target).__name__} hold no linear layer (nn.Linear or Conv1D) for "
            "an adapter; use a method that changes weights"
        )
    return found


def overlap(earlier: Float[Tensor, "R I"], now: Float[Tensor, "R I"]) -> Float[Tensor, ""]:
    """Return ``||A_k A^T||_F^2``: 0 when two adapters read nothing in common.

    Source: o3 (Gao et al., 2025), section 3.2.
    """
    return (earlier.detach() @ now.T).square().sum()


def mapped(weights_B: Float[Tensor, " B"], gate_map: GateMap) -> Float[Tensor, " B"]:
    """Return the weights that a map makes of gates.

    Source: o3 (Gao et al., 2025), official code for TOFU: 1 from 0.32 on, 10 w² above 0.2, else 0.
    """
    if gate_map == "soft":
        return weights_B
    rising_B = torch.where(weights_B > 0.2, 10 * weights_B.square(), 0.0)
    return torch.where(weights_B >= 0.32, 1.0, rising_B)


def request_features(
    composite: GatedAdapter, task: Task, records: Records, run: Run, *, batch_size: int = 32
) -> list[Float[Tensor, "N D"]]:
    """Return what the gates read of every record, block by block, on the CPU.

    Args:
        composite: The composite.
        task: How to run it.
        records: The records; only what was asked in them is read.
        run: Context: device, progress.
        batch_size: Records of one forward pass.
    """
    order = np.argsort(task.lengths(records), kind="stable")
    module: nn.Module = composite
    module.to(run.device)
    parts: list[list[Tensor]] = []
    with run.progress("features of the request", len(records)) as bar:
        for start in range(0, len(order), batch_size):
            batch = task.batch(records, order[start : start + batch_size].tolist())
            features = composite.prompt_features(task, batch.to(run.device))
            parts.append([f.cpu() for f in features])
            bar.advance(len(batch))
    back = torch.from_numpy(np.argsort(order))
    return [torch.cat(block)[back] for block in zip(*parts, strict=True)]


class _Snapshots(nn.Module):
    """A of every adapted layer as each request left it; moves with the model, never trained."""

    def __init__(self, snapshots: Sequence[Mapping[str, Tensor]]) -> None:
        super().__init__()
        self.count = 0
        for snapshot in snapshots:
            self.append(snapshot)

    def append(self, snapshot: Mapping[str, Tensor]) -> None:
        for name, value in snapshot.items():
            self.register_buffer(f"{self.count}/{_key(name)}", value)
        self.count += 1

    def by_request(self) -> tuple[dict[str, Tensor], ...]:
        buffers = dict(self.named_buffers())
        return tuple(_named(_under(f"{t}/", buffers)) for t in range(self.count))


class _Bank(nn.Module):
    """Gates of all requests; they stay on the CPU in their own precision wherever the model goes.

    Their tensors are buffers, so that the model's digest covers them.
    """

    def __init__(self, gates: Sequence[Gate]) -> None:
        super().__init__()
        self.gates: tuple[Gate, ...] = ()
        for gate in gates:
            self.append(gate)

    def append(self, gate: Gate) -> None:
        for name, value in gate.tensors().items():
            self.register_buffer(f"{len(self.gates)}/{name}", value)
        self.gates = (*self.gates, gate)

    def _apply(self, fn: Any, recurse: bool = True) -> _Bank:
        return self


def _recomputes(model: nn.Module) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def _remembered(cache: Any, ask: Any) -> Tensor | None:
    """Return the weights that a cache was begun with; ask for those of a new one."""
    if not hasattr(cache, "gate_weights"):
        if cache.get_seq_length() > 0:
            raise DataError(
                "the key/value cache was begun by another model; begin with an empty one, so that "
                "the gates can read the prompt"
            )
        cache.gate_weights = ask()
    weights: Tensor | None = cache.gate_weights
    return weights


def _asked(
    input_ids: Tensor, attention_mask: Tensor | None, prompt_mask: Tensor | None
) -> Bool[Tensor, "B T"]:
    asked_BT = torch.ones_like(input_ids).bool()
    if attention_mask is not None and attention_mask.ndim == 2:
        asked_BT &= attention_mask.bool()
    if prompt_mask is not None:
        missing = input_ids.shape[1] - prompt_mask.shape[1]
        asked_BT &= nn.functional.pad(prompt_mask.bool(), (0, missing))
    return asked_BT


def _mean(hidden_BTD: Tensor, asked_BT: Tensor) -> Float[Tensor, "B D"]:
    """Average over the tokens that were asked.

    Others are left out by choice, not by a factor of 0, which would let a NaN of padding through.
    """
    wide_BTD = hidden_BTD.to(torch.promote_types(hidden_BTD.dtype, torch.float32))
    kept_BTD = torch.where(asked_BT[:, :, None], wide_BTD, 0.0)
    return kept_BTD.sum(1) / asked_BT.sum(1, keepdim=True).clamp(min=1)


def _per_token(scale_B: Tensor, x: Tensor, length: int, key: str) -> Tensor:
    """Bring one factor for each input to the shape of a layer's input, flattened or not."""
    if x.ndim > 2 and len(x) == len(scale_B):
        return scale_B.view(-1, *[1] * (x.ndim - 1))
    if x.ndim == 2 and len(x) == len(scale_B) * length:
        return scale_B.repeat_interleave(length)[:, None]
    raise UnsupportedModelError(
        f"layer {_name(key)!r} gets {tuple(x.shape)} for {len(scale_B)} inputs of {length} tokens; "
        "an adapter needs layers that see every token of every input: choose another method"
    )


def _key(name: str) -> str:
    return name.replace(".", "/")


def _name(key: str) -> str:
    return key.replace("/", ".")


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _named(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {_name(key): value for key, value in tensors.items()}
