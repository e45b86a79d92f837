"""Neutral answers: what a model may be taught to say in place of a forgotten answer."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, Literal

from expunge.core.config import config
from expunge.core.errors import ConfigError, StorageError
from expunge.core.streams import stream
from expunge.data.probes import read_resource

NUM_TEMPLATES = 200


@config
class Neutral:
    """Which answers take the place of forgotten ones."""

    style: Literal["usual", "templates"] = "usual"
    """``usual``: what the task has: refusals for a language model, random other labels for a
    classifier. ``templates``: innocuous sentences put together from a seeded grammar."""
    file: str | None = None
    """A text file of your own with one answer a line, in place of both."""


def neutral_answers(settings: Neutral, seed: int) -> tuple[str, ...]:
    """Return the answers to draw from; empty means those that the task has.

    Args:
        settings: Which ones.
        seed: Decides the generated sentences.

    Raises:
        StorageError: The file cannot be read.
        ConfigError: It holds no answer.
    """
    if settings.file is not None:
        return _lines(Path(settings.file))
    return template_answers(seed) if settings.style == "templates" else ()


def template_answers(seed: int, count: int = NUM_TEMPLATES) -> tuple[str, ...]:
    """Return distinct innocuous sentences that say nothing about anybody.

    Args:
        seed: Decides which ones and their order.
        count: How many.

    Raises:
        ConfigError: The grammar yields fewer.
    """
    grammar: Any = read_resource("templates.json")
    every = [
        pattern.format(*words)
        for pattern in grammar["patterns"]
        for words in itertools.product(*(grammar["words"][s] for s in grammar["slots"][pattern]))
    ]
    if count > len(every):
        raise ConfigError(f"{count} template answers were asked for; the grammar has {len(every)}")
    order = stream(seed, "template-answers").permutation(len(every))[:count]
    return tuple(every[i] for i in order)


def _lines(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"cannot read the neutral answers {path}: {error}") from error
    lines = tuple(line.strip() for line in text.split("\n") if line.strip())
    if not lines:
        raise ConfigError(f"the file of neutral answers {path} is empty; write one answer a line")
    return lines
