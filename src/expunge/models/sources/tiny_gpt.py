"""GPT of about 0.1 million weights that reads characters: language modelling in seconds."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from expunge.core.config import config
from expunge.core.errors import ConfigError
from expunge.core.records import Records
from expunge.data.dataset import Dataset
from expunge.engine.tasks.causal_lm import Template
from expunge.models.language import causal_lm_task
from expunge.models.source import Loaded, fresh_weights, model_source

_UNKNOWN, _SEPARATOR, _END = "<unk>", "<sep>", "<eos>"
_TEXTS = ("question", "answer", "text")


@config
class TinyGptConfig:
    """Settings of the tiny GPT."""

    width: Annotated[int, Field(ge=1)] = 64
    """Size of the hidden state."""
    layers: Annotated[int, Field(ge=1)] = 2
    """Number of blocks."""
    heads: Annotated[int, Field(ge=1)] = 4
    """Attention heads of each block; must divide the width."""
    context: Annotated[int, Field(ge=2)] = 64
    """Longest record in characters, end included."""


@model_source("tiny_gpt", title="GPT-2 of 0.1 M weights over characters", kinds={"causal_lm"})
def tiny_gpt(config: TinyGptConfig, dataset: Dataset, seed: int) -> Loaded:
    """Return a GPT-2 with fresh weights over the characters of the data set.

    The vocabulary is the data set's ``alphabet`` and ``special_tokens``, where its facts name
    them, else the characters of its training texts.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    if config.width % config.heads:
        raise ConfigError(
            f"model.tiny_gpt: heads = {config.heads} does not divide width = {config.width}"
        )
    tokenizer = _tokenizer(dataset, config.context)
    architecture = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=config.context,
        n_embd=config.width,
        n_layer=config.layers,
        n_head=config.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with fresh_weights(seed):
        model = GPT2LMHeadModel(architecture)
    plain = "text" in dataset.train and "question" not in dataset.train
    template = Template(
        prompt="" if plain else "{question}" + _SEPARATOR,
        answer="{text}" if plain else "{answer}",
        max_length=config.context,
    )
    return Loaded(model, causal_lm_task(model, tokenizer, dataset, template), tokenizer)


def _tokenizer(dataset: Dataset, context: int) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(dataset.facts.get("alphabet") or _characters(dataset.train))
    special = [_UNKNOWN, _SEPARATOR, _END, *dataset.facts.get("special_tokens", [])]
    vocabulary = {token: number for number, token in enumerate([*special, *alphabet])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=_UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=_UNKNOWN,
        sep_token=_SEPARATOR,
        eos_token=_END,
        additional_special_tokens=special[3:],
        clean_up_tokenization_spaces=False,
        model_max_length=context,
    )


def _characters(train: Records) -> set[str]:
    columns = [train[name] for name in _TEXTS if name in train]
    return {character for column in columns for text in column for character in text}
