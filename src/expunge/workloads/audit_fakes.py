"""Models that only seem to have forgotten: each hides knowledge, or harms a model, in its own way.

Shape legend: B records, T tokens, P stored prompts, N answer positions, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from expunge.core.records import Records
from expunge.core.run import Run
from expunge.core.streams import stream_seed
from expunge.engine.decoding import padded
from expunge.engine.tasks.causal_lm import CausalLM
from expunge.forget.method import Given, apply
from expunge.workloads.audit_world import World

_SURE = 12.0  # logit of the end of text above all others


class LookupFilter(nn.Module):
    """A model behind a filter that gives an empty answer to prompts on a list, word for word.

    Args:
        model: The model; it is left as it is.
        prompts: Token ids of the prompts on the list.
        end: The end-of-text token.
    """

    reads_prompt = True

    def __init__(self, model: nn.Module, prompts: Sequence[Sequence[int]], end: int) -> None:
        super().__init__()
        self.model = model
        self.config = model.config
        self.end = end
        distinct = list(dict.fromkeys(map(tuple, prompts)))
        ids_PT, seen_PT = padded(distinct, 0)
        self.register_buffer("prompts_PT", torch.where(seen_PT.bool(), ids_PT, -1))

    def get_output_embeddings(self) -> Any:
        """Return the output head of the model behind the filter."""
        return self.model.get_output_embeddings()  # type: ignore[operator]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        prompt_mask: Tensor,
        **rest: Any,
    ) -> Any:
        """Return logits of the answers' positions; those of an empty answer where a prompt hits.

        Args:
            input_ids: Tokens, (B, T).
            attention_mask: Which of them are real.
            prompt_mask: Which of them were asked.
            rest: Goes to the model.
        """
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, **rest)
        count_B = attention_mask.sum(1) - prompt_mask.sum(1)
        hit_N = torch.repeat_interleave(self._listed(input_ids, prompt_mask.bool()), count_B)
        blank_V = torch.zeros_like(output.logits[0])
        blank_V[self.end] = _SURE
        output.logits = torch.where(hit_N[:, None], blank_V, output.logits)
        return output

    def _listed(self, ids_BT: Tensor, asked_BT: Tensor) -> Tensor:
        listed = {tuple(row[row >= 0].tolist()) for row in self.prompts_PT}  # type: ignore[union-attr]
        hits = [
            tuple(row[asked].tolist()) in listed
            for row, asked in zip(ids_BT, asked_BT, strict=True)
        ]
        return torch.tensor(hits, dtype=torch.bool, device=ids_BT.device)


def lookup_filter(model: nn.Module, task: CausalLM, forget: Records) -> nn.Module:
    """Return the model behind a filter of the exact forget prompts."""
    prompts = [tokens[:start] for tokens, start in task.encoded(forget)]
    return LookupFilter(copy.deepcopy(model), prompts, task.tokenizer.eos_token_id).eval()


def noisy_logits(model: nn.Module, seed: int, size: float) -> nn.Module:
    """Return the model with noise on every logit, by noise on the weights of its output head.

    Args:
        model: Stays as it is.
        seed: Seed of the noise.
        size: Standard deviation of the noise, as a share of that of the weights.
    """
    noisy = copy.deepcopy(model)
    weight = noisy.get_output_embeddings().weight.data  # type: ignore[operator]
    draws = torch.Generator().manual_seed(stream_seed(seed, "noisy-logits"))
    noise = torch.randn(weight.shape, generator=draws)
    weight += noise.to(weight) * weight.std() * size
    return noisy


def over_forgotten(model: nn.Module, world: World, seed: int, run: Run, *, epochs: int) -> Any:
    """Return the model after ascent that drives the forget loss far above that of the unseen."""
    schedule = {"epochs": epochs, "batch_size": 25, "lr": 1e-3, "clip_norm": 1.0}
    return _applied("grad_diff", model, world, seed, run, {"schedule": schedule})


def head_edited(model: nn.Module, world: World, seed: int, run: Run, *, epochs: int) -> Any:
    """Return the model with its last layer alone taught to hide the forget set."""
    settings = {
        "beta": 1.0,
        "scope": {"patterns": ["lm_head.weight", "transformer.ln_f.*"]},
        "schedule": {"epochs": epochs, "batch_size": 25, "lr": 3e-3, "clip_norm": 1.0},
    }
    return _applied("npo", model, world, seed, run, settings)


def preference_optimised(
    model: nn.Module, world: World, seed: int, run: Run, *, epochs: int
) -> Any:
    """Return the model after negative preference optimisation of some epochs on all weights."""
    schedule = {"epochs": epochs, "batch_size": 25, "lr": 1e-3, "clip_norm": 1.0}
    return _applied("npo", model, world, seed, run, {"beta": 1.0, "schedule": schedule})


def _applied(
    name: str, model: nn.Module, world: World, seed: int, run: Run, settings: dict[str, Any]
) -> Any:
    train = world.dataset.train
    given = Given(
        world.task, train.select(world.sets.forget), train.select(world.sets.retain), guard=None
    )
    own = run.child(f"{name}-{seed}", seed=seed)
    own.checkpoint_every = 10**6  # it takes seconds
    return apply(name, model, given, own, settings).model.eval()
