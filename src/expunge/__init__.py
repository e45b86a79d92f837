"""Expunge: forget anything from any model, and prove it.

``import expunge`` is cheap; torch is imported when a verb or a name below is first used. The verbs
``expunge.forget(...)`` and ``expunge.audit(...)`` share their names with the packages of methods
and audits: those packages can be called.
"""

from __future__ import annotations

import importlib
import types
from typing import Any

from expunge import audit as audit
from expunge import forget as forget

_HOMES = {
    "Outcome": "expunge.api",
    "Request": "expunge.pipeline.request",
    "execute": "expunge.pipeline.execute",
    "from_arrays": "expunge.data.arrays",
    "read_recipe": "expunge.pipeline.recipe",
}
__all__ = ["audit", "forget", *_HOMES]


class _Verb(types.ModuleType):
    """A package that can be called like the function of its name in ``expunge.api``."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the verb; see ``expunge.api``."""
        verb = getattr(importlib.import_module("expunge.api"), self.__name__.rpartition(".")[2])
        return verb(*args, **kwargs)


forget.__class__ = _Verb
audit.__class__ = _Verb


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'expunge' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
