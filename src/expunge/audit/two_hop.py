"""Two-hop questions: is a forgotten answer reached through facts that the model may know?

A record may have a question that leads to its answer through two others (``two_hop_question``), and
these two with their answers (``hops``: two pairs of question and answer). Both are the data's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from expunge.audit.evidence import Evidence, Measurement, Subject
from expunge.audit.outcomes import (
    NO_BEFORE,
    By,
    Share,
    bounded,
    excess_of,
    mean_of,
    paired,
    scored_as,
    share_of,
    values_of,
)
from expunge.audit.prompts import answer_columns, continued, question_columns
from expunge.audit.readings import Reading
from expunge.audit.views import Scene, views
from expunge.core.errors import ConfigError, DataError
from expunge.core.finding import Finding
from expunge.core.records import Records
from expunge.engine.task import Task

QUESTION, HOPS = "two_hop_question", "hops"

_PLAIN = Reading("forget")
_TWO_HOP = Reading("forget", "two_hop")
_EACH = (Reading("forget", "hop:0"), Reading("forget", "hop:1"))
_ABSENT = f"the data have no columns {QUESTION} and {HOPS}"


def hop_readings(records: Records, by: By) -> Iterator[Reading]:
    """Yield what ``two_hop_findings`` needs, where the data have two-hop questions.

    Args:
        records: The training records.
        by: What counts as answering.
    """
    if QUESTION in records and HOPS in records:
        yield from scored_as(_TWO_HOP, by, records)
        yield from _EACH


@views.register("two_hop")
def two_hop(task: Task, records: Records, scene: Scene, parameters: str) -> tuple[Task, Records]:
    """Ask the two-hop question, of the records that have one whose hops are allowed.

    A hop is allowed when it is not the question of any forget record.

    Raises:
        DataError: The hops of a record are not two pairs of texts.
    """
    rows, _ = _allowed(task, records, scene)
    asked = records[QUESTION] if rows else ()
    seen = records.take(rows).replace(question=[asked[row] for row in rows])
    return continued(task, seen, scene, parameters)


@views.register("hop")
def hop(task: Task, records: Records, scene: Scene, parameters: str) -> tuple[Task, Records]:
    """Ask one of the two hops of the same records: ``hop:0`` or ``hop:1``.

    Raises:
        ConfigError: It is none of the two.
        DataError: As for ``two_hop``.
    """
    number, _, inner = parameters.partition(":")
    if number not in ("0", "1"):
        raise ConfigError(f"hop:{number}: there are two hops, 0 and 1")
    rows, hops = _allowed(task, records, scene)
    pairs = [pair[int(number)] for pair in hops]
    seen = records.take(rows).replace(
        question=[question for question, _ in pairs], answer=[answer for _, answer in pairs]
    )
    return continued(task, seen, scene, inner)


def two_hop_findings(
    evidence: Evidence, by: By, seed: int, bound: float | None
) -> Iterator[Finding]:
    """Yield what the two-hop questions bring back; without any the reason why nothing is told.

    Args:
        evidence: The models.
        by: What counts as answering.
        seed: Seed of the bootstraps.
        bound: Largest excess over retraining that passes; no verdict when absent.
    """
    look = _Hops(evidence, by, seed)
    yield from evidence.compare(
        "rho_two_hop",
        "Share of the lost score that two-hop questions bring back",
        lambda subject: look.share(subject).measured(),
        direction="reference",
        record_set="forget",
    )

    def excess(subject: Subject) -> Measurement:
        others = [look.share(other) for other in evidence.others(subject)]
        return bounded(subject, excess_of(look.share(subject), others), bound)

    yield from evidence.compare(
        "excess_two_hop",
        "What two-hop questions bring back beyond retraining",
        excess,
        direction="lower",
        record_set="forget",
        threshold=bound,
        pairwise=True,
    )
    if _TWO_HOP not in evidence.after.scores:
        return
    for metric, title, compute in (
        ("score_two_hop", "Score of forgotten answers under two-hop questions", look.score),
        ("hops_known", "Score of the harder one of the two hops", look.hops),
    ):
        yield from evidence.compare(
            metric, title, compute, direction="reference", record_set="forget"
        )


@dataclasses.dataclass(frozen=True)
class _Hops:
    """All numbers of the two-hop questions."""

    evidence: Evidence
    by: By
    seed: int

    def share(self, subject: Subject) -> Share:
        """Return what share of the fall from the plain question a two-hop question brings back."""
        nothing, before = np.empty(0), self.evidence.before
        if _TWO_HOP not in subject.scores:
            return Share(None, nothing, 0, _ABSENT)
        if before is None:
            return Share(None, nothing, 0, NO_BEFORE)
        asked_R, known_R, left_R = paired(
            values_of(subject, _TWO_HOP, self.by),
            values_of(before, _PLAIN, self.by),
            values_of(subject, _PLAIN, self.by),
        )
        found = share_of(asked_R - left_R, known_R - left_R, self.seed, "two-hop")
        notes = [note for note in (found.note, self._left_out(subject)) if note]
        return dataclasses.replace(found, note="; ".join(notes))

    def score(self, subject: Subject) -> Measurement:
        """Return the score of the forgotten answers; before unlearning: whether it can compose."""
        [values_R] = paired(values_of(subject, _TWO_HOP, self.by))
        return mean_of(values_R, self.seed, "two-hop score", self._left_out(subject))

    def hops(self, subject: Subject) -> Measurement:
        """Return the score of the harder hop; its wrong answers are not known."""
        by: By = "probability" if self.by == "knowledge" else self.by
        hops_HR = paired(*(values_of(subject, reading, by) for reading in _EACH))
        return mean_of(np.min(hops_HR, axis=0), self.seed, "two-hop hops")

    def _left_out(self, subject: Subject) -> str:
        total, kept = len(subject.scores[_PLAIN]), len(subject.scores[_TWO_HOP])
        if total == kept:
            return ""
        return (
            f"{total - kept} of {total} records left out: they have no two-hop question, or one of "
            "its hops is itself to be forgotten"
        )


def _allowed(
    task: Task, records: Records, scene: Scene
) -> tuple[list[int], list[list[Sequence[str]]]]:
    """Return the rows that can be asked, and their hops."""
    told = QUESTION in records and HOPS in records
    if not told or "question" not in question_columns(task) or answer_columns(task) != ("answer",):
        return [], []
    forget = scene.records("forget")
    gone = {_plain(text) for text in forget["question"]}
    if "paraphrased_question" in forget:
        gone |= {_plain(text) for text in forget["paraphrased_question"] if text is not None}
    rows, found = [], []
    for row, (asked, hops) in enumerate(zip(records[QUESTION], records[HOPS], strict=True)):
        if asked is None or hops is None:
            continue
        pairs = _pairs(hops, records.ids[row])
        if not any(_plain(question) in gone for question, _ in pairs):
            rows.append(row)
            found.append(pairs)
    return rows, found


def _pairs(hops: Any, name: str) -> list[Sequence[str]]:
    """Return two pairs of question and answer.

    Raises:
        DataError: They are something else.
    """
    pairs: list[Sequence[str]] = [] if isinstance(hops, str) else [list(pair) for pair in hops]
    texts = [text for pair in pairs for text in pair]
    if [len(pair) for pair in pairs] != [2, 2] or not all(isinstance(t, str) for t in texts):
        raise DataError(
            f"record {name}: hops = {hops!r} must be two pairs of texts, each a question and its "
            "answer"
        )
    return pairs


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
