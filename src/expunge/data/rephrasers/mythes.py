"""Reader of thesaurus files in the MyThes format, as dictionaries of office programs have them."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from expunge.core.errors import DataError, StorageError
from expunge.data.rephrasers.words import STOP_WORDS, negations, numbers

Synonyms = dict[str, dict[str, tuple[str, ...]]]
"""Substitutes by the group of their place in a sentence (noun, verb, any) and by word."""

_GROUPS = {"(noun)": "noun", "(verb)": "verb"}
_PLAIN = re.compile(r"[a-z]+(?:[ '-][a-z]+)*")


def read_mythes(path: Path) -> Synonyms:
    """Read a thesaurus: first line its encoding, then ``headword|n`` and n lines of a meaning.

    A meaning is ``(part of speech)|synonym|synonym …``. Of every headword and part of speech the
    first meaning with a usable synonym counts. A synonym is usable in plain lower-case letters;
    one with a note in brackets, such as ``(generic term)`` or ``(antonym)``, is not.

    Args:
        path: The ``.dat`` file; the index beside it is not needed.

    Raises:
        StorageError: The file cannot be read.
        DataError: It is not in this format.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StorageError(
            f"cannot read the thesaurus {path}: {error.strerror or error}; give a mythes .dat file"
        ) from error
    encoding, _, body = content.partition(b"\n")
    try:
        lines = body.decode(codecs.lookup(encoding.strip().decode("ascii")).name).split("\n")
    except (LookupError, ValueError) as error:
        raise DataError(
            f"{path}: the first line of a mythes file is the encoding of the rest ({error})"
        ) from error
    found: Synonyms = {"noun": {}, "verb": {}, "any": {}}
    place = 0
    while place < len(lines):
        line = lines[place].strip()
        place += 1
        if line:
            word, _, count = line.rpartition("|")
            if not (word and count.isascii() and count.isdigit()):
                raise DataError(f"{path} line {place + 1}: {line[:60]!r} is no headword|count")
            meanings = lines[place : place + int(count)]
            _add(found, word, meanings, f"{path} line {place + 1}", int(count))
            place += int(count)
    return found


def _add(found: Synonyms, word: str, meanings: list[str], where: str, count: int) -> None:
    if len(meanings) < count:
        raise DataError(f"{where}: {word!r} announces {count} meanings, the file ends before")
    for meaning in meanings:
        part, bar, listed = meaning.strip().partition("|")
        if not bar:
            raise DataError(f"{where}: a meaning of {word!r} lacks its bars: {meaning[:60]!r}")
        usable = [other for other in listed.split("|") if other != word and _usable(other)]
        if usable and _usable(word):
            found[_GROUPS.get(part, "any")].setdefault(word, tuple(dict.fromkeys(usable)))


def _usable(word: str) -> bool:
    plain = _PLAIN.fullmatch(word) is not None and word not in STOP_WORDS
    return plain and not negations(word) and not numbers(word)
