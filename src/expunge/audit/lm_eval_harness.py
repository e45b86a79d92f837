"""How a model enters lm-evaluation-harness, and how nothing around it changes meanwhile."""

from __future__ import annotations

import copy
import importlib
import io
import os
import random
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from expunge.core.errors import ConfigError
from expunge.engine.device import forked_random
from expunge.engine.modes import evaluating

_SWITCHES = (
    ("huggingface_hub.constants", "HF_HUB_OFFLINE"),
    ("datasets.config", "HF_HUB_OFFLINE"),
    ("evaluate.config", "HF_EVALUATE_OFFLINE"),
)
_VARIABLES = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_EVALUATE_OFFLINE": "1",
    "DISABLE_MULTIPROC": "1",  # bootstraps in this process, none forked beside torch's threads
}


def module(name: str) -> Any:
    """Import a module that the extra brings."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"tasks of lm-evaluation-harness need {error.name}, which is not installed; install "
            "with: pip install 'expunge[lm-eval]'"
        ) from error


def adapt(model: Any, tokenizer: Any, batch_size: int) -> Any:
    """Return a model as the harness takes it; one that reads the prompt is told what it is."""
    harness = module("lm_eval.models.huggingface").HFLM(
        pretrained=model,
        tokenizer=copy.deepcopy(tokenizer),  # it is given a padding token
        backend="causal",
        batch_size=batch_size,
    )
    if getattr(model, "reads_prompt", False):
        score = harness._loglikelihood_tokens
        harness._loglikelihood_tokens = partial(_score_each, score, model, harness.max_length)
    return harness


def _score_each(
    score: Any, model: Any, length: int, requests: Iterable[Any], **options: Any
) -> list[Any]:
    """Score one request at a time and tell the model which of its tokens were asked."""
    answers: list[Any] = []
    for request in requests:
        _, context, continuation = request
        # The harness keeps the last tokens, and feeds all of them but the last one.
        cut = max(len(context) + len(continuation) - 1 - length, 0)
        asked = torch.ones(1, max(len(context) - cut, 0), dtype=torch.bool, device=model.device)
        tell = partial(_with_prompt, asked)
        hook = model.register_forward_pre_hook(tell, with_kwargs=True)
        try:
            answers += score([request], **options)
        finally:
            hook.remove()
    return answers


def _with_prompt(
    asked: torch.Tensor, _: nn.Module, args: Any, options: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    return args, {**options, "prompt_mask": asked}


@contextmanager
def silent() -> Iterator[None]:
    """Keep the harness from printing and drawing; errors are raised."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


@contextmanager
def offline() -> Iterator[None]:
    """Keep the libraries that fetch data off the network; they read their switch when imported."""
    with ExitStack() as stack:
        for name, switch in _SWITCHES:
            found = module(name)
            stack.callback(setattr, found, switch, getattr(found, switch))
            setattr(found, switch, True)
        for name, value in _VARIABLES.items():
            stack.callback(_set_variable, name, os.environ.get(name))
            os.environ[name] = value
        yield


def _set_variable(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


@contextmanager
def seeded(seed: int, device: str) -> Iterator[None]:
    """Seed the global random states that tasks draw from, and restore them."""
    own, arrays = random.getstate(), np.random.get_state()
    with forked_random(device):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(own)
            np.random.set_state(arrays)


@contextmanager
def as_it_is(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode and keep its weights as they are: the harness would tie them."""
    with evaluating(model):
        vars(model)["tie_weights"] = lambda *_, **__: None
        try:
            yield
        finally:
            del vars(model)["tie_weights"]
