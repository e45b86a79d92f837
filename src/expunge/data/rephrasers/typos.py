"""Slips of the keyboard: noise on every k-th letter, for attacks on the input."""

from __future__ import annotations

import string

from expunge.core.errors import ConfigError
from expunge.core.streams import stream


def character_noise(text: str, every: int, seed: int) -> str:
    """Swap or replace every k-th letter; everything that is no letter stays where it is.

    A letter is swapped with the next one of the same word where they differ, or replaced by
    another of a to z in the same case; a coin decides. At ``every = 1`` letters are only replaced,
    since swaps of neighbours would undo each other.

    Args:
        text: The question or prompt.
        every: k; 1 hits every letter. Digits are no letters.
        seed: With the text, decides the slips.

    Raises:
        ConfigError: ``every`` is below 1.
    """
    if every < 1:
        raise ConfigError(f"every = {every} must be at least 1: the k of every k-th letter")
    draws = stream(seed, "character-noise", every, text)
    letters = list(text)
    places = [place for place, letter in enumerate(text) if letter.isalpha()]
    for place in places[every - 1 :: every]:
        swap, pick = draws.random() < 0.5, int(draws.integers(25))
        old = letters[place]
        after = letters[place + 1] if place + 1 < len(letters) else ""
        if swap and every > 1 and after.isalpha() and after != old:
            letters[place], letters[place + 1] = after, old
        else:
            letters[place] = _other_letter(old, pick)
    return "".join(letters)


def _other_letter(old: str, pick: int) -> str:
    """Return one of the 25 or 26 letters a to z that are not ``old``, in its case."""
    others = [letter for letter in string.ascii_lowercase if letter != old.lower()]
    return others[pick].upper() if old.isupper() else others[pick]
