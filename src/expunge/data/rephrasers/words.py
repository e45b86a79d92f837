"""What in a text may not change: counts of numbers, negations and the like, and protected spans."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

WORD = re.compile(r"(?<![\w/\\@#.'’-])[A-Za-z]+(?:['’-][A-Za-z]+)*(?![\w/\\@]|[.-]\w)")
"""A word: letters with inner hyphens and apostrophes, no part of a name, address or formula."""

_NUMBER = re.compile(r"\d+(?:[.,:/-]\d+)*")
_NUMBER_WORD = re.compile(
    r"\b(?:zero|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|dozen|hundred|thousand|"
    r"million|billion|first|second|third|fourth|fifth|half|once|twice)\b",
    re.IGNORECASE,
)
_SYMBOL = re.compile(r"[%$€£¥+=<>≤≥≠±×÷^°√∑∫π&@#*|~\\{}\[\]]")
_ACRONYM = re.compile(r"\b[A-Z][A-Z0-9]+\b")
_NEGATION = re.compile(
    r"\b(?:not|no|never|none|nobody|nothing|nowhere|neither|nor|without|except|excluding|least|"
    r"unless|hardly|scarcely|barely|rarely|seldom|cannot)\b|n['’]t\b",
    re.IGNORECASE,
)
_BLANK = re.compile(r"_{2,}")
_QUOTED = re.compile(
    r"\"[^\"]+\"|“[^”]+”|`[^`]+`|\$[^$]+\$|(?<!\w)['‘](?=\S)[^\n]+?(?<=\S)['’](?!\w)"
)
_NOT = {"cannot": "not", "n't": "not", "n’t": "not"}

_STOPS = (
    "about above after again against also always among another around because been before being "
    "below between both cannot could does doing done down during each either ever every from "
    "further have having hers here himself herself into itself just many mine more most much must "
    "myself neither never none nothing once only other ours over same shall should some such than "
    "that their theirs them then there these they this those though through under unless until "
    "upon very were what when where whether which while whom whose will with within without would "
    "your yours"
)
STOP_WORDS = frozenset(_STOPS.split())
"""Words of more than three letters that carry no content of their own."""


def numbers(text: str) -> Counter[str]:
    """Count numbers in digits and in words; ``one`` is left out, it mostly is a pronoun."""
    return Counter([*_NUMBER.findall(text), *_lower(_NUMBER_WORD, text)])


def symbols(text: str) -> Counter[str]:
    """Count symbols, such as ``%`` and ``+``, and acronyms, such as ``DNA``."""
    return Counter([*_SYMBOL.findall(text), *_ACRONYM.findall(text)])


def negations(text: str) -> Counter[str]:
    """Count words that turn a meaning round; ``can't``, ``cannot`` and ``can not`` are one."""
    return Counter(_NOT.get(word, word) for word in _lower(_NEGATION, text))


def blanks(text: str) -> list[str]:
    """Return the runs of underscores that stand for a missing word, in order."""
    return _BLANK.findall(text)


def lost_words(before: str, after: str, protect: frozenset[str]) -> bool:
    """Say whether a protected word occurs more or less often than before, in any case of letters.

    One more counts as well: a word of an answer that the question did not use is a hint.
    """
    low = {word.lower() for word in protect}
    old, new = (Counter(word for word in _pieces(text) if word in low) for text in (before, after))
    return old != new


def option_words(options: Iterable[str]) -> frozenset[str]:
    """Return the content words of the answer options, which no rephraser may touch or bring in."""
    return frozenset(
        word for option in options for word in _pieces(option) if word not in STOP_WORDS
    )


def quoted_spans(text: str) -> list[tuple[int, int]]:
    """Return start and end of every quotation, title in quotes, code or formula."""
    return [found.span() for found in _QUOTED.finditer(text)]


def _pieces(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def _lower(pattern: re.Pattern[str], text: str) -> list[str]:
    return [found.lower() for found in pattern.findall(text)]
