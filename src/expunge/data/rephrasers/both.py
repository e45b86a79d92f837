"""Templates first, then the thesaurus: the default."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from expunge.data.rephrasers.rephraser import Rephraser, Rephrasing, rephrasers
from expunge.data.rephrasers.template import TemplateRephraser
from expunge.data.rephrasers.thesaurus import make_thesaurus


@dataclasses.dataclass(frozen=True)
class BothRephraser:
    """Applies two rephrasers in turn; both get the same μ, seed and protected words."""

    first: Rephraser
    second: Rephraser
    name: str = "both"

    @property
    def version(self) -> str:
        """Return the names and versions of the two."""
        return " + ".join(f"{part.name} {part.version}" for part in (self.first, self.second))

    def rephrase(self, text: str, mu: float, seed: int, protect: frozenset[str]) -> str:
        """Return what the second makes of the first one's wording; see ``Rephraser``."""
        return self.second.rephrase(self.first.rephrase(text, mu, seed, protect), mu, seed, protect)


@rephrasers.register("both")
def make_both(settings: Rephrasing, items: Mapping[str, str]) -> BothRephraser:
    """Return templates followed by the thesaurus; ``path`` is the thesaurus."""
    return BothRephraser(TemplateRephraser(), make_thesaurus(settings, items))
