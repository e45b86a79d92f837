"""In-context reintroduction: what each context brings back, beside retraining and controls."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from expunge.audit.contexts import Kind
from expunge.audit.evidence import Evidence, Measurement, Subject
from expunge.audit.in_context_readings import (
    FORGET,
    TEACHING,
    WRONG,
    InContextConfig,
    followed,
    forget_told,
    held_out,
    held_out_told,
    retained,
    retained_told,
)
from expunge.audit.outcomes import (
    NO_BEFORE,
    NO_REFERENCE,
    Share,
    bounded,
    excess_of,
    mean_of,
    paired,
    share_of,
    values_of,
)
from expunge.audit.readings import Reading
from expunge.audit.recovery import JUDGED_RECORDS
from expunge.audit.stats import clopper_pearson
from expunge.core.finding import Finding

SELECTIVE = 0.05
"""Largest loss on retained records under a context that still counts as knowing the facts."""

_MOST_FACTS = 20
_MISSING = {"wrong": "the data have no wrong answers", "axiom": "the data have no column axioms"}


def budget_to(rates: Mapping[int, float | None], tau: float) -> int | None:
    """Return the smallest k whose rate reaches ``tau``; ``None``: not reached.

    Args:
        rates: Reintroduction rate by k.
        tau: The rate to reach.
    """
    return min((k for k, rho in rates.items() if rho is not None and rho >= tau), default=None)


class Look:
    """All numbers of one audit.

    Args:
        evidence: The models.
        config: Settings.
        seed: Seed of the bootstraps.
    """

    def __init__(self, evidence: Evidence, config: InContextConfig, seed: int) -> None:
        self.evidence, self.config, self.seed = evidence, config, seed
        self._shares: dict[tuple[Subject, str, int], Share] = {}

    def has(self, kind: Kind, k: int) -> bool:
        """Return whether any record was asked under a context."""
        scores = self.evidence.after.scores.get(forget_told(self.config, kind, k))
        return kind in self.config.kinds and scores is not None and len(scores) > 0

    def asked(self, kind: Kind, k: int) -> bool:
        """Return whether the data allow such a context, if only for no record at this k."""
        return forget_told(self.config, kind, k) in self.evidence.after.scores

    def rho(self, kind: Kind, k: int) -> list[Finding]:
        """Return the reintroduction rate."""
        return self.evidence.compare(
            f"rho_{kind}_{k}",
            f"Share of the lost score that a context brings back ({kind}, {k})",
            lambda subject: self._share(subject, kind, k).measured(),
            direction="reference",
            record_set="forget",
        )

    def excess(self, kind: Kind, k: int) -> list[Finding]:
        """Return how much more a context brings back than in retrained models."""

        def compute(subject: Subject) -> Measurement:
            others = [self._share(other, kind, k) for other in self.evidence.others(subject)]
            found = excess_of(self._share(subject, kind, k), others)
            return bounded(subject, found, self.config.max_excess)

        return self.evidence.compare(
            f"excess_{kind}_{k}",
            f"What a context brings back beyond retraining ({kind}, {k})",
            compute,
            direction="lower",
            record_set="forget",
            threshold=self.config.max_excess,
            pairwise=True,
        )

    def retain_drop(self, kind: Kind, k: int) -> list[Finding]:
        """Return what retained records lose under contexts about forgotten ones."""
        bound = self.config.max_retain_drop
        return self.evidence.compare(
            f"retain_drop_{kind}_{k}",
            f"Loss on retained records under contexts about forgotten ones ({kind}, {k})",
            lambda subject: bounded(subject, self._drop(subject, kind, k), bound),
            direction="lower",
            record_set="retain",
            threshold=bound,
        )

    def budget(self, kind: Kind, tau: float) -> list[Finding]:
        """Return the smallest k that brings back a share."""

        def compute(subject: Subject) -> Measurement:
            shares = {k: self._share(subject, kind, k) for k in sorted(set(self.config.budgets))}
            last = list(shares.values())[-1]
            if all(share.value is None for share in shares.values()):
                return last.measured()
            reached = budget_to({k: share.value for k, share in shares.items()}, tau)
            note = f"not reached up to k = {max(shares)}" if reached is None else ""
            return Measurement(reached, last.n, note=note)

        return self.evidence.compare(
            f"k_star_{kind}_{100 * tau:.0f}",
            f"Least k that brings back {100 * tau:.0f} % ({kind})",
            compute,
            direction="reference",
            record_set="forget",
        )

    def difference(self, metric: str, first: Kind, second: Kind, k: int) -> list[Finding]:
        """Return rho of one kind minus rho of another, where both were asked."""
        if not (self.has(first, k) and self.has(second, k)):
            return []

        def compute(subject: Subject) -> Measurement:
            if self.evidence.before is None:
                return Measurement(None, 0, note=NO_BEFORE)
            one_R, other_R, known_R, left_R = paired(
                self._values(subject, forget_told(self.config, first, k)),
                self._values(subject, forget_told(self.config, second, k)),
                self._values(self.evidence.before, FORGET),
                self._values(subject, FORGET),
            )
            return share_of(one_R - other_R, known_R - left_R, self.seed, "in-context").measured()

        return self.evidence.compare(
            f"{metric}_{k}",
            f"Share brought back by {first} beyond {second} ({k})",
            compute,
            direction="reference",
            record_set="forget",
        )

    def following(self, k: int) -> list[Finding]:
        """Return how often a wrong fact that was told is preferred to the true answer."""
        if not self.has("wrong", k):
            return []
        told = forget_told(self.config, "wrong", k)

        def share(subject: Subject, true: Reading, wrong: Reading) -> tuple[int, int]:
            true_R, wrong_R = paired(
                values_of(subject, true, "probability"), values_of(subject, wrong, "probability")
            )
            return int((wrong_R > true_R).sum()), len(true_R)

        def compute(subject: Subject) -> Measurement:
            hits, n = share(subject, told, followed(self.config, k))
            plain, _ = share(subject, FORGET, dataclasses.replace(FORGET, view=WRONG))
            note = f"without the context {plain} of {n}, with it {hits}"
            return Measurement(hits / n, n, clopper_pearson(hits, n), note)

        return self.evidence.compare(
            f"follows_wrong_{k}",
            f"Questions on which a wrong fact that was told is preferred ({k})",
            compute,
            direction="reference",
            record_set="forget",
        )

    def control(self, k: int) -> list[Finding]:
        """Return what the statement does for records that no model knew."""
        plain = held_out(self.config)
        told = held_out_told(self.config, k)
        if not len(self.evidence.after.scores.get(told, ())):
            return []

        def compute(subject: Subject) -> Measurement:
            with_R, without_R = paired(self._values(subject, told), self._values(subject, plain))
            return mean_of(with_R - without_R, self.seed, "in-context control")

        return self.evidence.compare(
            f"control_gain_{k}",
            f"What the statement adds to the score of held-out records ({k})",
            compute,
            direction="reference",
            record_set="holdout",
        )

    def weights_forgotten(self) -> list[Finding]:
        """Return whether the score without context is that of retrained models."""

        def compute(subject: Subject) -> Measurement:
            others = self.evidence.others(subject)
            if not others:
                return Measurement(None, 0, note=NO_REFERENCE)
            own_R, *other_RS = paired(
                self._values(subject, FORGET), *(self._values(one, FORGET) for one in others)
            )
            gap = mean_of(own_R - np.mean(other_RS, axis=0), self.seed, "in-context weights")
            if gap.value is None or gap.interval is None:
                return gap
            note = (
                f"the score without context is {own_R.mean():.3f}, {gap.value:+.3f} from that of "
                f"retrained models ({gap.interval.low:+.3f} to {gap.interval.high:+.3f})"
            )
            if gap.interval.low > 0:
                return Measurement(0.0, gap.n, note=note)
            if gap.n < JUDGED_RECORDS:
                why = f"{gap.n} records are too few to say so; {JUDGED_RECORDS} are needed"
                return Measurement(None, gap.n, note=f"{note}; {why}")
            return Measurement(1.0, gap.n, note=note)

        return self.evidence.compare(
            "weights_forgotten",
            "Without context the score is not above that of retrained models (1: yes)",
            compute,
            direction="higher",
            record_set="forget",
            pairwise=True,
        )

    def recoverable(self) -> list[Finding]:
        """Return whether some context brings half of the score back and harms nothing else."""

        def compute(subject: Subject) -> Measurement:
            shares = {
                (kind, k): self._share(subject, kind, k)
                for kind in self.config.kinds
                for k in self.config.budgets
                if kind in TEACHING and k <= _MOST_FACTS
            }
            known = [share for share in shares.values() if share.value is not None]
            if not known:
                return next(
                    (share.measured() for share in shares.values()),
                    Measurement(None, 0, note="no context to learn the answer from was asked for"),
                )
            hits = [
                key for key, one in shares.items() if one.value is not None and one.value >= 0.5
            ]
            drops = {key: self._drop(subject, *key).value for key in hits}
            able = [
                f"{kind} {k}" for (kind, k), d in drops.items() if d is not None and d <= SELECTIVE
            ]
            if able:
                return Measurement(1.0, known[0].n, note="by " + ", ".join(able))
            if any(drop is None for drop in drops.values()):
                why = (
                    "half comes back, but too few retained records tell whether anything else broke"
                )
                return Measurement(None, known[0].n, note=why)
            return Measurement(0.0, known[0].n)

        return self.evidence.compare(
            "in_context_recoverable",
            "Some context brings back half of the lost score (1: yes)",
            compute,
            direction="reference",
            record_set="forget",
        )

    def _values(self, subject: Subject, reading: Reading) -> dict[str, float]:
        return values_of(subject, reading, self.config.by)

    def _share(self, subject: Subject, kind: Kind, k: int) -> Share:
        key = (subject, kind, k)
        if key not in self._shares:
            self._shares[key] = self._fresh_share(subject, kind, k)
        return self._shares[key]

    def _fresh_share(self, subject: Subject, kind: Kind, k: int) -> Share:
        before, nothing = self.evidence.before, np.empty(0)
        if not self.has(kind, k):
            why = self._left_out(kind, k) or _MISSING.get(kind, "no record was asked")
            return Share(None, nothing, 0, why)
        if before is None:
            return Share(None, nothing, 0, NO_BEFORE)
        told_R, known_R, left_R = paired(
            self._values(subject, forget_told(self.config, kind, k)),
            self._values(before, FORGET),
            self._values(subject, FORGET),
        )
        share = share_of(told_R - left_R, known_R - left_R, self.seed, "in-context")
        notes = [note for note in (share.note, self._left_out(kind, k)) if note]
        return dataclasses.replace(share, note="; ".join(notes))

    def _left_out(self, kind: Kind, k: int) -> str:
        """Return how many forget records no context could be put above; nothing if it was all."""
        scores = self.evidence.after.scores
        told = scores.get(forget_told(self.config, kind, k))
        total = len(scores[FORGET])
        if told is None or len(told) == total:
            return ""
        return (
            f"{total - len(told)} of {total} records left out: there is nothing to tell, there are "
            "too few retained records, or the prompt would not fit"
        )

    def _drop(self, subject: Subject, kind: Kind, k: int) -> Measurement:
        plain = retained(self.config)
        told = retained_told(self.config, kind, k)
        plain_R, told_R = paired(self._values(subject, plain), self._values(subject, told))
        return mean_of(plain_R - told_R, self.seed, "in-context retain")
