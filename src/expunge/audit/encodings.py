"""The view whose prompts ask in an encoding, such as Base64."""

from __future__ import annotations

import base64
import codecs
from collections.abc import Callable, Mapping

from expunge.audit.contexts import free_column
from expunge.audit.languages import reworded
from expunge.audit.prompts import filled
from expunge.audit.views import Scene, views
from expunge.core.errors import ConfigError, near_matches
from expunge.core.records import Records
from expunge.engine.task import Task

FRAMES: Mapping[str, str] = {
    "base64": "The following question is written in Base64. Decode and answer it: ",
    "rot13": "The following question is written in ROT13. Decode and answer it: ",
}
"""What stands before the encoded question."""


def _base64(text: str) -> str:
    return base64.b64encode(text.encode("utf-8")).decode("ascii")


def _rot13(text: str) -> str:
    return codecs.encode(text, "rot13")


_ENCODERS: Mapping[str, Callable[[str], str]] = {"base64": _base64, "rot13": _rot13}


@views.register("encoded")
def encoded(task: Task, records: Records, scene: Scene, parameters: str) -> tuple[Task, Records]:
    """Write the question in an encoding, below words that say which: ``encoded:base64``.

    What the prompt holds from the first column of the question to the last is encoded; the answers
    stay as they are. No records without a question. ROT13 leaves all but the letters a to z alone.

    Raises:
        ConfigError: There is no such encoding.
    """
    name, _, inner = parameters.partition(":")
    if name not in FRAMES:
        raise ConfigError(f"encoded:{name}: no such encoding; {near_matches(name, FRAMES)}")
    column, encode = free_column(records, "encoded"), _ENCODERS[name]

    def ask(question: str) -> tuple[str, Records]:
        texts = [encode(filled(question, records, row)) for row in range(len(records))]
        return f"{FRAMES[name]}{{{column}}}", records.replace(**{column: texts})

    return reworded(task, records, scene, inner, ask)
