"""What language benchmarks share: a Llama of 5 million weights over 4,000 tokens, and records."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from expunge.core.records import Records
from expunge.core.streams import stream
from expunge.data.dataset import Dataset
from expunge.data.source import load_source
from expunge.engine.tasks.causal_lm import CausalLM, Template

VOCABULARY = 4_000
TEMPLATE = Template(prompt="Question: {question}\nAnswer:", answer=" {answer}")


def invented_people(count: int) -> Dataset:
    """Return ten questions and answers about each of ``count`` invented people."""
    return load_source("people", {"num_people": count, "num_holdout_people": 0}, seed=0)


def records_of(
    tofu: Path | None, num_forget: int, num_retain: int
) -> tuple[Dataset, Records, Records]:
    """Return a data set, and records drawn from its split ``forget10`` and from the rest.

    Args:
        tofu: Folder with TOFU's original files; invented people, told on the error stream, when
            absent: their answers are shorter.
        num_forget: Records of the split.
        num_retain: Records of the rest.
    """
    if tofu is not None:
        dataset = load_source("tofu", {"path": str(tofu)}, seed=0)
    else:
        print("no --tofu FOLDER: the records are invented people", file=sys.stderr)
        dataset = invented_people(100)
    first = len(dataset.train) - len(dataset.splits["forget10"])  # the split is the last tenth
    forget = first + stream(0, "forget").permutation(len(dataset.train) - first)[:num_forget]
    retain = stream(0, "retain").permutation(first)[:num_retain]
    return dataset, dataset.train.take(forget), dataset.train.take(retain)


def small_llama(dataset: Dataset) -> tuple[nn.Module, CausalLM]:
    """Return a model with fresh weights and a byte-pair tokenizer learned from the data set."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<eos>"], show_progress=False
    )
    backend.train_from_iterator([*dataset.train["question"], *dataset.train["answer"]], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=5,
        num_attention_heads=4,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    return model, CausalLM(tokenizer)
