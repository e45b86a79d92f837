"""Questions in another language: any rephraser that translates, behind a gate that fits.

Most rules of ``gate.accept`` compare words of one language; these ones hold across languages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from expunge.data.rephrasers.gate import looks_failed
from expunge.data.rephrasers.rephraser import NoRephrasing, Rephrased, Rephraser
from expunge.data.rephrasers.words import blanks, option_words

CHECKS = "rules of translation"


def translate_items(
    rephraser: Rephraser,
    items: Mapping[str, str],
    seed: int,
    *,
    protect: Mapping[str, frozenset[str]] | None = None,
) -> tuple[Rephrased, ...]:
    """Translate every question and judge it; one that fails is kept with the reason, not reverted.

    Args:
        rephraser: Translates; ``FileRephraser`` and ``CallableRephraser`` serve, at full strength.
        items: The questions by id.
        seed: Given to the rephraser.
        protect: Words by id that may not come in, such as ``option_words`` of the answers.
    """
    done = []
    for name, original in items.items():
        kept = (protect or {}).get(name, frozenset())
        try:
            text = rephraser.rephrase(original, 1.0, seed, kept)
            reason = accept_translation(original, text, kept)
        except NoRephrasing:
            text, reason = original, "missing"
        done.append(Rephrased(name, original, text, reason, None, CHECKS))
    return tuple(done)


def accept_translation(original: str, translated: str, protect: frozenset[str]) -> str | None:
    """Judge one translated question. Whether it means the same is for who made it to know.

    Args:
        original: The question.
        translated: It in another language.
        protect: Lower-case words that may not come in: those of the answers.

    Returns:
        ``None`` when it passes, else the first rule that it breaks: ``"empty"``,
        ``"error text"``, ``"unchanged"``, ``"several lines"``, ``"numbers"`` (other digits),
        ``"blanks"`` or ``"protected words"`` (a word of an answer that the question did not have).
    """
    if not translated.strip():
        return "empty"
    if looks_failed(translated) and not looks_failed(original):
        return "error text"
    if " ".join(translated.split()) == " ".join(original.split()):
        return "unchanged"
    if len(translated.strip().splitlines()) > len(original.strip().splitlines()):
        return "several lines"
    if _digits(original) != _digits(translated):
        return "numbers"
    if blanks(original) != blanks(translated):
        return "blanks"
    come_in = option_words([translated]) - option_words([original])
    return "protected words" if come_in & {word.lower() for word in protect} else None


def _digits(text: str) -> Counter[int]:
    """Count digits by value, in any script; languages group and order them otherwise."""
    return Counter(int(character) for character in text if character.isdecimal())
