"""One registry for methods, audits, tasks, data sources and model sources.

A part registers itself with a decorator when its module is imported. The registry finds modules in
two places: every public module of its own folder, and the entry points of installed packages
(group ``expunge.<what>``). Nothing else has to be edited to add a part.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from expunge.core.errors import ConfigError, near_matches

T = TypeVar("T")


class Registry(Generic[T]):
    """Named parts of one sort, discovered on first use.

    Args:
        what: The sort in the plural, such as ``"methods"``; names the entry-point group.
        package: The folder to search, such as ``"expunge.forget"``.
    """

    def __init__(self, what: str, package: str) -> None:
        self.what = what
        self.package = package
        self._parts: dict[str, T] = {}
        self._discovered = False

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files a part under ``name``.

        Raises:
            ConfigError: The name is taken, or not lower case with underscores.
        """
        if not name.isidentifier() or name != name.lower():
            raise ConfigError(f"{self.what} name {name!r} must be lower case with underscores")

        def file(part: T) -> T:
            if name in self._parts:
                raise ConfigError(f"{self.what} name {name!r} is registered twice")
            self._parts[name] = part
            return part

        return file

    def discover(self) -> None:
        """Import every module that may register a part; safe to call again."""
        if self._discovered:
            return
        self._discovered = True
        folder = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(folder.__path__):
            if not module.name.startswith("_"):
                importlib.import_module(f"{self.package}.{module.name}")
        for point in importlib.metadata.entry_points(group=f"expunge.{self.what}"):
            point.load()

    def get(self, name: str) -> T:
        """Return the part called ``name``.

        Raises:
            ConfigError: There is none; the message offers near matches.
        """
        self.discover()
        if name not in self._parts:
            raise ConfigError(f"no {self.what} entry {name!r}; {near_matches(name, self._parts)}")
        return self._parts[name]

    def names(self) -> list[str]:
        """Return every registered name, sorted."""
        self.discover()
        return sorted(self._parts)

    def __iter__(self) -> Iterator[T]:
        return (self._parts[name] for name in self.names())

    def __contains__(self, name: object) -> bool:
        self.discover()
        return name in self._parts
