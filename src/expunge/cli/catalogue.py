"""``expunge methods``, ``audits``, ``tasks``, …: what is registered, and what its settings mean."""

from __future__ import annotations

import dataclasses
import inspect
import json
from typing import Annotated, Any

import typer

_WHERE = {
    "methods": ("expunge.forget.method", "methods"),
    "audits": ("expunge.audit.audit", "audits"),
    "tasks": ("expunge.engine.task", "tasks"),
    "sources": ("expunge.data.source", "sources"),
    "models": ("expunge.models.source", "model_sources"),
}
_TOLD = ("kinds", "kind", "guarantee", "evidence", "maturity", "version", "source")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def catalogue(what: str) -> typer.Typer:
    """Return the command that lists a registry and shows one of its entries.

    Args:
        what: Name of the registry.
    """
    app = typer.Typer(help=f"List the {what}, or show one.", invoke_without_command=True)

    @app.callback()
    def listed(context: typer.Context, as_json: Json = False) -> None:
        if context.invoked_subcommand is not None:
            return
        entries = [_entry(part) for part in _registry(what)]
        if as_json:
            typer.echo(json.dumps(entries, indent=2))
            return
        width = max((len(entry["name"]) for entry in entries), default=0)
        for entry in entries:
            typer.echo(f"{entry['name']:<{width}}  {entry['title']}")

    @app.command()
    def show(
        name: Annotated[str, typer.Argument(help="Registered name.")], as_json: Json = False
    ) -> None:
        """Show one entry with its settings."""
        entry = _entry(_registry(what).get(name), whole=True)
        if as_json:
            typer.echo(json.dumps(entry, indent=2))
            return
        typer.echo(f"{entry['name']}: {entry['doc'] or entry['title']}\n")
        for key in _TOLD:
            if key in entry:
                typer.echo(f"{key}: {entry[key]}")
        for setting in entry["settings"]:
            typer.echo(
                f"\n  {setting['name']} ({setting['kind']}, default {setting['default']})"
                f"\n      {setting['text']}"
            )

    return app


def _registry(what: str) -> Any:
    import importlib

    module, name = _WHERE[what]
    return getattr(importlib.import_module(module), name)


def _entry(part: Any, *, whole: bool = False) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": part.name, "title": part.title}
    for key in _TOLD:
        value = getattr(part, key, None)
        if value is not None:
            entry[key] = sorted(value) if isinstance(value, frozenset | set) else value
    if whole:
        from expunge.core.config import fields

        function = getattr(part, "function", None) or getattr(part, "fn", None)
        function = function or getattr(part, "make", None)
        entry["doc"] = inspect.getdoc(function) or ""
        config = getattr(part, "config", None)
        entry["settings"] = [dataclasses.asdict(f) for f in fields(config)] if config else []
    return entry
