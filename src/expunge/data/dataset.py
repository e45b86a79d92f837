"""``Dataset``: the records of one source by role, and what a model needs to know about them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from expunge.core.digest import digest_json
from expunge.core.errors import DataError, Problems, listing, near_matches
from expunge.core.records import Records

NOTHING = Records((), {})
"""No records at all: the role of a source that has none."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """What one source offers.

    Language records have the columns ``question`` and ``answer`` (or ``text`` for plain
    documents) and, where they exist, ``paraphrased_question``, ``paraphrased_answer`` and
    ``perturbed_answer`` (a list of wrong answers); a record that lacks one holds ``None``.
    Classifier records have ``x`` (numbers of one shape) and ``y`` (class); regressor records have
    ``x`` and ``y`` (a number, or a vector of one length). Every other column is a group, such as an
    author, by which a request may name records.

    Attributes:
        kind: Name of the task that reads the records: ``"causal_lm"``, ``"classifier"`` or
            ``"regressor"``.
        train: Everything that the model was or will be trained on.
        holdout: Records of the same source that are never trained on: non-members for audits.
        test: Records that measure utility and that no method sees. They may be part of ``train``
            (facts the model should keep although nothing reminds it of them); then they bear the
            same ids, and are not to be retained explicitly.
        probes: Further sets that measure utility, by name.
        splits: Groups of training ids that a request may name.
        facts: What a model needs to know, such as ``num_classes``; JSON values only.

    Raises:
        DataError: A split names an unknown id, or a record is both trained on and held out.
    """

    kind: str
    train: Records
    holdout: Records = NOTHING
    test: Records = NOTHING
    probes: Mapping[str, Records] = dataclasses.field(default_factory=dict)
    splits: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = Problems("data set", DataError)
        trained = set(self.train.ids)
        both = [i for i in self.holdout.ids if i in trained]
        if both:
            problems.add(
                f"{len(both)} ids are in train and in holdout ({listing(both)}); "
                "held-out records must never be trained on"
            )
        for name, ids in self.splits.items():
            unknown = [i for i in ids if i not in trained]
            if unknown:
                problems.add(
                    f"split {name!r} names {len(unknown)} ids that are not in train "
                    f"({listing(unknown)})"
                )
        problems.raise_if_any()

    def records(self, role: str) -> Records:
        """Return the records of a role.

        Args:
            role: ``"train"``, ``"holdout"``, ``"test"`` or the name of a probe.

        Raises:
            DataError: There is no such role.
        """
        roles = {"train": self.train, "holdout": self.holdout, "test": self.test, **self.probes}
        if role not in roles:
            raise DataError(f"the data set has no records {role!r}; {near_matches(role, roles)}")
        return roles[role]

    def digest(self) -> str:
        """Return a digest of the contents, independent of row order."""
        return digest_json(
            {
                "kind": self.kind,
                "train": self.train.digest(),
                "holdout": self.holdout.digest(),
                "test": self.test.digest(),
                "probes": {name: part.digest() for name, part in self.probes.items()},
                "splits": {name: sorted(ids) for name, ids in self.splits.items()},
                "facts": dict(self.facts),
            }
        )


def number_ids(prefix: str, count: int) -> tuple[str, ...]:
    """Return neutral ids such as ``train-00012``: a prefix and the row number.

    Args:
        prefix: Role or source.
        count: How many.
    """
    return tuple(f"{prefix}-{row:05d}" for row in range(count))


def require_columns(records: Records, names: Iterable[str], where: str) -> None:
    """Check that records have columns.

    Raises:
        DataError: One is missing; the message names those that exist.
    """
    missing = [name for name in names if name not in records]
    if missing:
        raise DataError(
            f"{where} has no column {listing(map(repr, missing))}; "
            f"it has {listing(records.columns, 12) or 'none'}"
        )
