"""``Sets``: which records to forget, to retain, to hold out and to test on, by stable record id."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from expunge.core.digest import digest_json
from expunge.core.errors import DataError, Problems, listing
from expunge.core.streams import stream

ROLES = ("forget", "retain", "holdout", "test")


@dataclasses.dataclass(frozen=True)
class Sets:
    """A frozen partition of record ids.

    Attributes:
        forget: Records whose influence is to be removed; the model was trained on them.
        retain: Records whose influence stays; the model was trained on them.
        holdout: Records from the same source that the model never saw: non-members for audits.
        test: Records that measure utility; no method ever sees them.
        provenance: Where the split came from (source, rule, seed); JSON values only.

    Raises:
        DataError: An id stands twice, in one set or in two, or nothing is to be forgotten.
    """

    forget: tuple[str, ...]
    retain: tuple[str, ...] = ()
    holdout: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = Problems("sets", DataError)
        if not self.forget:
            problems.add("the forget set is empty; name at least one record to forget")
        members = {role: set(getattr(self, role)) for role in ROLES}
        for role in ROLES:
            twice = [i for i, times in Counter(getattr(self, role)).items() if times > 1]
            if twice:
                problems.add(
                    f"{role} set names {len(twice)} record ids more than once ({listing(twice)}); "
                    "name each once"
                )
        for one, other in itertools.combinations(ROLES, 2):
            shared = sorted(members[one] & members[other])
            if shared:
                problems.add(
                    f"{one} set and {other} set share {len(shared)} record ids "
                    f"({listing(shared)}); a record can be in one of them only: "
                    f"drop it from {other!r}"
                )
        problems.raise_if_any()

    @classmethod
    def partition(
        cls,
        ids: Iterable[str],
        forget: Iterable[str],
        *,
        holdout: Iterable[str] = (),
        test: Iterable[str] = (),
    ) -> Sets:
        """Build sets in which everything that is not named otherwise is retained.

        Args:
            ids: All training records.
            forget: The records to forget; each must be one of ``ids``.
            holdout: Records of the same source that were not trained on.
            test: Records that measure utility, not trained on either.

        Raises:
            DataError: An id to forget is unknown, or sets overlap.
        """
        everything = tuple(ids)
        wanted = tuple(forget)
        require_known(wanted, everything, "forget set")
        gone = set(wanted)
        retain = tuple(i for i in everything if i not in gone)
        return cls(forget=wanted, retain=retain, holdout=tuple(holdout), test=tuple(test))

    @property
    def train(self) -> tuple[str, ...]:
        """Ids of every record that the model was trained on: retain, then forget."""
        return self.retain + self.forget

    def digest(self) -> str:
        """Return a digest of the membership, independent of order and provenance."""
        return digest_json({role: sorted(getattr(self, role)) for role in ROLES})

    def to_json(self) -> dict[str, Any]:
        """Return plain data that ``from_json`` reads back."""
        return {role: list(getattr(self, role)) for role in ROLES} | {
            "provenance": dict(self.provenance)
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Sets:
        """Read what ``to_json`` wrote.

        Raises:
            DataError: The sets are not disjoint, or nothing is to be forgotten.
        """
        return cls(
            **{role: tuple(value.get(role, ())) for role in ROLES},
            provenance=value.get("provenance", {}),
        )


def require_known(ids: Iterable[str], known: Iterable[str], where: str) -> None:
    """Check that every id exists.

    Raises:
        DataError: Some do not; the message names the first few.
    """
    everything = set(known)
    unknown = [i for i in ids if i not in everything]
    if unknown:
        raise DataError(
            f"{where}: {len(unknown)} unknown record ids ({listing(unknown)}); "
            f"the data holds {len(everything)} ids such as {listing(sorted(everything), 3)}"
        )


def sample_ids(ids: Iterable[str], count: int, seed: int, purpose: str) -> tuple[str, ...]:
    """Draw ``count`` ids without replacement, in the order of ``ids``, as a function of the name.

    Raises:
        DataError: There are fewer than ``count``.
    """
    everything = list(ids)
    if not 0 <= count <= len(everything):
        raise DataError(f"cannot draw {count} records for {purpose!r} out of {len(everything)}")
    chosen = stream(seed, purpose).choice(len(everything), size=count, replace=False)
    return tuple(everything[i] for i in np.sort(chosen))
