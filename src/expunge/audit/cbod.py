"""C-BOD: are right answers tied to the very words in which a benchmark asks?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from expunge.audit.audit import audit
from expunge.audit.evidence import Evidence, Measurement, Subject
from expunge.audit.multiplicity import benjamini_hochberg
from expunge.audit.outcomes import By, bounded, scored_as, values_of
from expunge.audit.prompts import PASSED, UNCHANGED, rephraser_words
from expunge.audit.readings import Reading, num_perturbed
from expunge.audit.recovery import JUDGED_RECORDS
from expunge.audit.stats_paired import (
    McNemar,
    Pairs,
    Test,
    count_pairs,
    mcnemar,
    minimal_detectable,
    newcombe,
)
from expunge.core.config import config
from expunge.core.finding import Direction, Finding, Interval
from expunge.core.run import Run
from expunge.core.sets import ROLES
from expunge.data.dataset import Dataset

FEW_ITEMS = 25
"""Items below which a test is called underpowered."""
FEW_DISCORDANT = 10
"""Items answered differently below which it is, too."""
MOST_REGAINED = 0.1
"""Share of items that other words may bring back unseen where so few were answered differently."""
MUCH_UNCHANGED = 0.2
"""Share of items as they were above which a number says so."""


@config
class CbodConfig:
    """Settings of the C-BOD audit."""

    record_sets: tuple[str, ...] = ("forget", "retain", "test")
    """Record sets to ask twice, probes among them; those that the data lack are left out."""
    rephraser: str = "both"
    """Registered rephraser; a file of pairs may follow ``file`` behind ``=``."""
    mu: Annotated[float, Field(ge=0)] = 0.5
    """Its strength; not comparable between rephrasers."""
    by: Literal["auto", "exact", "knowledge"] = "auto"
    """What is right: ``exact``: every token of the answer is the first choice; ``knowledge``: the
    true answer is likelier per token than every wrong one; ``auto``: knowledge where a set has
    wrong answers, else exact."""
    test: Test | None = None
    """McNemar's test: ``chi2``, ``chi2_cc``, ``exact`` or ``midp``; when absent, exact below 25
    discordant pairs and mid-p from there on."""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Level of the test; a smaller p-value raises the flag."""
    max_records: Annotated[int, Field(ge=0)] = 300
    """Most records of each set but the forget set; 0 takes all."""
    max_loss: float | None = None
    """Largest loss by rewording, in points, that passes on sets to be kept; no verdict when
    absent."""
    max_regained: float | None = None
    """Largest gain by rewording, in points, that passes on the forget set; no verdict when
    absent."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """One set of items, asked as it is and in other words.

    Attributes:
        first: Whether each item was right as it is; accepted items only.
        second: Whether it was right in other words.
        changed: Whether its wording is another one.
        strict: Whether its wording passed the stricter gate too, or is as it was.
        rejected: Items whose rewording the gate rejected; they count nowhere else.
    """

    first: np.ndarray
    second: np.ndarray
    changed: np.ndarray
    strict: np.ndarray
    rejected: int

    @property
    def pairs(self) -> Pairs:
        """Counts over accepted items."""
        return count_pairs(self.first, self.second)

    @property
    def effective_rate(self) -> float | None:
        """Share of the reworded items that the gate accepted; ``None``: none was reworded."""
        changed = int(self.changed.sum())
        return changed / (changed + self.rejected) if changed + self.rejected else None


def _reads(config: CbodConfig, dataset: Dataset) -> Iterator[Reading]:
    for name in config.record_sets:
        if name not in (*ROLES, *dataset.probes):
            continue
        records = dataset.records("train" if name in ("forget", "retain") else name)
        if not len(records):
            continue
        by: By = "exact"
        if config.by == "knowledge" or (config.by == "auto" and num_perturbed(records)):
            by = "knowledge"
        yield from scored_as(_plain(config, name), by, records)
        yield from scored_as(_reworded(config, name), by, records)


@audit(
    "cbod",
    kinds={"causal_lm"},
    reads=_reads,
    source="C-BOD (Cohen-Inger et al., 2025), arXiv 2502.07445",
)
def cbod(evidence: Evidence, config: CbodConfig, run: Run) -> list[Finding]:
    """Does what the model gets right depend on the very words of the question?

    Every item is asked twice, as it is and in other words; its answers are not rephrased. On a
    benchmark (retained, test and probe records) right answers that other words undo point to a
    model that learned the test. On the forget set the same numbers check the audit itself: wrong
    answers that other words undo mean that only the wording was forgotten.

    Numbers per set, with b: right as it is only, c: right in other words only: both accuracies; b,
    c; ``delta_count`` b - c; ``percent`` of the items right as they are; ``points`` of all items,
    with Newcombe's interval; McNemar's p; ``overfit_flag``, 1 where p is below alpha and b above c,
    once more on the items that a stricter gate accepts (``overfit_flag_strict``), and once more
    with p adjusted over all sets after Benjamini and Hochberg (``overfit_flag_adjusted``). On the
    forget set ``forgetting_holds`` is 0 where c is significantly above b, and else 1; it is left
    open below 50 items, and where fewer than 10 were answered differently and the interval reaches
    beyond a tenth of all items regained. ``unchanged``: items
    that the rephraser left as they were, which are ties; ``rejected``: items that the gate
    rejected, excluded everywhere else; ``effective_rate``: share of reworded items that the gate
    accepted.

    It cannot tell a rewording that changed the meaning from a model that learned the test: compare
    with the retrained models, which meet the same rewordings. Better models can lose more, since
    they have more to lose. Nothing is generated, so no answer fails to parse. Cost: one more
    scoring pass over each set and its wrong answers.

    Source: C-BOD (Cohen-Inger et al., 2025), sections 3 and 4, with b - c for its delta, as in its
        tables; exact and mid-p tests after Fagerland, Lydersen and Laake (2013).
    """
    del run
    words = rephraser_words(config.rephraser, config.mu)
    asked = [
        name
        for name in dict.fromkeys(config.record_sets)
        if _plain(config, name) in evidence.after.scores
    ]
    outcomes = {
        (subject, name): outcome_of(subject, _plain(config, name), _reworded(config, name), config)
        for subject in evidence
        for name in asked
    }
    tests = {
        key: mcnemar(found.pairs.b, found.pairs.c, config.test)
        for key, found in outcomes.items()
        if len(found.first)
    }
    adjusted = {}
    for subject in evidence:
        own = [tests[subject, name].p if (subject, name) in tests else None for name in asked]
        for name, p in zip(asked, benjamini_hochberg(own), strict=True):
            adjusted[subject, name] = p
    findings = []
    for name in asked:
        findings += _Set(evidence, config, name, words, outcomes, tests, adjusted).findings()
    return findings


def outcome_of(subject: Subject, plain: Reading, reworded: Reading, config: CbodConfig) -> Outcome:
    """Return how one model did on one set, as it is and in other words.

    Args:
        subject: The model.
        plain: The set as it is.
        reworded: The set in other words, with the measure ``rephrasing``.
        config: What is right.
    """
    by: By = "exact" if config.by == "exact" else "knowledge"
    first = values_of(subject, plain, by)
    if config.by == "auto" and not first:
        by = "exact"
        first = values_of(subject, plain, by)
    second = values_of(subject, reworded, by)
    scores = subject.scores.get(reworded)
    marks = dict(zip(scores.ids, scores.measured["rephrasing"], strict=True)) if scores else {}
    common = [i for i in first if i in second]
    mark_R = np.array([marks[i] for i in common], dtype=np.float64)
    return Outcome(
        first=np.array([first[i] for i in common]) > 0,
        second=np.array([second[i] for i in common]) > 0,
        changed=mark_R != UNCHANGED,
        strict=mark_R != PASSED,
        rejected=sum(i not in marks for i in first),
    )


_OfOutcome = Callable[[Outcome], float | None]


class _Set:
    """All numbers of one record set."""

    def __init__(
        self,
        evidence: Evidence,
        config: CbodConfig,
        name: str,
        words: str,
        outcomes: dict[tuple[Subject, str], Outcome],
        tests: dict[tuple[Subject, str], McNemar],
        adjusted: dict[tuple[Subject, str], float | None],
    ) -> None:
        self.evidence, self.config, self.name, self.words = evidence, config, name, words
        self.outcomes, self.tests, self.adjusted = outcomes, tests, adjusted

    def findings(self) -> list[Finding]:
        """Return every number of every model."""
        kept: Direction = "reference" if self.name == "forget" else "higher"
        side: Direction = "reference" if self.name == "forget" else "lower"
        found = self._points()
        numbers: tuple[tuple[str, str, _OfOutcome, Direction], ...] = (
            ("accuracy_original", "Right answers to the questions as they are", _first, kept),
            ("accuracy_rephrased", "Right answers to the questions in other words", _second, kept),
            ("b", "Right as it is, wrong in other words", lambda o: o.pairs.b, "none"),
            ("c", "Wrong as it is, right in other words", lambda o: o.pairs.c, "none"),
            ("delta_count", "Net right answers lost by other words", _delta, side),
            ("percent", "The same in percent of right answers", _percent, side),
            ("effective_rate", "Reworded questions that passed the gate", _effective, "none"),
            ("unchanged", "Questions that stayed as they were", _unchanged, "none"),
            ("rejected", "Rewordings that the gate rejected", lambda o: o.rejected, "none"),
        )
        for metric, title, compute, direction in numbers:
            found += self._number(metric, title, compute, direction)
        found += self._of_test("p", "McNemar's p", lambda key: self.tests[key].p)
        found += self._of_test("p_adjusted", "McNemar's p, adjusted", lambda k: self.adjusted[k])
        found += self._of_test("overfit_flag", "Tied to the wording (1: yes)", self._flag)
        found += self._of_test(
            "overfit_flag_adjusted", "Tied to the wording, all sets together", self._flag_adjusted
        )
        found += self._of_test(
            "overfit_flag_strict", "Tied to the wording, stricter gate", self._flag_strict
        )
        if self.name == "forget":
            found += self._of_test(
                "forgetting_holds", "Forgetting holds in other words (1: yes)", self._holds
            )
        return found

    def _points(self) -> list[Finding]:
        """Return the loss in points; on the forget set what is regained is judged."""
        found = self._judged(
            "points",
            "Net right answers lost by other words, in points",
            1,
            None if self.name == "forget" else self.config.max_loss,
        )
        if self.name == "forget":
            found += self._judged(
                "regained",
                "Net right answers regained by other words, in points",
                -1,
                self.config.max_regained,
            )
        return found

    def _judged(self, metric: str, title: str, sign: int, bound: float | None) -> list[Finding]:
        def compute(subject: Subject) -> Measurement:
            outcome = self.outcomes[subject, self.name]
            if not len(outcome.first):
                return self._nothing()
            pairs = outcome.pairs
            interval = newcombe(pairs)
            ends = sorted(100 * sign * end for end in (interval.low, interval.high))
            scaled = Interval(low=ends[0], high=ends[1], method=interval.method)
            value = sign * pairs.points
            found = Measurement(value, pairs.n, scaled, self._warnings(outcome))
            return bounded(subject, found, bound)

        return self.evidence.compare(
            metric,
            title,
            compute,
            direction="lower",
            unit="points",
            record_set=self.name,
            threshold=bound,
        )

    def _number(
        self,
        metric: str,
        title: str,
        compute: _OfOutcome,
        direction: Direction,
    ) -> list[Finding]:
        def measured(subject: Subject) -> Measurement:
            outcome = self.outcomes[subject, self.name]
            if not len(outcome.first):
                return self._nothing()
            value = compute(outcome)
            note = "nothing was right, or nothing was reworded" if value is None else ""
            return Measurement(value, len(outcome.first), note=note)

        return self.evidence.compare(
            metric, title, measured, direction=direction, record_set=self.name
        )

    def _of_test(
        self, metric: str, title: str, compute: Callable[[tuple[Subject, str]], float | None]
    ) -> list[Finding]:
        def measured(subject: Subject) -> Measurement:
            key = (subject, self.name)
            if key not in self.tests:
                return self._nothing()
            outcome, test = self.outcomes[key], self.tests[key]
            value = compute(key)
            note = f"{test.test} test, {self._warnings(outcome)}"
            if value is None:
                note += "; too few questions to tell"
            return Measurement(value, len(outcome.first), note=note)

        return self.evidence.compare(
            metric, title, measured, direction="none", record_set=self.name
        )

    def _flag(self, key: tuple[Subject, str]) -> float:
        return float(self.tests[key].favours_first(self.config.alpha))

    def _flag_adjusted(self, key: tuple[Subject, str]) -> float:
        p, test = self.adjusted[key], self.tests[key]
        return float(p is not None and p < self.config.alpha and test.b > test.c)

    def _flag_strict(self, key: tuple[Subject, str]) -> float | None:
        outcome = self.outcomes[key]
        if not outcome.strict.any():
            return None
        pairs = count_pairs(outcome.first[outcome.strict], outcome.second[outcome.strict])
        test = mcnemar(pairs.b, pairs.c, self.config.test)
        return float(test.favours_first(self.config.alpha))

    def _holds(self, key: tuple[Subject, str]) -> float | None:
        test, pairs = self.tests[key], self.outcomes[key].pairs
        if test.p < self.config.alpha and test.c > test.b:
            return 0.0
        few = test.b + test.c < FEW_DISCORDANT and -newcombe(pairs).low > MOST_REGAINED
        return None if pairs.n < JUDGED_RECORDS or few else 1.0

    def _nothing(self) -> Measurement:
        return Measurement(None, 0, note=f"no question was left to compare; {self.words}")

    def _warnings(self, outcome: Outcome) -> str:
        """Return the rephraser, and what makes a number weak."""
        pairs, told = outcome.pairs, [self.words]
        m = pairs.b + pairs.c
        if pairs.n < FEW_ITEMS or m < FEW_DISCORDANT:
            least = minimal_detectable(m, self.config.alpha, self.config.test)
            needed = "is no difference" if least is None else f"is b - c of {least} or more"
            told.append(
                f"underpowered: {pairs.n} questions, {m} answered differently; significant {needed}"
            )
        unchanged = _unchanged(outcome)
        if unchanged > MUCH_UNCHANGED:
            told.append(f"{100 * unchanged:.0f} % of the questions stayed as they were")
        return "; ".join(told)


def _first(outcome: Outcome) -> float:
    return float(outcome.first.mean())


def _second(outcome: Outcome) -> float:
    return float(outcome.second.mean())


def _delta(outcome: Outcome) -> float:
    return float(outcome.pairs.delta)


def _percent(outcome: Outcome) -> float | None:
    return outcome.pairs.percent_of_correct


def _effective(outcome: Outcome) -> float | None:
    return outcome.effective_rate


def _unchanged(outcome: Outcome) -> float:
    return float(1 - outcome.changed.mean())


def _plain(config: CbodConfig, name: str) -> Reading:
    return Reading(name, limit=0 if name == "forget" else config.max_records)


def _reworded(config: CbodConfig, name: str) -> Reading:
    view = f"rephrased:{config.rephraser}:{config.mu:g}"
    return dataclasses.replace(_plain(config, name), view=view, measures=("rephrasing",))
