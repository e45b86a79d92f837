"""Settings: frozen, strict, described once.

``@config`` makes a class a frozen keyword-only dataclass that pydantic validates on construction.
The string under a field is its description; command-line help, JSON schema and docs come from it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, cast, dataclass_transform

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
    make = pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=_STRICT)
    return cast(type[C], make(cls))


def parse(cls: type[C], value: Mapping[str, Any], where: str) -> C:
    """Build settings from plain data, as read from YAML or JSON.

    Types are strict: ``true`` is not 1 and ``"0.5"`` is not 0.5 (an int where a float is due is
    taken). Nested settings that are given in part keep the class's defaults for the rest.

    Args:
        cls: A class made by ``config``.
        value: The data.
        where: The place in the user's input, such as ``"recipe.forget"``; starts every message.

    Raises:
        ConfigError: Lists every unknown key with near matches, every wrong type, every value out
            of range.
    """
    try:
        whole = _over_defaults(_defaults(cls), value)
        return TypeAdapter(cls).validate_json(_as_json(whole, where), strict=True)
    except pydantic.ValidationError as error:
        raise _explain(error, cls, where) from None


def _defaults(cls: type[Any]) -> dict[str, Any]:
    """Return the default of every field of a settings class that has one."""
    return {
        field.name: field.default
        for field in dataclasses.fields(cls)
        if field.default is not dataclasses.MISSING
    }


def _over_defaults(defaults: Mapping[str, Any], value: Mapping[str, Any]) -> dict[str, Any]:
    """Lay given settings over nested default settings; everything else is taken as given."""
    whole = dict(value)
    for name, given in value.items():
        default = defaults.get(name)
        if isinstance(given, Mapping) and dataclasses.is_dataclass(default):
            nested = {f.name: getattr(default, f.name) for f in dataclasses.fields(default)}
            plain = to_json(default)
            whole[name] = {**plain, **_over_defaults(nested, given)}
    return whole


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
    """One setting as help and docs show it.

    Attributes:
        name: The setting.
        kind: What it takes, in words, such as ``"number > 0"`` or ``"one of a, b"``.
        default: Its default, or ``"required"``.
        text: Its description.
    """

    name: str
    kind: str
    default: str
    text: str


def fields(cls: type[Any]) -> list[Field]:
    """Return name, kind, default and description of every setting of a class."""
    whole = schema(cls)
    rows = []
    for item in dataclasses.fields(cls):
        entry = whole["properties"][item.name]
        required = item.name in whole.get("required", [])
        default = "required" if required else str(entry.get("default", ""))
        rows.append(Field(item.name, _kind(entry), default, _description(cls, item.name)))
    return rows


def _description(cls: type[Any], name: str) -> str:
    """Return a setting's description, from the class that last described it."""
    known = [vars(base).get("__pydantic_fields__", {}) for base in cls.__mro__]
    texts = [own[name].description for own in known if name in own]
    return " ".join(next((text for text in texts if text), "").split())


class _Yaml(yaml.SafeLoader):
    """The safe loader, which also reads ``1e-5`` as a number, as YAML 1.2 and people do."""


_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_yaml(text: str, where: str) -> dict[str, Any]:
    """Read a YAML mapping with the safe loader.

    Raises:
        ConfigError: The text is not YAML, or not a mapping.
    """
    try:
        value = yaml.load(text, _Yaml)
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
            here[last] = yaml.load(text, _Yaml)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {assignment!r}: the value is not valid YAML") from error
    return result


def _as_json(value: Mapping[str, Any], where: str) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{where}: every value must be a finite number, text, true/false, list or mapping "
            f"({error})"
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
        if isinstance(name, int):
            here = here.get("items", here)
        else:
            here = here.get("properties", {}).get(name, here)
        for option in [here, *here.get("anyOf", [])]:
            if "$ref" in option:
                here = whole["$defs"][option["$ref"].rsplit("/", 1)[1]]
    return list(here.get("properties", {}))


_WORDS = {"string": "text", "boolean": "true or false", "null": "none"}
_BOUNDS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}


def _kind(entry: Mapping[str, Any]) -> str:
    """Put the JSON schema of one value into words."""
    if "anyOf" in entry:
        return " or ".join(_kind(option) for option in entry["anyOf"])
    if "enum" in entry:
        return "one of " + ", ".join(map(str, entry["enum"]))
    if "const" in entry:
        return f"always {entry['const']}"
    if "$ref" in entry:
        return "settings"
    sort = entry.get("type", "any value")
    if sort == "array":
        return "list of " + _kind(entry.get("items", {}))
    if sort == "object":
        values = entry.get("additionalProperties")
        return "mapping to " + _kind(values if isinstance(values, dict) else {})
    bounds = [f"{sign} {entry[key]}" for key, sign in _BOUNDS.items() if key in entry]
    return " ".join([_WORDS.get(sort, sort), " and ".join(bounds)]).strip()


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
