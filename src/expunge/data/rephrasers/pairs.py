"""Rephrased questions from a file, such as a benchmark that others rephrased and published."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from expunge.core.digest import digest_file, digest_json
from expunge.core.errors import ConfigError, DataError
from expunge.core.streams import stream
from expunge.data.rephrasers.rephraser import (
    NoRephrasing,
    Rephrasing,
    rephrasers,
    require_probability,
)
from expunge.data.tables import read_table


@dataclasses.dataclass(frozen=True)
class FileRephraser:
    """Looks other wordings up; μ is the probability that a question gets the one it has.

    Attributes:
        pairs: Other wording by original text.
        version: Digest of the file.
    """

    pairs: Mapping[str, str]
    version: str
    name: str = "file"

    def rephrase(self, text: str, mu: float, seed: int, protect: frozenset[str]) -> str:
        """Return the stored wording; see ``Rephraser``. The gate judges protected words.

        Raises:
            NoRephrasing: The file has none for this text.
        """
        del protect
        if require_probability(mu) == 0:
            return text
        if text not in self.pairs:
            raise NoRephrasing(f"the file has no rephrasing of {text!r}; add it, or leave it out")
        return self.pairs[text] if stream(seed, "rephrase-file", text).random() < mu else text


@rephrasers.register("file")
def make_file(settings: Rephrasing, items: Mapping[str, str]) -> FileRephraser:
    """Read pairs: rows with ``rephrased`` and either ``text`` or the item's ``id``.

    Raises:
        ConfigError: There is no path.
        StorageError: The file cannot be read.
        DataError: A row lacks one of them, or two rows disagree about one text.
    """
    if settings.path is None:
        raise ConfigError("rephrasing by 'file' needs path: JSON lines with text or id, rephrased")
    path = Path(settings.path)
    table = read_table(path)
    absent = [None] * len(next(iter(table.values())))
    rows = zip(*(table.get(name, absent) for name in ("id", "text", "rephrased")), strict=True)
    pairs: dict[str, str] = {}
    for number, (name, given, rephrased) in enumerate(rows, start=1):
        if not isinstance(rephrased, str) or (name is None and not isinstance(given, str)):
            raise DataError(
                f"{path} row {number} needs 'rephrased', and 'text' or 'id', each as text"
            )
        text = given if isinstance(given, str) else items.get(str(name))
        if text is None:  # a row about an item that is not asked for
            continue
        if pairs.setdefault(text, rephrased) != rephrased:
            raise DataError(f"{path} row {number}: a second rephrasing of {text!r}; keep one")
    return FileRephraser(pairs, digest_json([digest_file(path), dict(sorted(items.items()))])[:12])
