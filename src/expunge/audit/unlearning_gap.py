"""Unlearning, retaining and test accuracy, an SVC attack, and the average gap to retraining."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated

from pydantic import Field

from expunge.audit.audit import audit
from expunge.audit.evidence import Evidence, Measurement, Subject
from expunge.audit.gap_attack import NEEDS, Feature, drawn_alike, feature, svc_nonmembers
from expunge.audit.gap_numbers import MeanLoss, Number, Share, average_gap
from expunge.audit.outputs import PREDICTION
from expunge.audit.readings import Reading
from expunge.core.config import config
from expunge.core.errors import ConfigError
from expunge.core.finding import Direction, Finding
from expunge.core.run import Run
from expunge.data.dataset import Dataset

_FORGET, _RETAIN, _TEST = Reading("forget"), Reading("retain"), Reading("test")
_Named = tuple[str, str, Direction]
_ACCURACY: Mapping[str, _Named] = {
    "ua": ("Unlearning accuracy (share of forgotten records got wrong)", "forget", "reference"),
    "ra": ("Retaining accuracy", "retain", "higher"),
    "ta": ("Test accuracy", "test", "higher"),
}
_ERRORS: Mapping[str, _Named] = {
    "forget_error": ("Mean loss of forgotten records", "forget", "reference"),
    "retain_error": ("Mean loss of retained records", "retain", "lower"),
    "test_error": ("Mean loss of test records", "test", "lower"),
}
_MIA = "Forgotten records that an SVC calls non-members"
_WORDS: Mapping[Feature, str] = {
    "confidence": "",
    "correctness": ", by whether they are got right",
    "entropy": ", by entropy",
    "modified_entropy": ", by modified entropy",
    "probabilities": ", by all probabilities",
}


@config
class UnlearningGapConfig:
    """Settings of the unlearning-gap audit."""

    attacks: Annotated[tuple[Feature, ...], Field(min_length=1)] = ("confidence",)
    """What the attack on a classifier looks at, one attack for each; the first one counts in the
    average gap. A regressor's attack looks at the loss."""
    max_average_gap: Annotated[float, Field(ge=0)] | None = None
    """Largest average gap to retraining that passes, in points; no verdict when absent."""


def _reads(config: UnlearningGapConfig, dataset: Dataset) -> Iterator[Reading]:
    if dataset.kind == "regressor":
        if config.attacks != ("confidence",):
            raise ConfigError(
                f"attacks = {list(config.attacks)}: the attack on a regressor looks at the loss; "
                "leave attacks out"
            )
        # Only a regressor has predictions, by which the audit knows it.
        yield Reading("forget", measures=(PREDICTION,))
        yield from (_RETAIN, _TEST)
        return
    needed = sorted({name for attack in config.attacks for name in NEEDS.get(attack, ())})
    for name in ("forget", "retain", "test"):
        yield Reading(name, measures=tuple(needed))


@audit(
    "unlearning_gap",
    kinds={"classifier", "regressor"},
    reads=_reads,
    source="SalUn (Fan et al., ICLR 2024), evaluation protocol; for regressors Deep Regression "
    "Unlearning (Tarun et al., ICML 2023)",
)
def unlearning_gap(evidence: Evidence, config: UnlearningGapConfig, run: Run) -> list[Finding]:
    """How far a model is from retraining: accuracy or error, an attack, and the average gap.

    Of a classifier, in percent: ``ua``, the share of forgotten records that it gets wrong; ``ra``
    and ``ta``, its accuracy on retained and test records; ``mia``, the share of forgotten records
    that an attacker calls non-members. Of a regressor: ``forget_error``, ``retain_error`` and
    ``test_error``, the mean loss in the unit of its targets (squared where it was trained so), and
    ``mia``. Each number carries its signed gap to the mean of the references.

    The attacker is a support-vector classifier. It learns to tell retained from test records by the
    confidence in the true class, and on request also by whether a record is got right
    (``mia_correctness``), by entropy (``mia_entropy``), modified entropy (``mia_modified_entropy``)
    or all probabilities (``mia_probabilities``); of a regressor by the loss. It learns from as many
    retained as test records (a seeded draw of the larger set; the note says how many).

    ``average_gap`` is the mean of the four distances to the references' means; the note tells the
    signs. The distance of an error counts in percent of the references' error, so that it does not
    depend on a unit. A reference is compared with the other ones. The aim is a small gap, not a
    large ``ua`` or ``mia``: a model that gets more forgotten records wrong than retraining does
    betrays them as well.

    It costs one pass over each set, and one more over each for modified entropy and probabilities.

    Source: SalUn (Fan et al., 2024), section 5; Deep Regression Unlearning (Tarun et al., 2023),
        section 5, for errors and the attack on the loss.

    Differs from the official code: members are drawn, not the first ones; modified entropy is that
    of its authors, which the released unlearning code gets wrong. For regressors members are
    retained records alone, ``mia`` is the share called non-members (the paper reports members), and
    the kernel's width follows the spread of the losses, so that it does not depend on their unit.
    """
    regressor = PREDICTION in evidence.after.scores[_FORGET].measured
    names = dict(_ERRORS if regressor else _ACCURACY)
    attacks = {} if regressor else {_metric(name): name for name in dict.fromkeys(config.attacks)}
    for metric in attacks or ("mia",):
        words = _WORDS[attacks[metric]] if attacks else ", by the loss"
        names[metric] = (_MIA + words, "forget", "reference")
    first = next(iter(attacks), "mia")
    counted = [name for name in names if name == first or not name.startswith("mia")]
    numbers = {subject: _numbers(subject, attacks, run.seed) for subject in evidence}
    findings = []
    for metric, (title, record_set, direction) in names.items():

        def number(subject: Subject, metric: str = metric, name: str = record_set) -> Measurement:
            return _measurement(numbers[subject].get(metric), name, run.seed)

        findings += evidence.compare(
            metric,
            title,
            number,
            direction=direction,
            record_set=record_set,
            unit="" if metric in _ERRORS else "%",
        )

    def gap(subject: Subject) -> Measurement:
        own, *others = (
            {name: found[name] for name in counted if name in found}
            for found in (numbers[one] for one in (subject, *evidence.others(subject)))
        )
        return average_gap(own, others, run.seed, counted)

    findings += evidence.compare(
        "average_gap",
        "Average gap to retraining",
        gap,
        direction="lower",
        unit="points",
        threshold=config.max_average_gap,
    )
    return findings


def _metric(name: Feature) -> str:
    return "mia" if name == "confidence" else f"mia_{name}"


def _numbers(subject: Subject, attacks: Mapping[str, Feature], seed: int) -> dict[str, Number]:
    """Return the numbers that can be had; sets without records have none."""
    forget, retain, test = (subject.scores[reading] for reading in (_FORGET, _RETAIN, _TEST))
    numbers: dict[str, Number] = {}
    if attacks:
        numbers["ua"] = Share(int((~forget.greedy_N).sum()), len(forget))
        for metric, scores in (("ra", retain), ("ta", test)):
            if len(scores):
                numbers[metric] = Share(int(scores.greedy_N.sum()), len(scores))
    else:
        for name, scores in zip(_ERRORS, (forget, retain, test), strict=True):
            if len(scores):
                numbers[name] = MeanLoss(scores.loss_R)
    if not (len(retain) and len(test)):
        return numbers
    members, strangers = drawn_alike(len(retain), len(test), seed)
    note = f"the attack learned from {len(members)} retained and as many test records"
    if not attacks:
        losses = retain.loss_R[members], test.loss_R[strangers], forget.loss_R
        called_R = svc_nonmembers(*losses, gamma="scale")
        numbers["mia"] = Share(int(called_R.sum()), len(forget), note)
    for metric, name in attacks.items():
        known, unknown, asked = (feature(scores, name) for scores in (retain, test, forget))
        called_R = svc_nonmembers(known[members], unknown[strangers], asked)
        numbers[metric] = Share(int(called_R.sum()), len(forget), note)
    return numbers


def _measurement(number: Number | None, record_set: str, seed: int) -> Measurement:
    if number is None:
        missing = "retained or test" if record_set == "forget" else record_set
        return Measurement(None, 0, note=f"there are no {missing} records")
    return Measurement(number.value, number.n, number.interval(seed), number.note)
