"""Correction: is a model right again where manipulated training data had led it astray?"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from expunge.audit.audit import audit
from expunge.audit.evidence import Evidence, Measurement, Subject
from expunge.audit.outputs import LABEL, measured
from expunge.audit.readings import Reading
from expunge.audit.stats import clopper_pearson
from expunge.core.config import config
from expunge.core.errors import ConfigError
from expunge.core.finding import Finding
from expunge.core.run import Run
from expunge.data.classes import class_numbers
from expunge.data.corruption import Corner, patched
from expunge.data.dataset import Dataset

_FORGET, _TEST = Reading("forget"), Reading("test")
_AFFECTED = ("patched", "of_classes")
Percent = Annotated[float, Field(ge=0, le=100)]


@config
class Patch:
    """A square in the corner of every picture."""

    size: Annotated[int, Field(ge=1)] = 3
    """Height and width in pixels."""
    value: float = 1.0
    """What it is filled with, in every channel."""
    corner: Corner = "bottom_right"
    """Where it is."""


@config
class CorrectiveConfig:
    """Settings of the audit of correction."""

    patch: Patch | None = None
    """The patch of poisoned records. Leave it out where the data say what was manipulated
    (``data.corrupt``)."""
    classes: Annotated[tuple[int | str, ...], Field(min_length=1)] | None = None
    """The confused classes, numbers or names, in place of a patch. Leave them out where the data
    say so."""
    min_acc_corr: Percent | None = None
    """Smallest accuracy on the affected domain that passes, in percent; no verdict when absent."""
    min_acc_retain: Percent | None = None
    """Smallest accuracy on the unaffected domain that passes, in percent; no verdict when
    absent."""


def _reads(config: CorrectiveConfig, dataset: Dataset) -> Iterator[Reading]:
    yield _FORGET
    patch, classes = config.patch, config.classes
    if patch is None and classes is None:
        patch, classes = _told(dataset.facts.get("corruption"))
    elif patch is not None and classes is not None:
        raise ConfigError(
            "patch and classes are two manipulations; the audit looks at one: leave one of them out"
        )
    if patch is not None:
        if "input_shape" in dataset.facts:  # before anything is trained
            patched(np.zeros(dataset.facts["input_shape"]), patch.size, patch.value, patch.corner)
        view = f"patched:{patch.size}:{patch.value}:{patch.corner}"
        yield dataclasses.replace(_TEST, view=view)
        yield dataclasses.replace(_TEST, measures=(LABEL,))
        return
    numbers = class_numbers(classes or (), dataset.facts, "corrective.classes")
    names = "".join(f":{number}" for number in sorted(set(numbers)))
    yield dataclasses.replace(_TEST, view=f"of_classes{names}")
    if names:
        yield dataclasses.replace(_TEST, view=f"not_of_classes{names}", measures=(LABEL,))


@audit(
    "corrective",
    kinds={"classifier"},
    reads=_reads,
    source="Corrective Machine Unlearning (Goel et al., TMLR 2024)",
)
def corrective(evidence: Evidence, config: CorrectiveConfig, run: Run) -> list[Finding]:
    """Is the model right again where manipulated records had led it astray?

    All numbers are in percent, with Clopper and Pearson's interval, on test records with their
    clean labels.

    - ``acc_corr``: accuracy on the affected domain. Of poisoned records that is every test picture
      with the patch, those of the poison's class included, so that a model that always follows the
      patch has the share of that class, not 0. Of confused classes it is their test records; where
      labels of all classes were manipulated, it is the whole test set.
    - ``acc_retain``: accuracy on the unaffected domain: the test set without the patch, or the
      other classes. ``acc_retain_class_3`` and so on is that of one class, since a method can wreck
      single ones.
    - ``delete_err``: the share of the forget set that is still predicted under its label of the
      training data; of poisoned records of the poison's own class that label is true.

    What was manipulated is read from the data where they say it (``data.corrupt``), else set here.
    The forget set holds the manipulated records that were identified. Where these are not all, the
    retrained references learn the flaw again from the others and are no standard to be near:
    ``acc_corr`` itself counts, beside that of a model trained without any manipulated record
    (forget them all in another run). Where they are all, the references are that standard.

    It costs one pass over the test set with the patch and one without, or one in all.

    Source: Corrective Machine Unlearning (Goel et al., 2024), sections 3 and 5.
    """
    del run
    affected = next(r for r in evidence.after.scores if _is_affected(r))
    unaffected = next((r for r in evidence.after.scores if _is_unaffected(r, affected)), None)
    patch = affected.view.startswith("patched")
    findings = evidence.compare(
        "acc_corr",
        "Accuracy on test pictures with the patch"
        if patch
        else "Accuracy on test records of the manipulated classes",
        lambda subject: _accuracy(subject, affected),
        direction="higher",
        record_set="test",
        unit="%",
        threshold=config.min_acc_corr,
    )
    findings += evidence.compare(
        "acc_retain",
        "Accuracy on test records that the manipulation does not affect",
        lambda subject: _accuracy(subject, unaffected),
        direction="higher",
        record_set="test",
        unit="%",
        threshold=config.min_acc_retain,
    )
    for name in _classes(evidence, unaffected):
        findings += evidence.compare(
            f"acc_retain_class_{name}",
            f"Accuracy on unaffected test records of class {name}",
            lambda subject, name=name: _accuracy(subject, unaffected, name),  # type: ignore[misc]
            direction="higher",
            record_set="test",
            unit="%",
        )
    findings += evidence.compare(
        "delete_err",
        "Forget records still predicted under their manipulated label",
        lambda subject: _accuracy(subject, _FORGET),
        direction="lower",
        record_set="forget",
        unit="%",
    )
    return findings


def _told(corruption: Mapping[str, Any] | None) -> tuple[Patch | None, tuple[int, ...] | None]:
    """Return the manipulation that the data tell of.

    Raises:
        ConfigError: They tell of none.
    """
    if corruption is None:
        raise ConfigError(
            "the data do not say what was manipulated; set patch or classes, or load them with "
            "data.corrupt"
        )
    if corruption["kind"] == "poison":
        return Patch(size=corruption["size"], value=corruption["value"]), None
    return None, tuple(corruption.get("classes") or ())


def _is_affected(reading: Reading) -> bool:
    return reading.record_set == "test" and reading.view.split(":")[0] in _AFFECTED


def _is_unaffected(reading: Reading, affected: Reading) -> bool:
    if affected.view.startswith("patched"):
        return reading == _TEST
    classes = affected.view.partition(":")[2]
    return bool(classes) and reading == dataclasses.replace(_TEST, view=f"not_of_classes:{classes}")


def _classes(evidence: Evidence, unaffected: Reading | None) -> list[int]:
    if unaffected is None:
        return []
    labels = measured(evidence.after.scores[unaffected], LABEL)
    return np.unique(labels).astype(int).tolist()


def _accuracy(subject: Subject, reading: Reading | None, name: int | None = None) -> Measurement:
    if reading is None:
        return Measurement(None, 0, note="the manipulation affects every class")
    scores = subject.scores[reading]
    right_R = scores.greedy_N
    if name is not None:
        right_R = right_R[measured(scores, LABEL) == name]
    if not len(right_R):
        return Measurement(None, 0, note=f"there are no such {reading.record_set} records")
    hits, n = int(right_R.sum()), len(right_R)
    exact = clopper_pearson(hits, n)
    interval = dataclasses.replace(exact, low=100 * exact.low, high=100 * exact.high)
    return Measurement(100 * hits / n, n, interval)
