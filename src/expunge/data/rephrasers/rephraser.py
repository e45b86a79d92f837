"""``Rephraser``: one question in, the same question in other words out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Protocol

from pydantic import Field

from expunge.core.config import config
from expunge.core.errors import ConfigError, DataError
from expunge.core.registry import Registry
from expunge.data.rephrasers.gate import FLOOR, LENGTH, SLACK, Similarity, accept, judge_similarity


@config
class Rephrasing:
    """How questions are put in other words, and what passes as the same question."""

    by: str = "both"
    """Registered rephraser: ``template``, ``thesaurus``, ``both`` or ``file``."""
    mu: Annotated[float, Field(ge=0)] = 0.5
    """Strength μ: the probability that a template, each word or a stored pair is used; for a
    language model of your own, what it makes of it. 0 leaves every question as it is."""
    path: str | None = None
    """A thesaurus of your own in mythes format (``.dat``), or the pairs that ``file`` reads."""
    floor: float = FLOOR
    """Least similarity that passes, where a similarity is given."""
    length: Annotated[float, Field(ge=0)] = LENGTH
    """How far the number of words may differ, as a share of the original's."""
    slack: Annotated[int, Field(ge=0)] = SLACK
    """Words that the number may differ by in any case; 0 leaves the share alone."""


class Rephraser(Protocol):
    """Puts a question in other words without changing its meaning.

    The result is a function of the arguments alone: order and history play no part. ``mu`` means
    something else for every rephraser, so name and version belong to every result.
    """

    @property
    def name(self) -> str:
        """Return what it is called in results."""

    @property
    def version(self) -> str:
        """Return what changes whenever its output may."""

    def rephrase(self, text: str, mu: float, seed: int, protect: frozenset[str]) -> str:
        """Return the text in other words, or as it is.

        Args:
            text: The question.
            mu: Strength; 0 returns the text unchanged.
            seed: With the text, decides every choice.
            protect: Lower-case words that have to stay, and that may not come in.

        Raises:
            ConfigError: ``mu`` is out of range.
            NoRephrasing: There is none for this text.
        """


class NoRephrasing(DataError):
    """A rephraser has nothing for a text that it was expected to know."""


Make = Callable[[Rephrasing, Mapping[str, str]], Rephraser]
"""Makes a rephraser from the settings and the questions by id."""

rephrasers: Registry[Make] = Registry("rephrasers", "expunge.data.rephrasers")


@dataclasses.dataclass(frozen=True)
class CallableRephraser:
    """Makes a rephraser of a function of yours, such as a call of a language model.

    Attributes:
        fn: Takes text, μ and seed, and returns the other wording.
        name: What it is called in results.
        version: Model and prompt, say; change it whenever they change.
    """

    fn: Callable[[str, float, int], str]
    name: str
    version: str

    def rephrase(self, text: str, mu: float, seed: int, protect: frozenset[str]) -> str:
        """Return what the function returns; the gate finds a protected word that it lost.

        Raises:
            ConfigError: ``mu`` is negative or not finite.
            DataError: The function returns something that is no text.
        """
        del protect
        if not (math.isfinite(mu) and mu >= 0):
            raise ConfigError(f"mu = {mu} must be a finite number of at least 0")
        if mu == 0:
            return text
        made = self.fn(text, mu, seed)
        if not isinstance(made, str):
            raise DataError(
                f"rephraser {self.name!r} returned a {type(made).__name__}; return the new text"
            )
        return made


@dataclasses.dataclass(frozen=True)
class Rephrased:
    """One question and what became of it.

    Attributes:
        id: Id of the item.
        original: The question as the benchmark has it.
        text: The other wording; the original where there is none.
        reason: Why it does not count: a rule of ``accept``, or ``"missing"``; ``None``: it counts.
        similarity: What the similarity said; ``None`` where it was not asked.
        checks: ``"rules"``, or ``"rules and similarity"``.
    """

    id: str
    original: str
    text: str
    reason: str | None
    similarity: float | None
    checks: str

    @property
    def changed(self) -> bool:
        """Whether the wording is another one."""
        return self.text != self.original

    @property
    def usable(self) -> bool:
        """Whether it is another wording that passed the gate."""
        return self.changed and self.reason is None


def make_rephraser(settings: Rephrasing, items: Mapping[str, str]) -> Rephraser:
    """Return the registered rephraser of the settings.

    Args:
        settings: Which one.
        items: The questions by id; ``file`` finds its pairs by them.

    Raises:
        ConfigError: It is unknown, or the settings do not fit it.
    """
    return rephrasers.get(settings.by)(settings, items)


def rephrase_items(
    rephraser: Rephraser,
    items: Mapping[str, str],
    settings: Rephrasing,
    seed: int,
    *,
    protect: Mapping[str, frozenset[str]] | None = None,
    similarity: Similarity | None = None,
) -> tuple[Rephrased, ...]:
    """Rephrase every question and judge it; one that fails is kept with the reason, not reverted.

    Args:
        rephraser: How; see ``make_rephraser``.
        items: The questions by id.
        settings: μ, and the bounds of the gate.
        seed: Decides every choice, for each question on its own.
        protect: Words by id that have to stay, such as ``option_words`` of the answers.
        similarity: Compares the meaning of what changed; without it only the rules apply.

    Raises:
        ConfigError: μ is out of the rephraser's range.
    """
    done = []
    for name, original in items.items():
        kept = frozenset(word.lower() for word in (protect or {}).get(name, ()))
        text, reason, value = original, None, None
        try:
            text = rephraser.rephrase(original, settings.mu, seed, kept)
        except NoRephrasing:
            reason = "missing"
        if text != original:
            reason = accept(
                original, text, length=settings.length, slack=settings.slack, protect=kept
            )
            if reason is None and similarity is not None:
                value = float(similarity(original, text))
                reason = judge_similarity(value, settings.floor)
        checks = "rules" if similarity is None else "rules and similarity"
        done.append(Rephrased(name, original, text, reason, value, checks))
    return tuple(done)


def require_probability(mu: float) -> float:
    """Return ``mu`` where it is a probability.

    Raises:
        ConfigError: It is not.
    """
    if not 0 <= mu <= 1:
        raise ConfigError(f"mu = {mu} must be between 0 and 1: it is a probability here")
    return mu
