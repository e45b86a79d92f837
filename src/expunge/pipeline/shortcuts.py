"""Recipes for the commands that need no recipe file: ``expunge forget`` and ``expunge audit``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from expunge.core.config import override
from expunge.pipeline.recipe import Recipe, make_recipe


def forget_recipe(
    *,
    model: str,
    forget: Path,
    retain: Path | None,
    method: str,
    seed: int,
    changes: Iterable[str] = (),
) -> Recipe:
    """Return the recipe that removes records from a language model, without audits.

    Args:
        model: Folder or hub name of a transformers model.
        forget: File of records to forget.
        retain: File of records that must stay.
        method: Registered name.
        seed: Root of every random stream.
        changes: ``--set`` assignments.

    Raises:
        ConfigError: A setting is unknown or wrong.
    """
    value: dict[str, Any] = {
        "name": "forget",
        "seed": seed,
        "data": _files(forget=forget, retain=retain),
        "model": _model(model),
        "forget": {"name": method},
        "references": 0,
    }
    return make_recipe(override(value, changes))


def audit_recipe(
    *,
    before: str,
    after: str,
    references: Sequence[str],
    forget: Path,
    retain: Path | None,
    holdout: Path | None,
    audits: Sequence[str],
    seed: int,
    changes: Iterable[str] = (),
) -> Recipe:
    """Return the recipe that audits a language model which somebody changed.

    Args:
        before: Model before forgetting: folder or hub name.
        after: Model after forgetting.
        references: Models retrained without the records.
        forget: File of records that were forgotten.
        retain: File of records that must stay.
        holdout: File of records that were never trained on.
        audits: Registered names.
        seed: Root of every random stream.
        changes: ``--set`` assignments.

    Raises:
        ConfigError: A setting is unknown or wrong.
    """
    value: dict[str, Any] = {
        "name": "audit",
        "seed": seed,
        "data": _files(forget=forget, retain=retain, holdout=holdout),
        "model": _model(before),
        "after": _model(after),
        "given_references": [_model(reference) for reference in references],
        "references": 0,
        "audits": list(audits),
    }
    return make_recipe(override(value, changes))


def _files(**paths: Path | None) -> dict[str, Any]:
    given = {role: str(path) for role, path in paths.items() if path is not None}
    return {"name": "files", "kind": "causal_lm", **given}


def _model(path: str) -> dict[str, Any]:
    return {"name": "transformers", "path": path}
