"""Sources of data: registered functions from settings and a seed to a ``Dataset``."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from expunge.core.config import parse
from expunge.core.errors import ConfigError
from expunge.core.registry import Registry
from expunge.data.corruption import Corruption, corrupt
from expunge.data.dataset import Dataset

Make = Callable[[Any, int], Dataset]
F = TypeVar("F", bound=Make)


@dataclasses.dataclass(frozen=True)
class SourceInfo:
    """A registered source of data.

    Attributes:
        name: Registered name.
        title: One line for listings.
        kind: Name of the task that reads its records; ``"any"`` when a setting decides.
        config: Class of its settings.
        fn: Makes the data set from settings and seed.
    """

    name: str
    title: str
    kind: str
    config: type[Any]
    fn: Make


sources: Registry[SourceInfo] = Registry("sources", "expunge.data.sources")


def source(name: str, *, title: str, kind: str) -> Callable[[F], F]:
    """Register a function ``fn(config: <settings class>, seed: int) -> Dataset`` under a name."""

    def file(fn: F) -> F:
        config = typing.get_type_hints(fn)["config"]
        sources.register(name)(SourceInfo(name, title, kind, config, fn))
        return fn

    return file


def load_source(name: str, settings: Mapping[str, Any], seed: int) -> Dataset:
    """Make the data set of a registered source.

    Args:
        name: Registered name.
        settings: Its settings as plain data. Beside them, ``corrupt`` holds the settings of a
            manipulation of the training records; see ``expunge.data.corruption``.
        seed: Decides splits, generated records, and which records are manipulated.

    Raises:
        ConfigError: There is no such source, or a setting is wrong.
        DataError: The data cannot be used.
    """
    info = sources.get(name)
    own = {key: value for key, value in settings.items() if key != "corrupt"}
    dataset = info.fn(parse(info.config, own, f"data.{name}"), seed)
    corruption = settings.get("corrupt")
    if corruption is None:
        return dataset
    if not isinstance(corruption, Mapping):
        raise ConfigError(
            f"data.{name}.corrupt = {corruption!r}; write `corrupt: {{kind: ..., count: ...}}`"
        )
    return corrupt(dataset, parse(Corruption, corruption, f"data.{name}.corrupt"), seed)
