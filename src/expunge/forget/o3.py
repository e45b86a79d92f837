"""o3: one adapter that learns to refuse, and a detector for each request that turns it on."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn

from expunge.core.config import config
from expunge.core.errors import ConfigError, Problems, UnsupportedModelError
from expunge.data.neutral import Neutral
from expunge.engine.gate import Gate, GateSettings, require_enough, split
from expunge.engine.loop import Term
from expunge.engine.schedule import Schedule
from expunge.engine.scope import Scope
from expunge.engine.task import Batch
from expunge.forget.method import Given, Sight, method
from expunge.train.supervised import likelihood


@config
class O3Config:
    """Settings of o3."""

    rank: Annotated[int, Field(ge=1)] = 8
    """Rank of the adapter (r)."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """Its scale: the adapter contributes alpha / rank times its product (α)."""
    orthogonal_weight: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the term that keeps a request's adapter orthogonal to earlier ones (λ)."""
    answers: Neutral = Neutral()
    """What the model learns to say."""
    gate: GateSettings = GateSettings()
    """The detector that turns the adapter on."""
    gate_map: Literal["soft", "official"] = "soft"
    """``soft``: the gate as it is. ``official``: the steps of the authors' evaluation on TOFU, with
    constants that were read off its test split; for replication only."""
    schedule: Schedule = Schedule(epochs=10, lr=2e-4, weight_decay=0.1)
    """Settings of the loop."""


_ADAPTER = Scope(patterns=("down.*", "up.*"))


@dataclasses.dataclass(frozen=True)
class _Training:
    """What the loop is told: the adapter moves, nothing else."""

    schedule: Schedule
    scope: Scope = _ADAPTER


def _check(model: nn.Module, given: Given, config: O3Config) -> None:
    require_enough(len(given.forget), config.gate)
    if config.schedule.gradient_checkpointing:
        raise ConfigError(
            "schedule.gradient_checkpointing does not work under o3, whose adapter is put in by "
            "hooks; leave it out"
        )


@method(
    "o3",
    kinds={"causal_lm"},
    needs={"forget", "neutral"},
    source="o3 (Gao et al., 2025)",
    evidence="output-suppressed",
    maturity="experimental",
    check=_check,
    continues="gated_adapter",
)
def o3(model: nn.Module, sight: Sight, config: O3Config) -> nn.Module:
    """Teach an adapter to refuse the forget prompts, and turn it on for inputs like them only.

    The adapter minimises ``L = CE(forget prompts, y_idk) + λ Σ_{k<t} ||A_k A^T||_F^2 / blocks``,
    with A_k its down-projections as request k left them. At inference its output is scaled by
    ``w(x) = max_t σ(ζ q_t(x) - 2)``, where q_t says how ordinary the target's hidden states on the
    prompt are for request t. A model that o3 made takes the next request: its adapter is trained
    further, and earlier snapshots and gates stay. The target's weights stay as they are and still
    hold the forget set; whoever runs the model can shut the gates. Each gate keeps one feature
    vector for each record and layer, no text: it is derived personal data, so guard it likewise.

    Source: o3 (Gao et al., 2025), section 3; ICLR 2025 title: On Large Language Model Continual
        Unlearning.
    Needs: forget prompts, 10 at least, and neutral answers; forgotten answers only where a record
        has no prompt. No retain record is read, so that no guard can watch for collapse.
    Units: nats per target position; the orthogonality term is a plain number.
    When to use: requests come one after the other, and no retain records are left. It is
        suppression, not erasure.
    Cost: training of a small adapter; inference reads each prompt once more, through at most 12
        blocks. Any request's gate turns on what all requests taught.
    Differs from the official code: gates read the frozen target's hidden states, not those of a
        RoBERTa that is trained for each request, averaged without padding; both parts of a score
        point the same way (``gate.variant``), and γ is the paper's 1000, not 100; the gate is used
        as it is (``gate_map``); its spread follows from forget records only, where the official
        detector is chosen on retained ones; the adapter has no dropout.
    """
    from expunge.engine.composites.gated_adapter import request_features

    composite = _composite(model, sight, config)
    features = request_features(composite, sight.task, sight.forget, sight.run)
    used, rest = split(sight.forget.ids, sight.run.seed)
    gate = Gate.fit([f[used] for f in features], [f[rest] for f in features], config.gate)
    terms = [likelihood(sight.task, "neutral")]
    if composite.snapshots and config.orthogonal_weight:
        terms.append(
            Term("neutral", _orthogonality, config.orthogonal_weight, name="orthogonality")
        )
    with composite.forced(1.0):
        sight.fit(
            composite,
            {"neutral": sight.neutral(config.answers)},
            terms,
            _Training(config.schedule),
            guarded=False,
        )
    composite.add_request(gate)
    sight.run.emit(
        "gate",
        request=len(composite.gates),
        used=len(used),
        held_out=len(rest),
        layers=len(gate.layers),
        feature_size=gate.size,
    )
    return composite


def _composite(model: nn.Module, sight: Sight, config: O3Config) -> Any:
    """Return the composite that takes the request: the model itself when o3 made it."""
    from expunge.engine.composites.composite import Composite
    from expunge.engine.composites.gated_adapter import GatedAdapter

    if isinstance(model, GatedAdapter):
        problems = Problems("o3 continues the adapter of an earlier request")
        for name in ("rank", "alpha", "gate_map"):
            given, earlier = getattr(config, name), getattr(model, name)
            if given != earlier:
                problems.add(
                    f"forget.{name} = {given!r} but it was made with {earlier!r}; use that"
                )
        problems.raise_if_any()
        return model
    if isinstance(model, Composite):
        raise UnsupportedModelError(
            f"o3 takes a plain language model or one that it made, not a {model.kind!r} composite; "
            "give its target"
        )
    return GatedAdapter.new(
        model,
        rank=config.rank,
        alpha=config.alpha,
        seed=sight.run.seed,
        gate_map=config.gate_map,
    )


def _orthogonality(model: Any, batch: Batch) -> Tensor:
    value: Tensor = model.orthogonality()
    return value.expand(len(batch))
