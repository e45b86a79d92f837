"""A tiny random Llama with a word-level tokenizer, and people to ask it about."""

import pytest

WORDS = ("who", "wrote", "the", "red", "book", "blue", "tree", "sea", "was", "is", "it", "by")
NAMES = ("anna", "bo", "carl", "a", "in")


@pytest.fixture(scope="session")
def language_model():
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from expunge.engine.tasks.causal_lm import CausalLM, Template

    vocabulary = {word: place for place, word in enumerate(["<unk>", "<eos>", *WORDS, *NAMES])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="<eos>"
    )
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    return model, CausalLM(tokenizer, Template(prompt="{question}", answer=" {answer}"))


@pytest.fixture(scope="session")
def people():
    from expunge.core.records import Records

    questions = [
        "who wrote the red book",
        "who wrote it",
        "was it the blue tree",
        "is it in the sea",
    ]
    answers = ["anna wrote the red book", "bo", "it was the red tree by the sea", "it is"]
    return Records(
        ids=("train-0", "train-1", "train-2", "train-3"),
        columns={
            "question": questions,
            "answer": answers,
            "paraphrased_answer": ["the red book is by anna", None, "the red tree", "in it"],
            "perturbed_answer": [["bo wrote it", "carl"], None, ["the blue tree", "a sea"], ["a"]],
        },
    )


@pytest.fixture(scope="session")
def make_scores():
    """Scores of one target per record from plain log-probabilities, loss = -logprob."""
    import numpy as np

    from expunge.audit.scores import Scores

    def make(logprobs, *, prefix="r", wrong=(), rouge=None):
        logprob_N = np.asarray(logprobs, dtype=np.float32)
        rank_N = np.isin(np.arange(len(logprob_N)), wrong).astype(np.int32)
        zero_N = np.zeros_like(logprob_N)
        return Scores(
            ids=tuple(f"{prefix}-{row}" for row in range(len(logprob_N))),
            offsets=np.arange(len(logprob_N) + 1),
            logprob_N=logprob_N,
            rank_N=rank_N,
            mean_N=zero_N,
            variance_N=zero_N,
            rouge_R=None if rouge is None else np.asarray(rouge, dtype=np.float64),
        )

    return make
