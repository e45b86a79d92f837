"""Words of an answer: their shares of its attribution, and an answer with the foremost masked."""

from __future__ import annotations

import math
import re
import string
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_SPACES = str.maketrans({"▁": " ", "Ġ": " "})  # as tokenizers write them
_PUNCTUATION = string.punctuation + "“”‘’«»…–—¿¡"
_SHORTEST_NAME = 4


def pieces_of(tokenizer: Any, tokens: Sequence[int]) -> list[str]:
    """Return the text that each token adds to those before it, leading space included.

    A token that ends within a character adds nothing; the one that completes it adds all.

    Args:
        tokenizer: A tokenizer of transformers.
        tokens: Tokens of an answer.
    """
    pieces, told = [], ""
    for count in range(1, len(tokens) + 1):
        text = tokenizer.decode(
            tokens[:count], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            pieces.append("")
            continue
        pieces.append(text[len(told) :])
        told = text
    return pieces


def word_shares(pieces: Sequence[str], scores: Iterable[float]) -> dict[str, float]:
    """Return each word's share of an answer's positive attribution; shares sum to 1.

    Pieces that start with a space, or a tokenizer's mark of one, begin a word. Words are in lower
    case, without punctuation around them and without a possessive ending.

    Args:
        pieces: What each token adds to the text.
        scores: Attribution of each token.

    Returns:
        Shares by word in order of appearance, 0 where the attribution is not positive; nothing at
        all where none is, or a score is no number.
    """
    words: list[tuple[str, float]] = []
    for piece, score in zip(pieces, scores, strict=True):
        if not math.isfinite(score):
            return {}
        text = piece.translate(_SPACES)
        if words and not text[:1].isspace():
            written, sum_before = words.pop()
            words.append((written + text.strip(), sum_before + score))
        else:
            words.append((text.strip(), score))
    sums: dict[str, float] = defaultdict(float)
    for written, score in words:
        sums[plain_word(written)] += score
    sums.pop("", None)
    total = sum(score for score in sums.values() if score > 0)
    return {word: max(score, 0.0) / total for word, score in sums.items()} if total > 0 else {}


def plain_word(word: str) -> str:
    """Return a word in lower case without punctuation around it and possessive ending."""
    bare = word.lower().strip(_PUNCTUATION)
    for ending in ("'s", "’s"):
        bare = bare.removesuffix(ending)
    return bare


def ranked_words(answers: Iterable[Mapping[str, float]]) -> list[str]:
    """Return the words of several answers, the largest sum of shares first; ties by alphabet."""
    sums: dict[str, float] = defaultdict(float)
    for shares in answers:
        for word, share in shares.items():
            sums[word] += share
    return sorted(sums, key=lambda word: (-sums[word], word))


def masked(
    answer: str, ranked: Iterable[str], count: int, mask: str, name: str = ""
) -> tuple[str, int]:
    """Return an answer with its foremost words masked, and how many places were.

    Words are found whole and in upper or lower case; stop-words never count. Every word of four
    letters or more of the name is masked too.

    Args:
        answer: The text.
        ranked: Words, the foremost first.
        count: How many of those that stand in the answer (k).
        mask: What stands in their place.
        name: The name that must not remain.
    """
    stop = _stop_words()
    chosen = [word for word in ranked if word not in stop and _found(word).search(answer)][:count]
    names = [part for part in re.findall(r"\w+", name) if len(part) >= _SHORTEST_NAME]
    places = 0
    for words in (chosen, names):
        for word in sorted(words, key=lambda word: (-len(word), word)):
            answer, replaced = _found(word).subn(lambda _: mask, answer)
            places += replaced
    return answer, places


def _found(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)


def _stop_words() -> frozenset[str]:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return frozenset(ENGLISH_STOP_WORDS)
