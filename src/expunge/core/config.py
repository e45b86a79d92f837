"""Settings: frozen, strict, described once.

``@config`` makes a class a frozen keyword-only dataclass that pydantic validates on construction.
The string under a field is its description; command-line help, JSON schema and docs come from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, dataclass_transform

import pydantic
import yaml
from pydantic import ConfigDict, TypeAdapter

from expunge.core.errors import ConfigError, Problems, near_matches

C = TypeVar("C")

_STRICT = ConfigDict(
    extra="forbid",
    allow_inf_nan=False,
    use_attribute_docstrings=True,
    arbitrary_types_allowed=False,
)


@dataclass_transform(frozen_default=True, kw_only_default=True)
def config(cls: type[C]) -> type[C]:
    """Turn a class of annotated fields into a frozen, keyword-only, validated settings class."""
    made: type[C] = pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=_STRICT)(cls)
    return made


def parse(cls: type[C], value: Mapping[str, Any], where: str) -> C:
    """Build settings from plain data, as read from YAML or JSON.

    Types are strict: ``true`` is not 1 and ``"0.5"`` is not 0.5 (an int where a float is due is
    taken).

    Args:
        cls: A class made by ``config``.
        value: The data.
        where: The place in the user's input, such as ``"recipe.forget"``; starts every message.

    Raises:
        ConfigError: Lists every unknown key with near matches, every wrong type, every value out
            of range.
    """
    try:
        return TypeAdapter(cls).validate_json(_as_json(value, where), strict=True)
    except pydantic.ValidationError as error:
        raise _explain(error, cls, where) from None


def build(cls: type[C], where: str, **values: Any) -> C:
    """Build settings from Python values, with the same messages as ``parse``."""
    try:
        return cls(**values)
    except pydantic.ValidationError as error:
        raise _explain(error, cls, where) from None


def to_json(settings: Any) -> dict[str, Any]:
    """Return the plain data of settings; ``parse`` reads it back to an equal object."""
    value: dict[str, Any] = TypeAdapter(type(settings)).dump_python(settings, mode="json")
    return value


def schema(cls: type[Any]) -> dict[str, Any]:
    """Return the JSON schema of a settings class, descriptions included."""
    return TypeAdapter(cls).json_schema()


@dataclasses.dataclass(frozen=True)
class Field:
    """One setting as help and docs show it."""

    name: str
    kind: str
    default: str
    text: str


def fields(cls: type[Any]) -> list[Field]:
    """Return name, type, default and description of every setting of a class."""
    told = schema(cls).get("properties", {})
    rows = []
    for item in dataclasses.fields(cls):
        entry = told.get(item.name, {})
        kind = item.type if isinstance(item.type, str) else getattr(item.type, "__name__", "")
        default = entry.get("default", "required")
        rows.append(Field(item.name, kind, str(default), " ".join(entry.get("description", "").split())))
    return rows


def read_yaml(text: str, where: str) -> dict[str, Any]:
    """Read a YAML mapping with the safe loader.

    Raises:
        ConfigError: The text is not YAML, or not a mapping.
    """
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not valid YAML: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{where} must be a mapping of settings, not {type(value).__name__}")
    return value


def override(value: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Apply ``a.b=c`` assignments to plain data; the right side is read as YAML.

    Raises:
        ConfigError: An assignment has no ``=``, or descends into something that is no mapping.
    """
    result = {**value}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            raise ConfigError(f"--set {assignment!r} must look like forget.beta=0.5")
        *parents, last = path.split(".")
        here = result
        for name in parents:
            below = here.get(name)
            if below is None:
                below = {}
            if isinstance(below, str):  # `forget: npo` is short for `forget: {name: npo}`
                below = {"name": below}
            if not isinstance(below, dict):
                raise ConfigError(f"--set {assignment!r}: {name!r} holds a value, not settings")
            here[name] = {**below}
            here = here[name]
        try:
            here[last] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {assignment!r}: the value is not valid YAML") from error
    return result


def _as_json(value: Mapping[str, Any], where: str) -> str:
    import json

    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{where}: every value must be a finite number, text, true/false, list or mapping ({error})"
        ) from error


def _explain(error: pydantic.ValidationError, cls: type[Any], where: str) -> ConfigError:
    problems = Problems(where)
    for item in error.errors(include_url=False):
        path = ".".join(str(part) for part in item["loc"]) or "value"
        if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            known = _known_fields(cls, item["loc"][:-1])
            problems.add(f"unknown setting {path!r}; {near_matches(str(item['loc'][-1]), known)}")
        elif item["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
            problems.add(f"setting {path!r} is required")
        else:
            problems.add(f"{path} = {_shorten(item['input'])}: {item['msg']}")
    try:
        problems.raise_if_any()
    except ConfigError as explained:
        return explained
    return ConfigError(f"{where}: {error}")


def _known_fields(cls: type[Any], path: tuple[int | str, ...]) -> list[str]:
    """Return the setting names at a place inside nested settings, read from the schema."""
    whole = schema(cls)
    here: dict[str, Any] = whole
    for name in path:
        here = here.get("properties", {}).get(name, here)
        for option in [here, *here.get("anyOf", [])]:
            if "$ref" in option:
                here = whole["$defs"][option["$ref"].rsplit("/", 1)[1]]
    return list(here.get("properties", {}))


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
