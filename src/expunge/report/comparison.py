"""``Comparison``: one number before, after and of retrained models, side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from expunge.core.errors import IntegrityError
from expunge.core.finding import Finding, Verdict

SET_ORDER = ("forget", "retain", "holdout", "test")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One audited number of every model.

    Attributes:
        after: The model after unlearning.
        before: The model before it.
        references: Retrained models, in seed order; those without the number are left out.
        parts: Parts of a composite after unlearning, each alone.
    """

    after: Finding
    before: Finding | None
    references: tuple[Finding, ...]
    parts: tuple[Finding, ...] = ()

    @property
    def key(self) -> tuple[str, str, str]:
        """Audit, number and record set, which name it."""
        return self.after.audit, self.after.metric, self.after.record_set

    @property
    def label(self) -> str:
        """The number's title without what stands in parentheses."""
        return self.after.title.partition(" (")[0]

    @property
    def retrained(self) -> float | None:
        """Mean of the references."""
        values = [found.value for found in self.references if found.value is not None]
        return sum(values) / len(values) if values else None

    @property
    def gap(self) -> float | None:
        """Signed distance of the model after unlearning to the references' mean."""
        return self.after.reference.gap if self.after.reference else None

    @property
    def noise_floor(self) -> float | None:
        """Largest distance between two references; ``None`` with fewer than two."""
        return self.after.reference.noise_floor if self.after.reference else None

    @property
    def within_noise(self) -> bool:
        """Whether the gap is no larger than the distance between two retrained models."""
        if self.gap is None or self.noise_floor is None:
            return False
        return abs(self.gap) <= self.noise_floor


def comparisons(findings: Iterable[Finding]) -> list[Comparison]:
    """Group findings by number, in the order in which the audits report them.

    Raises:
        IntegrityError: A number lacks the model after unlearning.
    """
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for found in findings:
        groups.setdefault((found.audit, found.metric, found.record_set), []).append(found)
    compared = []
    for (audit, metric, _), group in groups.items():
        after = _first(group, "after")
        if after is None:
            raise IntegrityError(
                f"findings: {audit}.{metric} has no value of the model after forgetting; "
                "run the audit again"
            )
        references = tuple(
            found for found in group if found.subject == "reference" and found.value is not None
        )
        parts = tuple(found for found in group if found.subject == "part")
        compared.append(Comparison(after, _first(group, "before"), references, parts))
    return compared


def by_record_set(compared: Sequence[Comparison]) -> dict[str, list[Comparison]]:
    """Group numbers by record set: forget, retain, holdout, test, further sets, the whole model."""
    names = {one.after.record_set for one in compared}
    further = sorted(names - {*SET_ORDER, ""})
    order = [name for name in (*SET_ORDER, *further, "") if name in names]
    return {name: [one for one in compared if one.after.record_set == name] for name in order}


def folded(
    compared: Sequence[Comparison], shown: Sequence[Comparison]
) -> dict[str, dict[str, list[Comparison]]]:
    """Group the numbers that are not shown at once by audit, then by record set."""
    known = {one.key for one in shown}
    rest = [one for one in compared if one.key not in known]
    audits = dict.fromkeys(one.after.audit for one in rest)
    return {
        audit: by_record_set([one for one in rest if one.after.audit == audit]) for audit in audits
    }


def remarks(compared: Iterable[Comparison]) -> dict[str, list[str]]:
    """Return what some numbers do not show: each remark with the numbers that it is about."""
    told: dict[str, list[str]] = {}
    for one in compared:
        if one.after.note:
            told.setdefault(one.after.note, []).append(one.label)
    return told


def overall(compared: Iterable[Comparison]) -> Verdict:
    """Return the verdict over all bounds: the worst one; ``not_applicable`` without any."""
    verdicts = {one.after.verdict for one in compared}
    order: tuple[Verdict, ...] = ("fail", "inconclusive", "pass")
    return next((verdict for verdict in order if verdict in verdicts), "not_applicable")


def _first(group: Sequence[Finding], subject: str) -> Finding | None:
    return next((found for found in group if found.subject == subject), None)
