"""How well each record is answered under any view: the values that prompt audits compare.

Values go by record id, so that a record which a view leaves out never shifts another's value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from expunge.audit.evidence import Measurement, Subject
from expunge.audit.readings import PERTURBED, Reading, num_perturbed
from expunge.audit.recovery import (
    JUDGED_RECORDS,
    LEAST_GAP,
    LEAST_RECORDS,
    interval_of,
    no_leak_bound,
    record_scores,
    recovery,
    references_told,
)
from expunge.audit.recovery import By as By
from expunge.audit.stats import RESAMPLES, bootstrap_means, mean_interval
from expunge.core.records import Records

Values = Mapping[str, float]
"""One value by record id."""

LEAST = LEAST_RECORDS
"""Records below which no number is given."""

NOT_FALLEN = (
    f"without the attack the score lies less than {LEAST_GAP} below that of the model before "
    "unlearning: nothing was forgotten, or nothing was known"
)
NO_BEFORE = "there is no model before unlearning to compare with"
NO_REFERENCE = "no other retrained model to compare with"


def beneath(view: str, inner: str) -> str:
    """Return the name of a view whose prompts are those of ``view`` and whose answers ``inner``'s.

    Args:
        view: A view of prompts, or ``"answer"``.
        inner: A view of answers, such as ``"perturbed:0"``.
    """
    return inner if view == "answer" else f"{view}:{inner}"


def scored_as(reading: Reading, by: By, records: Records) -> Iterator[Reading]:
    """Yield the readings that ``values_of`` needs.

    Args:
        reading: The true answers under a view of prompts.
        by: What is compared.
        records: Records that tell how many wrong answers there are.
    """
    yield reading
    if by == "knowledge":
        for place in range(num_perturbed(records)):
            yield _wrong(reading, place)


def values_of(subject: Subject, reading: Reading, by: By) -> dict[str, float]:
    """Return how well each record of a reading is answered.

    Args:
        subject: The model.
        reading: The true answers under a view.
        by: ``"probability"``: of the true answer per token, the geometric mean; ``"exact"``: 1
            where every token of it is the model's first choice, else 0; ``"knowledge"``: 1 where
            it is more likely per token than every wrong answer, for the records that have some.
    """
    scores = subject.scores.get(reading)
    if scores is None or not len(scores):
        return {}
    if by != "knowledge":
        return dict(zip(scores.ids, record_scores(subject, reading, by).tolist(), strict=True))
    true = dict(zip(scores.ids, scores.loss_R.tolist(), strict=True))
    lowest: dict[str, float] = {}
    for place in range(len(subject.scores)):
        wrong = subject.scores.get(_wrong(reading, place))
        if wrong is None:
            break
        for record_id, loss in zip(wrong.ids, wrong.loss_R.tolist(), strict=True):
            lowest[record_id] = min(loss, lowest.get(record_id, loss))
    return {i: float(loss < lowest[i]) for i, loss in true.items() if i in lowest}


def paired(*columns: Values) -> list[np.ndarray]:
    """Return the values of the records that all columns have, in the order of the first."""
    common = [i for i in columns[0] if all(i in column for column in columns)]
    return [np.array([column[i] for i in common], dtype=np.float64) for column in columns]


def mean_of(values_R: np.ndarray, seed: int, purpose: str, note: str = "") -> Measurement:
    """Return a mean with its interval; none below 20 records.

    Args:
        values_R: One value per record, -1..1.
        seed: The run's seed.
        purpose: Names the random stream.
        note: What to say beside it.
    """
    n = len(values_R)
    if n < LEAST:
        return too_few(n)
    interval = mean_interval(values_R, seed, purpose, low=-1.0)
    return Measurement(float(values_R.mean()), n, interval, note)


@dataclasses.dataclass(frozen=True, eq=False)
class Share:
    """A mean as a share of another one.

    Attributes:
        value: The share; ``None`` where the whole is below 0.1, or on fewer than 20 records.
        draws: Its bootstrap draws, paired between models with the same records.
        n: Records it rests on.
        note: Why there is none.
        least: How far it may be off where no draw differs; see ``interval_of``.
    """

    value: float | None
    draws: np.ndarray
    n: int
    note: str = ""
    least: float = 0.0

    def measured(self) -> Measurement:
        """Return the share with the interval of its draws."""
        interval = interval_of(self.draws, self.least) if len(self.draws) else None
        return Measurement(self.value, self.n, interval, self.note)


def share_of(part_R: np.ndarray, whole_R: np.ndarray, seed: int, purpose: str) -> Share:
    """Return what share of a fall comes back.

    Args:
        part_R: How much of each record's score comes back.
        whole_R: How far each record's score fell.
        seed: The run's seed.
        purpose: Names the random stream; models under one purpose are resampled alike.
    """
    n, nothing = len(part_R), np.empty(0)
    if n < LEAST:
        return Share(None, nothing, n, too_few(n).note)
    value = recovery(float(part_R.mean()), 0.0, float(whole_R.mean()))
    if value is None:
        return Share(None, nothing, n, NOT_FALLEN)
    parts, wholes = (bootstrap_means(one_R, seed, purpose) for one_R in (part_R, whole_R))
    draws = np.divide(parts, wholes, where=wholes > 0, out=np.full(RESAMPLES, np.nan))
    least = no_leak_bound(n, 0.975) / float(whole_R.mean())
    return Share(value, draws, n, least=least)


def excess_of(own: Share, others: list[Share]) -> Measurement:
    """Return how much more comes back than in retrained models, with a paired interval.

    There is no interval where fewer than half of the references have a share.

    Args:
        own: The share of one model.
        others: The shares of the references.
    """
    known = [other for other in others if other.value is not None]
    if own.value is None:
        return Measurement(None, own.n, note=own.note)
    if not known:
        why = next((other.note for other in others), NO_REFERENCE)
        return Measurement(None, own.n, note=why)
    value = own.value - float(np.mean([other.value for other in known]))
    draws = own.draws - np.mean([one.draws for one in known], axis=0)
    enough = 2 * len(known) >= len(others)
    interval = interval_of(draws, own.least) if enough else None
    return Measurement(value, own.n, interval, references_told(len(known), len(others)))


def bounded(subject: Subject, found: Measurement, bound: float | None) -> Measurement:
    """Return a number that a bound is set on; below 50 records the bound is not judged.

    Args:
        subject: The model; only the one after unlearning is judged.
        found: The number.
        bound: The bound, if any.
    """
    if bound is None or subject.role != "after" or found.value is None:
        return found
    if found.n < JUDGED_RECORDS:
        why = f"{found.n} records; a bound is judged on {JUDGED_RECORDS} or more"
    elif found.interval is None:
        why = "no interval, so the bound is not judged"
    else:
        return found
    note = f"{found.note}; {why}" if found.note else why
    return dataclasses.replace(found, verdict="inconclusive", note=note)


def too_few(n: int) -> Measurement:
    """Return that there is no number, because it would rest on fewer than 20 records."""
    return Measurement(None, n, note=f"{n} records; at least {LEAST} are needed")


def _wrong(reading: Reading, place: int) -> Reading:
    return dataclasses.replace(
        reading, view=beneath(reading.view, f"{PERTURBED}{place}"), max_new_tokens=0, measures=()
    )
