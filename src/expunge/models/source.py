"""Sources of models: registered functions from settings, a data set and a seed to a model."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from expunge.core.config import parse
from expunge.core.errors import ConfigError
from expunge.core.registry import Registry
from expunge.core.streams import stream_seed
from expunge.data.dataset import Dataset
from expunge.engine.task import Task


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model with everything that is needed to run, save and rebuild it.

    Attributes:
        model: The model, in evaluation mode.
        task: How to run it.
        tokenizer: The tokenizer of a language model; ``None`` for other models.
        pretrained: Whether the weights come from training (else from the seed alone).
        source: Registered name of the source; ``None`` for a module built in Python.
        settings: Settings of the source; JSON values only.
        facts: What the model was built for; see ``Dataset.facts``.
    """

    model: nn.Module
    task: Task
    tokenizer: Any = None
    pretrained: bool = False
    source: str | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


Make = Callable[[Any, Dataset, int], Loaded]
F = TypeVar("F", bound=Make)


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """A registered source of models.

    Attributes:
        name: Registered name.
        title: One line for listings.
        kinds: Names of the tasks that run its models.
        config: Class of its settings.
        fn: Makes the model from settings, data set and seed.
    """

    name: str
    title: str
    kinds: frozenset[str]
    config: type[Any]
    fn: Make


model_sources: Registry[ModelInfo] = Registry("models", "expunge.models.sources")


def model_source(name: str, *, title: str, kinds: set[str]) -> Callable[[F], F]:
    """Register ``fn(config: <settings class>, dataset: Dataset, seed: int) -> Loaded``."""

    def file(fn: F) -> F:
        config = typing.get_type_hints(fn)["config"]
        model_sources.register(name)(ModelInfo(name, title, frozenset(kinds), config, fn))
        return fn

    return file


def load_model_source(
    name: str, settings: Mapping[str, Any], dataset: Dataset, seed: int
) -> Loaded:
    """Make the model of a registered source.

    Args:
        name: Registered name.
        settings: Its settings as plain data.
        dataset: What the model is for; its facts decide sizes and vocabulary.
        seed: Decides fresh weights.

    Raises:
        ConfigError: There is no such source, a setting is wrong, or the data are of another kind.
        DataError: The model's files cannot be used.
    """
    info = model_sources.get(name)
    if dataset.kind not in info.kinds:
        raise ConfigError(
            f"model.name = {name!r} is a {' or '.join(sorted(info.kinds))}, but the data are for a "
            f"{dataset.kind}; choose a model of that kind: "
            + ", ".join(other.name for other in model_sources if dataset.kind in other.kinds)
        )
    made = info.fn(parse(info.config, settings, f"model.{name}"), dataset, seed)
    made.model.eval()
    return dataclasses.replace(
        made, source=name, settings=dict(settings), facts=dict(dataset.facts)
    )


@contextmanager
def fresh_weights(seed: int) -> Iterator[None]:
    """Make weights drawn in the block a function of the seed; other random state is untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "weights"))
        yield
