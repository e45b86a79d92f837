"""Filters in front of a model: they stop prompts that resemble what was forgotten.

A filter gives a prompt a score of 0 to 1. Its threshold is set on half of the retained records, so
that few innocent prompts are stopped; what it does to others is told by the other half.

Shape legend: R prompts, L lines of prompts, F forgotten texts, V words.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from torch import nn

from expunge.audit.measures import of_model
from expunge.audit.prompts import continued, filled, language, question_columns, template_of
from expunge.audit.views import Scene, views
from expunge.core.errors import ConfigError, DataError
from expunge.core.records import Records
from expunge.core.registry import Registry
from expunge.core.run import Run
from expunge.core.sets import sample_ids
from expunge.core.streams import stream
from expunge.engine.task import Task

Filter = Callable[[Sequence[str]], np.ndarray]
"""Takes prompts, and says of each from 0 to 1 how much it resembles what was forgotten."""

Make = Callable[[Sequence[str], Sequence[str]], Filter]
"""Makes a filter of forgotten texts (questions, and questions with their answers) and of innocent
ones. What it says of a prompt may not depend on the prompts beside it."""

filters: Registry[Make] = Registry("filters", "expunge.audit")

STOPS = "filter_stops"
"""Measure: 1 where the filter stops a prompt, 0 where it lets it pass, NaN where it was set on it
or has no threshold."""
ALONE = "filter_stops_question"
"""Measure: the same of the question without the context above it."""

_AT_ONCE = 1024  # lines of prompts
_TINY = 1e-12
_POOL = 1000  # retained records that a filter is set on and tells words apart by


@filters.register("words")
def word_filter(forgotten: Sequence[str], innocent: Sequence[str]) -> Filter:
    """Return the filter of words: the cosine to the nearest forgotten text, as TF-IDF of words.

    A prompt counts as much as the line of it that is most alike. Words that no text has count as
    the rarest ones.

    Args:
        forgotten: What it knows word by word.
        innocent: Beside them it tells how common a word is.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not any(re.search(r"\w", text) for text in forgotten):
        return lambda prompts: np.zeros(len(prompts))
    vectorizer = TfidfVectorizer(token_pattern=r"\w+", norm=None).fit([*forgotten, *innocent])
    words, known = vectorizer.build_analyzer(), vectorizer.vocabulary_
    known_FV = vectorizer.transform(forgotten)
    length_F = np.maximum(np.sqrt(known_FV.multiply(known_FV).sum(axis=1)).A1, _TINY)
    rarest = math.log(1 + len(forgotten) + len(innocent)) + 1

    def length(line: str) -> float:
        counts = Counter(words(line))
        rates = {w: vectorizer.idf_[known[w]] if w in known else rarest for w in counts}
        return math.sqrt(sum((counts[word] * rate) ** 2 for word, rate in rates.items())) or 1.0

    def scored(prompts: Sequence[str]) -> np.ndarray:
        lines = [(row, line) for row, text in enumerate(prompts) for line in text.splitlines()]
        found_R = np.zeros(len(prompts))
        for start in range(0, len(lines), _AT_ONCE):
            some = lines[start : start + _AT_ONCE]
            texts = [line for _, line in some]
            dot_LF = (vectorizer.transform(texts) @ known_FV.T).toarray()
            nearest_L = (dot_LF / length_F).max(axis=1) / [length(text) for text in texts]
            np.maximum.at(found_R, [row for row, _ in some], np.round(nearest_L, 9))
        return np.minimum(found_R, 1.0)

    return scored


def threshold(innocent_R: np.ndarray, false_alarms: float) -> float | None:
    """Return the least score from which on a filter stops prompts; none without any to set it on.

    Args:
        innocent_R: Scores of innocent prompts.
        false_alarms: Share of them that may be stopped.
    """
    if not len(innocent_R):
        return None
    allowed = math.floor(false_alarms * len(innocent_R))
    return float(np.nextafter(np.sort(innocent_R)[::-1][allowed], np.inf))


@views.register("filtered")
def filtered(task: Task, records: Records, scene: Scene, parameters: str) -> tuple[Task, Records]:
    """Note what a filter makes of every prompt: ``filtered:words:0.01:context:statement:5``.

    Prompts and answers are those of the last parameters' view. The measures ``filter_stops`` and
    ``filter_stops_question`` tell of the filter.

    Raises:
        ConfigError: There is no such filter, or the share of false alarms is none.
        DataError: The filter's scores are no numbers of 0 to 1, one for each prompt.
    """
    name, _, rest = parameters.partition(":")
    alarms, _, inner = rest.partition(":")
    gate = _gate_of(name, alarms, task, scene)
    told, seen = continued(task, records, scene, inner)
    pattern = template_of(told).prompt
    whole = [filled(pattern, seen, row) for row in range(len(seen))]
    alone = [filled(template_of(task).prompt, seen, row) for row in range(len(seen))]
    marks = {STOPS: gate.marks(seen.ids, whole), ALONE: gate.marks(seen.ids, alone)}
    return told, seen.replace(**marks)


@of_model(STOPS)
def stopped_R(model: nn.Module, task: Task, records: Records, run: Run) -> np.ndarray:
    """Return which prompts of the view ``filtered`` the filter stops."""
    del model, task, run
    return _numbers_R(records, STOPS)


@of_model(ALONE)
def stopped_alone_R(model: nn.Module, task: Task, records: Records, run: Run) -> np.ndarray:
    """Return which prompts of the view ``filtered`` it stops without the context above them."""
    del model, task, run
    return _numbers_R(records, ALONE)


def _numbers_R(records: Records, column: str) -> np.ndarray:
    return np.array([np.nan if stops is None else stops for stops in records[column]], dtype=float)


@dataclasses.dataclass(frozen=True)
class _Gate:
    """A filter with its threshold.

    Attributes:
        name: What it is called in messages.
        filter: The filter.
        least: Score from which on a prompt is stopped.
        used: Records that the threshold was set on.
    """

    name: str
    filter: Filter
    least: float | None
    used: frozenset[str]

    def marks(self, ids: Sequence[str], prompts: Sequence[str]) -> list[bool | None]:
        """Return which prompts are stopped; ``None`` where the threshold rests on the record."""
        if self.least is None:
            return [None] * len(prompts)
        stops_R = scores_of(self.filter, self.name, prompts) >= self.least
        return [
            None if name in self.used else bool(stops)
            for name, stops in zip(ids, stops_R, strict=True)
        ]


def scores_of(made: Filter, name: str, prompts: Sequence[str]) -> np.ndarray:
    """Return what a filter says of some prompts.

    Raises:
        DataError: It is no number of 0 to 1 for each of them.
    """
    found = np.asarray(made(prompts), dtype=np.float64)
    if found.shape != (len(prompts),) or not ((found >= 0) & (found <= 1)).all():
        raise DataError(
            f"the filter {name!r} must return one number of 0 to 1 for each of {len(prompts)} "
            f"prompts; it returned an array of shape {found.shape}"
        )
    return found


def _gate_of(name: str, alarms: str, task: Task, scene: Scene) -> _Gate:
    try:
        share = float(alarms)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise ConfigError(
            f"filtered:{name}: false alarms {alarms!r} must be a share of 0 or more, below 1"
        )
    pool = scene.records("retain")
    if len(pool) > _POOL:
        pool = pool.select(sample_ids(pool.ids, _POOL, scene.seed, "filter-pool"))
    order = stream(scene.seed, "filter-threshold").permutation(len(pool))
    used = pool.take(np.sort(order[: len(pool) // 2]))
    prompts = tuple(filled(template_of(task).prompt, used, row) for row in range(len(used)))
    forgotten, innocent = (_texts(task, part) for part in (scene.records("forget"), pool))
    return _gate(name, share, forgotten, innocent, prompts, used.ids)


@functools.lru_cache(maxsize=4)
def _gate(
    name: str,
    alarms: float,
    forgotten: tuple[str, ...],
    innocent: tuple[str, ...],
    prompts: tuple[str, ...],
    used: tuple[str, ...],
) -> _Gate:
    made = filters.get(name)(forgotten, innocent)
    least = threshold(scores_of(made, name, prompts), alarms)
    return _Gate(name, made, least, frozenset(used))


def _texts(task: Task, records: Records) -> tuple[str, ...]:
    """Return the question of every record, and with its answer; a document is its own text."""
    columns, answer = question_columns(task), language(task).template.answer
    found = []
    for row in range(len(records)):
        asked = [str(records[name][row]) for name in columns]
        found += [" ".join(asked)] if asked else []
        found.append(" ".join([*asked, filled(answer, records, row).strip()]))
    return tuple(found)
