"""Near-synonyms in place of content words."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from expunge.core.digest import digest_json
from expunge.core.streams import stream
from expunge.data.probes import read_resource
from expunge.data.rephrasers.mythes import Synonyms, read_mythes
from expunge.data.rephrasers.rephraser import Rephrasing, rephrasers, require_probability
from expunge.data.rephrasers.words import STOP_WORDS, WORD, lost_words, quoted_spans

_LEAST_LETTERS = 4
_MOST_WORDS = 4
_CALLERS = (
    "to did does do can could will would should may might must shall i you we they he she it "
    "who please"
)
_CALLS_A_VERB = frozenset(_CALLERS.split())
_VOWEL_SOUND = re.compile(r"(?!eu|one|once|uni|use|usu|uti)[aeiou]|hon|hour|heir", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?:^|[.!?:]\s)\W*$")


@dataclasses.dataclass(frozen=True)
class ThesaurusRephraser:
    """Replaces each word or phrase that it knows with probability μ.

    A word counts when it is lower case, has more than three letters, is no stop word, number or
    negation, and stands in no quotation. A noun is left alone where a verb is due
    (``did she author``), and a verb in its base form is only replaced there. What is replaced at
    one μ is replaced in the same way at every higher one.

    Attributes:
        synonyms: Substitutes by group and word or phrase.
        version: Digest of the synonyms.

    Source: C-BOD (Cohen-Inger et al., 2025), with substitution in place of its language model.
    """

    synonyms: Synonyms
    version: str
    name: str = "thesaurus"

    def rephrase(self, text: str, mu: float, seed: int, protect: frozenset[str]) -> str:
        """Return the text with near-synonyms; see ``Rephraser``."""
        if require_probability(mu) == 0:
            return text
        draws = stream(seed, "rephrase-thesaurus", text)
        pieces, done = [], 0
        for place in _Places(text, self.synonyms):
            strength, pick = draws.random(), int(draws.integers(len(place.substitutes)))
            start, new = place.put(place.substitutes[pick])
            old = text[start : place.end]
            if strength < mu and start >= done and not lost_words(old, new, protect):
                pieces += [text[done:start], new]
                done = place.end
        return "".join([*pieces, text[done:]])


@dataclasses.dataclass(frozen=True)
class _Place:
    """A word or phrase that has substitutes.

    Attributes:
        start: Where it begins.
        end: Where it ends, ``'s`` excluded.
        old: What it says.
        article: The ``a`` or ``an`` right before it; empty where there is none.
        substitutes: What may stand in its place.
    """

    start: int
    end: int
    old: str
    article: str
    substitutes: tuple[str, ...]

    def put(self, new: str) -> tuple[int, str]:
        """Return where the exchange begins and the text for it; the article comes to agree."""
        agrees = bool(_VOWEL_SOUND.match(self.old)) == bool(_VOWEL_SOUND.match(new))
        if not self.article or agrees:
            return self.start, new
        other = self.article[0] + ("n" if len(self.article) == 1 else "")
        return self.start - len(self.article) - 1, f"{other} {new}"


class _Places:
    """Finds the longest known phrases of a text from left to right."""

    def __init__(self, text: str, synonyms: Synonyms) -> None:
        self.text = text
        self.synonyms = synonyms
        self.words = list(WORD.finditer(text))
        self.quoted = quoted_spans(text)

    def __iter__(self) -> Iterator[_Place]:
        first = 0
        while first < len(self.words):
            for size in range(min(_MOST_WORDS, len(self.words) - first), 0, -1):
                if (place := self._known(first, size)) is not None:
                    yield place
                    first += size - 1
                    break
            first += 1

    def _known(self, first: int, size: int) -> _Place | None:
        start, end = self.words[first].start(), self.words[first + size - 1].end()
        if size == 1 and self.text[end - 2 : end] in ("'s", "’s"):
            end -= 2
        old = self.text[start:end]
        short = size == 1 and (len(old) < _LEAST_LETTERS or old in STOP_WORDS)
        if short or any(start < b and a < end for a, b in self.quoted):
            return None
        for group in ("verb" if self._verb_is_due(first) else "noun", "any"):
            if old in self.synonyms[group]:
                return _Place(start, end, old, self._article(first), self.synonyms[group][old])
        return None

    def _verb_is_due(self, first: int) -> bool:
        """Say whether the word before is an auxiliary, a pronoun or a name."""
        if first == 0 or self.text[self.words[first - 1].end() : self.words[first].start()] != " ":
            return False
        before = self.words[first - 1][0]
        name = self._capital_inside(first - 1) and not before.endswith(("'s", "’s"))
        return before.lower() in _CALLS_A_VERB or name

    def _article(self, first: int) -> str:
        if first == 0 or self._capital_inside(first - 1):  # as in "vitamin A"
            return ""
        before = self.words[first - 1]
        joined = self.text[before.end() : self.words[first].start()] == " "
        return before[0] if joined and before[0].lower() in ("a", "an") else ""

    def _capital_inside(self, at: int) -> bool:
        """Say whether a word has a capital that no sentence gives it."""
        word = self.words[at]
        return word[0][0].isupper() and not _SENTENCE_END.search(self.text[: word.start()])


@rephrasers.register("thesaurus")
def make_thesaurus(settings: Rephrasing, items: Mapping[str, str]) -> ThesaurusRephraser:
    """Return the thesaurus at ``path``, or the one that comes with the package.

    Raises:
        StorageError: The file cannot be read.
        DataError: It is no mythes file.
    """
    del items
    synonyms: Synonyms
    if settings.path is not None:
        synonyms = read_mythes(Path(settings.path))
    else:
        synonyms = {
            group: {word: tuple(others) for word, others in words.items()}
            for group, words in read_resource("thesaurus.json").items()
        }
    return ThesaurusRephraser(synonyms, digest_json(synonyms)[:12])
