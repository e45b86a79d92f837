"""A test set that many runs ask, through one ledger; see ``audit.holdout``.

The scores of its records are kept apart from those that a report shows.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from expunge.audit.audit import AuditInfo
from expunge.audit.evidence import Evidence, Subject
from expunge.audit.holdout import HoldoutConfig, Thresholdout
from expunge.audit.holdout_findings import answered, without
from expunge.audit.holdout_ledger import Ledger
from expunge.core.errors import ConfigError, IntegrityError, listing
from expunge.core.files import read_json, write_json
from expunge.core.finding import Finding
from expunge.core.sets import Sets
from expunge.data.dataset import Dataset
from expunge.pipeline.recipe import Recipe, Reuse

TEST = "test"
"""The set that is reused."""
SEED = ".seed"
"""Ending of the file beside a ledger that holds the seed of its noise."""


def check_reuse(
    recipe: Recipe, dataset: Dataset, sets: Sets, chosen: tuple[tuple[AuditInfo, Any], ...]
) -> None:
    """Refuse a ledger that cannot answer for these data, before any work; begin none.

    Raises:
        ConfigError: The ledger's folder is absent, its settings are others, or no audit reads the
            test set.
        DataError: The retained or the test records are too few, or overlap.
        IntegrityError: The ledger belongs to other data, was changed, or lacks its seed.
        StorageError: It cannot be read.
    """
    if recipe.reuse is None:
        return
    path = Path(recipe.reuse.file)
    if not path.parent.is_dir():
        raise ConfigError(
            f"recipe.reuse.file = {recipe.reuse.file!r}: there is no folder {path.parent}; make "
            "it, or name the ledger that other runs on these data use"
        )
    if not any(reads_test(info, config, dataset) for info, config in chosen):
        raise ConfigError(
            f"recipe.reuse: none of the audits ({listing([info.name for info, _ in chosen], 12)}) "
            "reads the test set; leave reuse out, or add such as unlearning_gap or memorization"
        )
    ledger = Ledger(path)
    begun = ledger.opening is not None
    seed = _seed(path) if begun else 0
    _mechanism(recipe.reuse, dataset, sets, ledger if begun else Ledger(None), seed, "check")


def open_reuse(recipe: Recipe, dataset: Dataset, sets: Sets) -> Thresholdout | None:
    """Return what answers for the test set, its ledger begun where it is new; ``None`` without."""
    if recipe.reuse is None:
        return None
    path = Path(recipe.reuse.file)
    ledger = Ledger(path)
    with ledger.locked():
        if ledger.opening is None:
            write_json(_seed_file(path), secrets.randbits(63))
    return _mechanism(recipe.reuse, dataset, sets, ledger, _seed(path), recipe.name)


def reads_test(info: AuditInfo, config: Any, dataset: Dataset) -> bool:
    """Return whether an audit reads test records."""
    return any(reading.record_set == TEST for reading in info.reads(config, dataset))


def audited(
    look: Callable[[Evidence], list[Finding]], evidence: Evidence, asked: Thresholdout
) -> list[Finding]:
    """Return an audit's findings, those that the test set has a part in as the ledger allows.

    Args:
        look: The audit.
        evidence: The models.
        asked: Answers for the test set.

    Raises:
        StorageError: The ledger cannot be written.
    """
    return answered(look(evidence), look(without(evidence, TEST)), asked, holdout=TEST)


def divided(subject: Subject) -> tuple[Subject, Subject]:
    """Return a model's scores of all records but the test set's, and those of the test set."""
    parts = []
    for test in (False, True):
        scores = {r: s for r, s in subject.scores.items() if (r.record_set == TEST) == test}
        absent = {r: why for r, why in subject.absent.items() if (r.record_set == TEST) == test}
        parts.append(dataclasses.replace(subject, scores=scores, absent=absent))
    return parts[0], parts[1]


def joined(shown: Subject, held: Subject) -> Subject:
    """Return the subject that was ``divided``.

    Raises:
        IntegrityError: The parts are of two models.
    """
    if (shown.role, shown.model, shown.part) != (held.role, held.model, held.part):
        raise IntegrityError(f"scores of two {shown.role} models lie together; score both again")
    scores = dict(sorted({**shown.scores, **held.scores}.items(), key=lambda item: item[0]))
    return dataclasses.replace(shown, scores=scores, absent={**shown.absent, **held.absent})


def _mechanism(
    reuse: Reuse, dataset: Dataset, sets: Sets, ledger: Ledger, seed: int, asker: str
) -> Thresholdout:
    settings = HoldoutConfig(budget=reuse.budget, threshold=reuse.threshold, noise=reuse.noise)
    train = dataset.train.select(sets.retain)
    test = dataset.records(TEST).select(sets.test)
    return Thresholdout(train, test, ledger, seed, settings, asker=asker)


def _seed_file(path: Path) -> Path:
    return path.with_name(path.name + SEED)


def _seed(path: Path) -> int:
    file = _seed_file(path)
    seed = read_json(file) if file.is_file() else None
    if type(seed) is not int or seed < 0:
        raise IntegrityError(
            f"{file} must hold the seed with which the ledger {path} was begun, a whole number; "
            "restore it, or take a fresh test set with a new ledger"
        )
    return seed
