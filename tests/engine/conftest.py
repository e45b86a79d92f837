"""A byte-level tokenizer and tiny language models that need no download."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from expunge.core.records import Records


def byte_tokenizer(**special):
    """Return a tokenizer with one token per byte and the given special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


@pytest.fixture(scope="session")
def tokenizer():
    """A tokenizer without a pad token, as many language models have it."""
    return byte_tokenizer(eos_token="<eos>")


def tiny_model(family, vocabulary):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if family == "llama":
            model = LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=vocabulary,
                    hidden_size=16,
                    intermediate_size=32,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    initializer_range=0.3,
                )
            )
        else:
            model = GPT2LMHeadModel(
                GPT2Config(
                    vocab_size=vocabulary,
                    n_positions=128,
                    n_embd=16,
                    n_layer=2,
                    n_head=2,
                    initializer_range=0.3,
                    bos_token_id=None,
                    eos_token_id=None,
                )
            )
    return model.double().eval()


@pytest.fixture(scope="session", params=["llama", "gpt2"])
def model(request, tokenizer):
    """A tiny model in double precision: rotary with a free head, or learned with a tied one."""
    return tiny_model(request.param, len(tokenizer))


@pytest.fixture
def records():
    """Questions and answers of different lengths."""
    return Records(
        tuple("abcd"),
        {
            "question": ["Who?", "Where do they live now?", "Why", "A longer question, is it not?"],
            "answer": ["Ada", "In a small house", "x", "Yes, é"],
        },
    )
