"""The attacks on the input: the settings of ``paraphrase``, and what they make of a prompt."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from expunge.audit.encodings import FRAMES as ENCODED
from expunge.audit.languages import FRAMES
from expunge.audit.prefix_search import Plan
from expunge.audit.prompts import PREFIXES, rephraser_words
from expunge.audit.readings import Reading
from expunge.audit.talks import AGAIN
from expunge.core.config import config

SECOND = "paraphrased_question"

Language = Literal[
    "french",
    "german",
    "spanish",
    "italian",
    "portuguese",
    "dutch",
    "polish",
    "russian",
    "chinese",
    "japanese",
]
Encoding = Literal["base64", "rot13"]


@config
class ParaphraseConfig:
    """Settings of the audit of attacks on the input."""

    rephrasers: tuple[str, ...] = ("both",)
    """Registered rephrasers; a file of pairs may follow ``file`` behind ``=``."""
    mu: Annotated[float, Field(ge=0)] = 1.0
    """Strength of the rephrasing, 0 (none) to 1."""
    prefixes: tuple[Annotated[int, Field(ge=0, lt=len(PREFIXES))], ...] = tuple(
        range(len(PREFIXES))
    )
    """Numbers of the packaged prefixes."""
    noise: tuple[Annotated[int, Field(ge=1)], ...] = (3, 6, 12)
    """k of the slips on every k-th letter."""
    languages: tuple[Language, ...] = ("french", "german", "spanish", "chinese")
    """Languages of the packaged instructions around the question, which stays as it is."""
    encodings: tuple[Encoding, ...] = ("base64", "rot13")
    """Encodings of the question, below words that say which it is."""
    translators: tuple[str, ...] = ()
    """Registered rephrasers that translate the question; a file of translated questions may follow
    ``file`` behind ``=``."""
    again: bool = True
    """Ask once more after a wrong answer that the user calls wrong."""
    turns: tuple[Annotated[int, Field(ge=1)], ...] = (3,)
    """Numbers of attacked facts that earlier turns of a talk tell."""
    search_steps: Annotated[int, Field(ge=0)] = 20
    """Steps of the search for a prefix; 0 leaves it out."""
    search_tokens: Annotated[int, Field(ge=1)] = 8
    """Tokens of the prefix that is searched."""
    search_candidates: Annotated[int, Field(ge=1)] = 32
    """Prefixes that the search tries in each step."""
    search_facts: Annotated[int, Field(ge=1)] = 8
    """Attacked facts that each step of the search reads."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the forget records that the search and the turns may see; the others are scored."""
    by: Literal["probability", "exact"] = "probability"
    """What counts as answering."""
    max_excess: float | None = None
    """Largest recovery beyond that of retrained models that passes, of each family; no verdict when
    absent."""
    max_rewording_gain: float | None = None
    """Most that other words may add to the score to pass; no verdict when absent."""


@dataclasses.dataclass(frozen=True)
class InputAttack:
    """One attack on the input.

    Attributes:
        reading: What is scored under it.
        ending: How the names of its numbers end: letters, digits and underscores.
        title: The attack in a reader's words.
        words: What it did, as precisely as it can be repeated.
        informed: Whether it looks at a part of the forget set, so that the rest is scored.
        rewords: Whether it asks the same in other words.
        searched: How many prompts it reads besides the scored ones, at most.
    """

    reading: Reading
    ending: str
    title: str
    words: str = ""
    informed: bool = False
    rewords: bool = False
    searched: int = 0


def attacks_of(config: ParaphraseConfig) -> list[InputAttack]:
    """Return every attack that the settings ask for, each once, those with other words first."""
    found = (*rewordings_of(config), *_fixed(config), *_informed(config))
    return list(dict.fromkeys(found))


def rewordings_of(config: ParaphraseConfig) -> list[InputAttack]:
    """Return the attacks that ask the same in other words."""
    found = []
    for name in config.rephrasers:
        view = f"rephrased:{name}:{config.mu:g}"
        title = f"other words ({name}:{config.mu:g})"
        reading = Reading("forget", view, measures=("rephrasing",))
        words = rephraser_words(name, config.mu)
        found.append(InputAttack(reading, _ending(view), title, words, rewords=True))
    own = Reading("forget", SECOND)
    found.append(InputAttack(own, SECOND, "the data's second wording", rewords=True))
    return list(dict.fromkeys(found))


def _fixed(config: ParaphraseConfig) -> Iterator[InputAttack]:
    """Yield the attacks that look at nothing."""
    for number in config.prefixes:
        words = f"prefix: {PREFIXES[number]}"
        yield _viewed(f"prefix:{number}", f"prefix {number}", words)
    for every in config.noise:
        yield _viewed(f"noise:{every}", f"slips on every letter number {every}")
    for name in config.languages:
        words = f"frame: {'…'.join(FRAMES[name])}"
        yield _viewed(f"language:{name}", f"{name} instruction around the question", words)
    for code in config.encodings:
        yield _viewed(f"encoded:{code}", f"question in {code}", f"frame: {ENCODED[code]}…")
    for by in config.translators:
        words = f"translated by {rephraser_words(by, 1.0)}"
        yield _viewed(f"translated:{by}", f"translated question ({by})", words)
    if config.again:
        yield _viewed("talk:again", "asked again after a wrong answer", f"user: {AGAIN}")


def _informed(config: ParaphraseConfig) -> Iterator[InputAttack]:
    """Yield the attacks that look at a part of the forget set."""
    share = f"{config.share:g}"
    for count in config.turns:
        view = f"talk:facts:{count}:{share}"
        title = f"asked after {count} turn{'s' * (count > 1)} about other attacked facts"
        yield InputAttack(Reading("forget", view), f"talk_facts_{count}", title, informed=True)
    if config.search_steps:
        sizes = (
            config.search_tokens,
            config.search_steps,
            config.search_candidates,
            config.search_facts,
        )
        spec = f"prefix_search:{':'.join(map(str, sizes))}:{share}"
        reading = Reading("forget", f"unseen:{share}", treatment=spec)
        title = f"searched prefix of {config.search_tokens} tokens"
        words = (
            f"{config.search_steps} steps of {config.search_candidates} candidates on "
            f"{config.search_facts} facts"
        )
        searched = Plan(*sizes).prompts
        yield InputAttack(reading, "prefix_search", title, words, informed=True, searched=searched)


def _viewed(view: str, title: str, words: str = "") -> InputAttack:
    return InputAttack(Reading("forget", view), _ending(view), title, words)


def _ending(view: str) -> str:
    return re.sub(r"\W+", "_", view)
