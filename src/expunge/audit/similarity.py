"""Views of the records that resemble what is forgotten, and of those that resemble it least.

Each takes the name of another view as its last parameter, which then decides the answers:
``near:1:0:perturbed:0`` scores the first wrong answer of the nearest tenth.

Shape legend: R records, F forget records, V words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from expunge.audit.prompts import continued, filled, template_of
from expunge.audit.views import Scene, views
from expunge.core.errors import ConfigError
from expunge.core.records import Records
from expunge.core.streams import stream
from expunge.engine.task import Task

TENTHS = 10
_ROWS = 1024


@views.register("near")
def near(task: Task, records: Records, scene: Scene, parameters: str) -> tuple[Task, Records]:
    """Keep some tenths by similarity to the forget set: ``near:1``, ``near:6-10``.

    The first tenth is the nearest. ``near:6-10:300`` draws at most 300 records of them; 0 is all.

    Raises:
        ConfigError: The tenths are none of 1 to 10, or the number is none.
    """
    wanted, _, rest = parameters.partition(":")
    most, _, inner = rest.partition(":")
    first, last = _range(wanted)
    tenths_R = tenths(_texts(task, records), _texts(task, scene.records("forget")))
    kept = [row for row, tenth in enumerate(tenths_R) if first <= tenth <= last]
    return continued(task, _drawn(records.take(kept), most, scene.seed), scene, inner)


@views.register("marked")
def marked(task: Task, records: Records, scene: Scene, parameters: str) -> tuple[Task, Records]:
    """Keep records by a column of the user's: ``marked:dual_use:yes``, ``marked:dual_use:no:300``.

    Raises:
        DataError: There is no such column.
        ConfigError: The number is none.
    """
    column, _, rest = parameters.partition(":")
    which, _, rest = rest.partition(":")
    most, _, inner = rest.partition(":")
    kept = [row for row, value in enumerate(records[column]) if bool(value) == (which == "yes")]
    return continued(task, _drawn(records.take(kept), most, scene.seed), scene, inner)


@lru_cache(maxsize=8)
def tenths(texts: tuple[str, ...], forget: tuple[str, ...]) -> tuple[int, ...]:
    """Return the tenth of each text by similarity to the nearest forget text; 1 is the nearest.

    Args:
        texts: What is ranked; texts that are equally similar keep their order.
        forget: What they are compared with, at least one.
    """
    order = np.argsort(-np.round(similarity_R(texts, forget), 9), kind="stable")
    found = np.empty(len(texts), dtype=np.int64)
    found[order] = np.arange(len(texts)) * TENTHS // max(len(texts), 1) + 1
    return tuple(found.tolist())


def similarity_R(texts: Sequence[str], forget: Sequence[str]) -> np.ndarray:
    """Return the cosine of each text to the nearest forget text, both as TF-IDF of words.

    Args:
        texts: What is ranked.
        forget: What they are compared with, at least one.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not any(re.search(r"\w", text) for text in (*texts, *forget)):
        return np.zeros(len(texts))
    vectorizer = TfidfVectorizer(token_pattern=r"\w+").fit([*texts, *forget])
    forget_VF = vectorizer.transform(forget).T.tocsc()
    found_R = np.zeros(len(texts))
    for start in range(0, len(texts), _ROWS):
        some_RV = vectorizer.transform(texts[start : start + _ROWS])
        cosine_RF = some_RV @ forget_VF
        found_R[start : start + _ROWS] = cosine_RF.max(axis=1).toarray()[:, 0]
    return found_R


def _texts(task: Task, records: Records) -> tuple[str, ...]:
    """Return prompt and answer of every record, as the template writes them."""
    template = template_of(task)
    pattern = f"{template.prompt} {template.answer}"
    return tuple(filled(pattern, records, row) for row in range(len(records)))


def _range(wanted: str) -> tuple[int, int]:
    first, dash, last = wanted.partition("-")
    ends = [first, last] if dash else [first, first]
    if not all(end.isdecimal() and 1 <= int(end) <= TENTHS for end in ends):
        raise ConfigError(f"near:{wanted} names no tenths; give 1 to {TENTHS}, such as 1 or 6-10")
    return int(ends[0]), int(ends[1])


def _drawn(records: Records, most: str, seed: int) -> Records:
    """Return at most so many records, drawn by seed, in their order."""
    if most and not most.isdecimal():
        raise ConfigError(f"{most!r} records cannot be drawn; give a whole number, 0 for all")
    if not int(most or 0) or len(records) <= int(most):
        return records
    chosen = stream(seed, "near").choice(len(records), size=int(most), replace=False)
    return records.take(np.sort(chosen))
