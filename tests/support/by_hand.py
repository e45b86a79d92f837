"""Likelihoods of one prompt and answer at a time, without tasks, batches, views or caches."""

import torch


def probability(world, model, prompt, answer):
    """The geometric mean of the probabilities of the answer's tokens and the end of text."""
    logprobs, places, said = _read(world, model, prompt, answer)
    return float(logprobs[places, said].mean().exp())


def right(world, model, prompt, answer):
    """Whether every token of the answer, end of text included, is the first choice."""
    logprobs, places, said = _read(world, model, prompt, answer)
    return logprobs[places].argmax(-1).tolist() == said


@torch.no_grad()
def _read(world, model, prompt, answer):
    """Log-probabilities after every token, the places that predict the answer, and the answer."""
    tokenizer = world.task.tokenizer
    asked, said = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer)
    )
    said = [*said, tokenizer.eos_token_id]
    model.eval()
    logprobs = model(torch.tensor([asked + said])).logits[0].log_softmax(-1)
    return logprobs, list(range(len(asked) - 1, len(asked) + len(said) - 1)), said
