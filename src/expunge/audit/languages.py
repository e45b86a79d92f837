"""Views whose prompts ask in another language: a foreign frame, or a translation of the user's."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from expunge.audit.prompts import (
    answer_words,
    continued,
    file_stamp,
    language,
    question_columns,
    rephrasing_of,
    template_of,
)
from expunge.audit.views import Scene, views
from expunge.core.errors import ConfigError, near_matches
from expunge.core.records import Records
from expunge.data.rephrasers.rephraser import Rephrased, Rephrasing, make_rephraser
from expunge.data.rephrasers.translation import translate_items
from expunge.engine.task import Task

FRAMES: Mapping[str, tuple[str, str]] = {
    "french": ("Réponds en anglais à la question suivante : « ", " »"),
    "german": ("Beantworte die folgende Frage auf Englisch: „", "“"),
    "spanish": ("Responde en inglés a la siguiente pregunta: «", "»"),
    "italian": ("Rispondi in inglese alla seguente domanda: «", "»"),
    "portuguese": ("Responda em inglês à seguinte pergunta: “", "”"),
    "dutch": ("Beantwoord de volgende vraag in het Engels: “", "”"),
    "polish": ("Odpowiedz po angielsku na następujące pytanie: „", "”"),
    "russian": ("Ответь по-английски на следующий вопрос: «", "»"),
    "chinese": ("请用英语回答下面的问题：“", "”"),
    "japanese": ("次の質問に英語で答えてください。「", "」"),
}
"""What stands before and after the question: "answer the following question in English"."""


@views.register("language")
def framed(task: Task, records: Records, scene: Scene, parameters: str) -> tuple[Task, Records]:
    """Put the question into an instruction of another language: ``language:french``.

    The question itself stays as it is. The frame goes around what the prompt holds from the first
    column of the question to the last; no records without one.

    Raises:
        ConfigError: There is no frame in that language.
    """
    name, _, inner = parameters.partition(":")
    if name not in FRAMES:
        raise ConfigError(f"language:{name}: no such frame; {near_matches(name, FRAMES)}")
    before, after = FRAMES[name]
    return reworded(
        task, records, scene, inner, lambda question: (f"{before}{question}{after}", records)
    )


def reworded(
    task: Task,
    records: Records,
    scene: Scene,
    inner: str,
    ask: Callable[[str], tuple[str, Records]],
) -> tuple[Task, Records]:
    """Put other words in the place of the question; no records where the prompt holds none.

    Args:
        task: How to run the model.
        records: The records.
        scene: The data.
        inner: View that the records are seen through afterwards; none when empty.
        ask: From what the prompt holds from the first to the last column of the question to what
            stands there instead, and the records that it is filled from.
    """
    parts = around_question(task)
    if parts is None:
        return continued(task, records.take([]), scene, inner)
    start, question, end = parts
    asked, seen = ask(question)
    template = dataclasses.replace(template_of(task), prompt=f"{start}{asked}{end}")
    return continued(language(task).with_template(template), seen, scene, inner)


def around_question(task: Task) -> tuple[str, str, str] | None:
    """Return what the prompt holds before, from the first to the last and after question columns.

    Args:
        task: How to run the model.

    Returns:
        Three parts of the template's prompt; ``None`` where it names no column of a question.
    """
    prompt = template_of(task).prompt
    spans = [
        found.span()
        for column in question_columns(task)
        for found in re.finditer(re.escape(f"{{{column}}}"), prompt)
    ]
    if not spans:
        return None
    start, end = min(first for first, _ in spans), max(last for _, last in spans)
    return prompt[:start], prompt[start:end], prompt[end:]


@views.register("translated")
def translated(task: Task, records: Records, scene: Scene, parameters: str) -> tuple[Task, Records]:
    """Ask what a registered rephraser makes of the question: ``translated:file=french.jsonl``.

    The rephraser is expected to translate. Every column of the question is translated, the answers
    are not. What ``accept_translation`` rejects is left out, and so is what stays as it is.

    Raises:
        ConfigError: There is no such rephraser, or its settings do not fit.
    """
    by, _, inner = parameters.partition(":")
    settings = rephrasing_of(by, 1.0)
    protect = tuple(answer_words(task, records))
    changed: dict[str, Sequence[Any]] = {}
    passed_R = np.full(len(records), bool(question_columns(task)))
    for name in question_columns(task):
        texts = tuple(str(value) for value in records[name])
        stamp = file_stamp(settings)
        found = _translations(settings, stamp, records.ids, texts, protect, scene.seed)
        changed[name] = [one.text for one in found]
        passed_R &= [one.usable for one in found]
    seen = records.replace(**changed).take(np.flatnonzero(passed_R))
    return continued(task, seen, scene, inner)


@functools.lru_cache(maxsize=16)
def _translations(
    settings: Rephrasing,
    stamp: str,
    ids: tuple[str, ...],
    texts: tuple[str, ...],
    protect: tuple[frozenset[str], ...],
    seed: int,
) -> tuple[Rephrased, ...]:
    """Translate every text once, however many views share the wording."""
    items: Mapping[str, str] = dict(zip(ids, texts, strict=True))
    words = dict(zip(ids, protect, strict=True))
    return translate_items(make_rephraser(settings, items), items, seed, protect=words)
