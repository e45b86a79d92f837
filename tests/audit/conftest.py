"""A tiny random Llama with a word-level tokenizer, and people to ask it about."""

import pytest

WORDS = ("who", "wrote", "the", "red", "book", "blue", "tree", "sea", "was", "is", "it", "by")
NAMES = ("anna", "bo", "carl", "a", "in")


@pytest.fixture(scope="session")
def language_model():
    import torch
    from tiny_llama import llama_config, word_tokenizer
    from transformers import LlamaForCausalLM

    from expunge.engine.tasks.causal_lm import CausalLM, Template

    tokenizer = word_tokenizer([*WORDS, *NAMES])
    config = llama_config(tokenizer)
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
            measured={} if rouge is None else {"rouge_l": np.asarray(rouge, dtype=np.float64)},
        )

    return make
