"""``Finding``: one audited number with everything needed to judge it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from expunge.core.digest import digest_json

Direction = Literal["higher", "lower", "reference", "none"]
Verdict = Literal["pass", "fail", "inconclusive", "not_applicable"]
Subject = Literal["before", "after", "reference", "part"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """A confidence interval.

    Attributes:
        low: Lower end.
        high: Upper end.
        level: Nominal coverage, such as 0.95.
        method: How it was made, such as ``"clopper-pearson"`` or ``"bootstrap"``.
    """

    low: float
    high: float
    level: float = 0.95
    method: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """Where retrained models stand on the same number, so that a gap can be read.

    Attributes:
        values: The number of each retrained reference, in seed order.
        gap: Signed: the finding's value minus the mean of ``values``.
        noise_floor: The largest distance between two references; ``None`` with fewer than two.
    """

    values: tuple[float, ...]
    gap: float
    noise_floor: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """One number that an audit found.

    Attributes:
        audit: Registered name of the audit.
        metric: Name of the number, such as ``"forget_quality"``.
        title: The number in a reader's words.
        subject: Which model: before unlearning, after, a retrained reference, or a part of the
            model after unlearning that runs alone.
        value: The number; ``None`` when it could not be computed (then ``note`` says why).
        n: How many records it rests on.
        direction: Which way is better; ``"reference"`` means closest to retraining.
        unit: Unit of the value, such as ``"nats"``, ``"%"`` or ``""``.
        record_set: The records it was computed on, such as ``"forget"``.
        seed: The subject's seed where several exist.
        part: Name of the part.
        interval: Confidence interval, where one exists.
        reference: Retrained references on the same number.
        threshold: Bound fixed before forgetting, with the direction deciding the side.
        verdict: Outcome against the threshold.
        error: Chance that the verdict is wrong, where the audit knows it and no interval tells it.
        version: Version of the metric; grows with any change of meaning.
        model: Digest of the model.
        sets: Digest of the record sets.
        note: One sentence on what the number does not show, or why it is missing.

    Raises:
        ValueError: A number is NaN or infinite.
    """

    audit: str
    metric: str
    title: str
    subject: Subject
    value: float | None
    n: int
    direction: Direction
    unit: str = ""
    record_set: str = ""
    seed: int | None = None
    part: str = ""
    interval: Interval | None = None
    reference: Reference | None = None
    threshold: float | None = None
    verdict: Verdict = "not_applicable"
    error: float | None = None
    version: int = 1
    model: str = ""
    sets: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        name = f"finding {self.audit}.{self.metric}"
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"{name} is {self.value}; use None and a note")
        ends = (self.interval.low, self.interval.high) if self.interval else ()
        references = (*self.reference.values, self.reference.gap) if self.reference else ()
        if not all(math.isfinite(x) for x in (*ends, *references, self.threshold or 0.0)):
            raise ValueError(f"{name} has an interval, reference or threshold that is not finite")

    def digest(self) -> str:
        """Return the digest of the finding's canonical JSON."""
        return digest_json(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return plain data that ``from_json`` reads back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Finding:
        """Read what ``to_json`` wrote."""
        data = dict(value)
        if data.get("interval"):
            data["interval"] = Interval(**data["interval"])
        if data.get("reference"):
            reference = dict(data["reference"])
            data["reference"] = Reference(**{**reference, "values": tuple(reference["values"])})
        return cls(**data)


def judge(
    value: float | None, interval: Interval | None, threshold: float, direction: Direction
) -> Verdict:
    """Return the verdict of a number against a bound that was fixed beforehand.

    With an interval the whole interval must lie on the good side to pass and on the bad side to
    fail; in between the verdict is ``inconclusive``, never rounded up.

    Args:
        value: The number; ``None`` gives ``inconclusive``.
        interval: Its confidence interval, if any.
        threshold: The bound.
        direction: ``"higher"``: at least the bound passes; ``"lower"``: at most the bound passes.

    Raises:
        ValueError: The direction has no side.
    """
    if direction not in ("higher", "lower"):
        raise ValueError(f"a bound needs direction 'higher' or 'lower', not {direction!r}")
    if value is None:
        return "inconclusive"
    low, high = (interval.low, interval.high) if interval else (value, value)
    if direction == "lower":
        low, high, threshold = -high, -low, -threshold
    if low >= threshold:
        return "pass"
    return "fail" if high < threshold else "inconclusive"
