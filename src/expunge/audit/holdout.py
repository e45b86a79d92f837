"""A held-out set that may be asked many times: Thresholdout, with its budget in a ledger.

Who tunes a method on audit numbers of one held-out set ends up fitting that set. The mechanism here
answers with the training value as long as the held-out one agrees, and else with a noisy held-out
value, of which there is a fixed number.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from expunge.audit.holdout_ledger import FORMAT, Ledger
from expunge.core.config import config
from expunge.core.digest import digest_json
from expunge.core.errors import (
    ConfigError,
    DataError,
    ExpungeError,
    IntegrityError,
    Problems,
    listing,
)
from expunge.core.records import Records
from expunge.core.streams import stream

Source = Literal["train", "holdout"]
LEAST = 30
"""Fewest records of either sample."""
BUDGET = 50
"""Disagreements that are answered, when the settings do not say."""
PAPER_NOISE = 1 / 4
"""Scale of the noise as a share of the threshold in the authors' demonstration."""
NOISE = 1 / 16
"""The same where the settings do not say. With a quarter, false alarms spend the budget."""


class Exhausted(ExpungeError):
    """Every disagreement that a ledger allows was answered; its holdout says nothing any more."""


@config
class HoldoutConfig:
    """Settings of a reusable holdout; numbers are for questions whose range is one wide."""

    mode: Literal["thresholdout", "science_demo"] = "thresholdout"
    """``science_demo``: Gaussian noise, no budget and **no guarantee**; for comparisons only."""
    threshold: Annotated[float, Field(gt=0)] | None = None
    """Distance of training and held-out value that counts as agreement; max(0.02, 4 / sqrt(n))
    when absent (``science_demo``: 4 / sqrt(n))."""
    noise: Annotated[float, Field(gt=0)] | None = None
    """Scale of the noise; the ledger's when absent, in a new one a sixteenth of the threshold
    (``science_demo``: a quarter, as in the paper, with which agreement costs budget too)."""
    budget: Annotated[int, Field(ge=0)] | None = None
    """Disagreements that are answered; the ledger's when absent, in a new one 50."""


@dataclasses.dataclass(frozen=True)
class Noise:
    """The random numbers behind one answer.

    Attributes:
        threshold: γ, added to the threshold; the same until the next disagreement.
        comparison: η, added to the threshold for this question.
        answer: ξ, added to the held-out value.
    """

    threshold: float
    comparison: float
    answer: float


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a mechanism says.

    Attributes:
        value: Estimate of the population's mean, in the question's own unit; noise may carry it
            past the question's range.
        source: ``"train"`` where both samples agree, else ``"holdout"``.
        remaining: Disagreements that are left; ``None`` where there is no budget.
    """

    value: float
    source: Source
    remaining: int | None


def decide(
    a_train: float, a_holdout: float, threshold: float, noise: Noise
) -> tuple[float, Source]:
    """Return the training value if the held-out one is near, else the held-out one with noise.

    Args:
        a_train: Training mean.
        a_holdout: Held-out mean; without noise it is never part of what is returned.
        threshold: T.
        noise: γ, η and ξ.

    Source: Dwork et al. (2015), Generalization in Adaptive Data Analysis and Holdout Reuse,
        Thresholdout, step 3.
    """
    if abs(a_holdout - a_train) > threshold + noise.threshold + noise.comparison:
        return a_holdout + noise.answer, "holdout"
    return a_train, "train"


class Thresholdout:
    """Answers questions about the population from a training and a held-out sample.

    A question is a function of a record with values in a known range; the answer estimates its mean
    over the population. All mechanisms with one ledger are one mechanism to the holdout: they share
    noise scale, budget and the noise of the threshold. For ``budget`` disagreements the answers are
    (2 budget / (noise n), 0)-differentially private towards the holdout. Floating-point noise and
    the small noise that is useful at n of thousands make this no certificate.

    Args:
        train: Sample that the analyst may look at.
        holdout: Sample of the same distribution, with the same columns.
        ledger: The holdout's only ledger; opened here when it is new.
        seed: Secret seed of the noise, such as ``secrets.randbits(63)``, the same whenever the
            ledger is used; who knows it can subtract the noise. The ledger holds its digest.
        settings: Threshold, noise and budget.
        asker: Name under which the ledger notes the questions.

    Raises:
        DataError: The samples share ids, have other columns, or fewer than 30 records.
        ConfigError: The ledger was opened with other settings or another seed.
        IntegrityError: The ledger is not what was written, or belongs to another holdout.

    Source: Dwork et al. (2015), Generalization in Adaptive Data Analysis and Holdout Reuse,
        Thresholdout; Dwork et al. (2015), The reusable holdout, for ``science_demo``.
    """

    def __init__(
        self,
        train: Records,
        holdout: Records,
        ledger: Ledger,
        seed: int,
        settings: HoldoutConfig | None = None,
        *,
        asker: str = "audit",
    ) -> None:
        _require_samples(train, holdout)
        settings = settings or HoldoutConfig()
        self.ledger = ledger
        self.asker = asker
        self.mode = settings.mode
        self.n = len(holdout)
        self.num_train = len(train)
        self._seed = seed
        self._holdout = holdout.digest()
        least = 0.02 if self.mode == "thresholdout" else 0.0
        self.threshold = settings.threshold or max(least, 4 / math.sqrt(self.n))
        with ledger.locked():
            if ledger.opening is None:
                ledger.append(self._opening(settings))
            opening = ledger.opening or {}
        self._require_same(opening, settings)
        self.noise = float(opening["noise"])
        self.budget: int | None = opening["budget"]

    @property
    def remaining(self) -> int | None:
        """Disagreements that are left to all askers; ``None`` where there is no budget."""
        return self.ledger.remaining

    @property
    def exhausted(self) -> bool:
        """Whether the holdout can be asked no more; the caller stops or takes a fresh one."""
        return self.ledger.exhausted

    @property
    def epsilon_per_disagreement(self) -> float | None:
        """Privacy loss of one unit of budget, 2 / (noise n); ``None`` without a guarantee."""
        return 2 / (self.noise * self.n) if self.mode == "thresholdout" else None

    @property
    def epsilon(self) -> float | None:
        """Privacy loss of the whole budget; ``None`` without a guarantee."""
        each = self.epsilon_per_disagreement
        return None if each is None or self.budget is None else self.budget * each

    def ask(
        self,
        phi_train: np.ndarray,
        phi_holdout: np.ndarray,
        *,
        low: float = 0.0,
        high: float = 1.0,
        question: str = "",
    ) -> Answer:
        """Answer a question whose value is known for every record.

        Args:
            phi_train: The question's value for every training record.
            phi_holdout: The same for every held-out record.
            low: Least value that the question can have on any record.
            high: Largest value.
            question: What is asked, for the ledger; no personal data.

        Raises:
            DataError: A value is missing, NaN or outside the range.
            Exhausted: The budget is spent.
            StorageError: The ledger cannot be written; nothing was answered.
        """
        _require_range(low, high)
        a_train = _mean(phi_train, self.num_train, "train", low, high)
        a_holdout = _mean(phi_holdout, self.n, "holdout", low, high)
        return self.ask_values(a_train, a_holdout, low=low, high=high, question=question)

    def ask_values(
        self,
        a_train: float,
        a_holdout: float,
        *,
        low: float = 0.0,
        high: float = 1.0,
        question: str = "",
    ) -> Answer:
        """Answer a question whose mean is known for both samples.

        The caller vouches that every record's value lies in the range and counts once.

        Args:
            a_train: Mean over the training sample.
            a_holdout: Mean over the held-out sample.
            low: Least value that the question can have on any record.
            high: Largest value.
            question: What is asked, for the ledger; no personal data.

        Raises:
            DataError: A mean is NaN or outside the range.
            Exhausted: The budget is spent.
            StorageError: The ledger cannot be written; nothing was answered.
        """
        _require_range(low, high)
        for name, mean in (("train", a_train), ("holdout", a_holdout)):
            if not low <= mean <= high:  # the message must not tell the held-out mean
                raise DataError(f"the {name} mean is NaN or outside its range {low}..{high}")
        width = high - low
        with self.ledger.locked():
            if self.exhausted:
                raise Exhausted(
                    f"all {self.budget} disagreements of this holdout are spent; stop asking, or "
                    "take a fresh holdout with a new ledger"
                )
            scaled, source = decide(
                (a_train - low) / width, (a_holdout - low) / width, self.threshold, self._draw()
            )
            value = float(a_train) if source == "train" else float(low + width * scaled)
            left = self.remaining
            if left is not None and source == "holdout":
                left -= 1
            self.ledger.append(
                {
                    "kind": "answer",
                    "asker": self.asker,
                    "question": question,
                    "low": repr(float(low)),
                    "high": repr(float(high)),
                    "threshold": repr(self.threshold),
                    "source": source,
                    "value": repr(value),
                    "remaining": left,
                }
            )
        return Answer(value, source, left)

    def recall(self, question: str, *, low: float = 0.0, high: float = 1.0) -> Answer | None:
        """Return the answer that the ledger has of a question with the same words, if any.

        Given again it costs nothing and tells nothing new, what was left at the time included; the
        words must be of one question only.

        Args:
            question: What was asked.
            low: Least value that the question can have on any record.
            high: Largest value.

        Raises:
            IntegrityError: The ledger is not what was written.
            StorageError: It cannot be read.
        """
        with self.ledger.locked():
            known = self.ledger.answers.get(question)
        same = {
            "low": repr(float(low)),
            "high": repr(float(high)),
            "threshold": repr(self.threshold),
        }
        if known is None or any(known[name] != value for name, value in same.items()):
            return None
        return Answer(float(known["value"]), known["source"], known["remaining"])

    def _draw(self) -> Noise:
        """Draw by the ledger's counts: fresh for every question, the same after a restart."""

        def draws(purpose: str, count: int) -> np.random.Generator:
            return stream(self._seed, "holdout", self._holdout, purpose, count)

        asked, spent = self.ledger.asked, self.ledger.spent
        if self.mode == "science_demo":
            comparison, answer = draws("question", asked).normal(0.0, self.noise, 2)
            return Noise(0.0, float(comparison), float(answer))
        gamma = draws("threshold", spent).laplace(0.0, 2 * self.noise)
        scales = np.array([4 * self.noise, self.noise])
        comparison, answer = draws("question", asked).laplace(0.0, scales)
        return Noise(float(gamma), float(comparison), float(answer))

    def _opening(self, settings: HoldoutConfig) -> dict[str, Any]:
        budget = settings.budget
        if self.mode == "science_demo" and budget is not None:
            raise ConfigError(f"budget = {budget}: the mode 'science_demo' has none; leave it out")
        if self.mode == "thresholdout" and budget is None:
            budget = BUDGET
        share = NOISE if self.mode == "thresholdout" else PAPER_NOISE
        return {
            "kind": "open",
            "format": FORMAT,
            "holdout": self._holdout,
            "n": self.n,
            "seed": self._commitment(),
            "mode": self.mode,
            "noise": repr(settings.noise or self.threshold * share),
            "budget": budget,
        }

    def _require_same(self, opening: Mapping[str, Any], settings: HoldoutConfig) -> None:
        """Refuse a ledger that was opened for another holdout or with other settings."""
        if opening["holdout"] != self._holdout:
            raise IntegrityError(
                f"the ledger {self.ledger.path} belongs to another holdout; give each its own"
            )
        problems = Problems(f"the ledger {self.ledger.path}")
        if opening["seed"] != self._commitment():
            problems.add("it was opened with another seed; give that one")
        known_settings = {**opening, "noise": float(opening["noise"])}
        for name in ("mode", "noise", "budget"):
            given, known = getattr(settings, name), known_settings[name]
            if given is not None and given != known:
                problems.add(f"{name} = {given!r}, but it was opened with {known!r}; give that")
        problems.raise_if_any()

    def _commitment(self) -> str:
        return digest_json(["seed of a holdout ledger", self._holdout, self._seed])


def _require_samples(train: Records, holdout: Records) -> None:
    problems = Problems("reusable holdout", DataError)
    for name, records in (("train", train), ("holdout", holdout)):
        if len(records) < LEAST:
            problems.add(f"{name} has {len(records)} records; give at least {LEAST}")
    train_ids = set(train.ids)
    both = [i for i in holdout.ids if i in train_ids]
    if both:
        problems.add(
            f"{len(both)} ids are in train and in holdout ({listing(both)}); a record can be in "
            "one of them only"
        )
    if train.columns.keys() != holdout.columns.keys():
        problems.add(
            f"train has the columns {listing(train.columns, 12)}, holdout has "
            f"{listing(holdout.columns, 12)}; give samples of one kind"
        )
    problems.raise_if_any()


def _require_range(low: float, high: float) -> None:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise DataError(f"range {low}..{high}: give two finite numbers, the smaller first")


def _mean(phi: np.ndarray, count: int, name: str, low: float, high: float) -> float:
    """Return the mean of checked values; messages tell nothing of them."""
    try:
        values = np.asarray(phi, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"the {name} values are no numbers; give one per record") from None
    if values.shape != (count,):
        raise DataError(f"{name} values of shape {values.shape} for {count} records")
    if not bool(((values >= low) & (values <= high)).all()):
        raise DataError(
            f"a {name} value is NaN or outside {low}..{high}; clip the question to a range that "
            "does not depend on the data, and state it"
        )
    return min(max(float(values.mean()), low), high)  # rounding can carry a mean past the range
