"""Relearn time of classifiers and regressors: steps until the model is as good as the original.

Shape legend: R records, K points of a learning curve, S resamples.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from torch import nn

from expunge.audit.carried import carried, carry
from expunge.audit.evidence import Evidence, Measurement, Subject
from expunge.audit.learning_curve import Curve, steps_ratio
from expunge.audit.measures import of_model
from expunge.audit.outputs import measured
from expunge.audit.readings import Reading
from expunge.audit.scores import Scores, score
from expunge.audit.stats import bootstrap_means
from expunge.audit.treatments import (
    NOT_BEFORE,
    NotApplicable,
    attacked_ids,
    groups_of,
    require_two_groups,
    treatment,
)
from expunge.audit.views import Scene
from expunge.core.config import config
from expunge.core.digest import digest_json
from expunge.core.errors import Interrupted, NumericalError
from expunge.core.files import remove_tree
from expunge.core.finding import Finding, Verdict
from expunge.core.records import Records, concatenate
from expunge.core.run import Run
from expunge.core.streams import stream_seed
from expunge.data.dataset import Dataset
from expunge.engine.loop import Stream, fit
from expunge.engine.schedule import Schedule
from expunge.engine.task import Task
from expunge.engine.weights import state_digest
from expunge.train.supervised import likelihood

CURVE = "relearn_curve"
VALIDATION = "forget_validation"
"""Probe with held-out records like the forgotten ones, on which relearning is timed if there."""

_TREATMENT = "relearn_time"


@config
class RelearnTime:
    """How relearning on all training records is timed, for classifiers and regressors."""

    steps: Annotated[int, Field(ge=1)] = 200
    """Most optimiser steps; a model that needs more is reported as such."""
    every: Annotated[int, Field(ge=1)] = 5
    """Optimiser steps between two looks."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Records of one step."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate of Adam; best that of the original training."""
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """How far from the original model counts as there: a share of its error or accuracy."""
    min_ain: Annotated[float, Field(gt=0)] | None = None
    """Smallest passing share of a retrained model's steps; no verdict when absent."""


def time_readings(time: RelearnTime, share: float, dataset: Dataset) -> Iterator[Reading]:
    """Yield what must be scored to time relearning.

    Args:
        time: Settings.
        share: Share of the forget records that are learned; the others are scored.
        dataset: The data.
    """
    plain = Reading(VALIDATION if VALIDATION in dataset.probes else "forget")
    by = "error" if dataset.kind == "regressor" else "accuracy"
    spec = f"{_TREATMENT}:{by}:{time.steps}:{time.every}:{share}:{time.lr}:{time.batch_size}"
    yield plain
    yield dataclasses.replace(plain, treatment=spec, measures=(CURVE,))


def timed_reading(evidence: Evidence) -> tuple[Reading, str] | None:
    """Return the reading after relearning, and whether it looks at ``error`` or ``accuracy``.

    Args:
        evidence: The models.
    """
    for reading in (*evidence.after.scores, *evidence.after.absent):
        if reading.treatment.startswith(f"{_TREATMENT}:"):
            return reading, reading.treatment.split(":")[1]
    return None


@treatment(_TREATMENT, roles=NOT_BEFORE)
def relearn_all(
    model: nn.Module, task: Task, scene: Scene, parameters: str, run: Run
) -> tuple[nn.Module, Task]:
    """Train on the retained and some forgotten records, and note how the others are got on the way.

    The looks are taken after steps of the one loop, and change nothing in it.

    Args:
        model: Every weight may move; it carries the curve, for the measure of that name.
        task: How to run it.
        scene: The data.
        parameters: ``error`` or ``accuracy``, steps, steps between two looks, share of the forget
            records to learn, learning rate, records of a step.
        run: Context.

    Raises:
        NotApplicable: There is no record to learn and one to score, the model is a composite, or
            training diverged.
        Interrupted: Cancelled, or the budget is spent.
    """
    by, steps, every, share, lr, batch = parameters.split(":")
    if hasattr(model, "parts"):
        raise NotApplicable("a composite is attacked part by part")
    learned, scored = _divided(scene, float(share))
    per_epoch = math.ceil(len(learned) / int(batch))
    schedule = Schedule(
        epochs=math.ceil(int(steps) / per_epoch),
        batch_size=int(batch),
        lr=float(lr),
        weight_decay=0.0,
    )
    name = digest_json([state_digest(model), learned.digest(), parameters])[:16]
    part = run.child(f"{_TREATMENT}-{name}", seed=stream_seed(run.seed, _TREATMENT))
    own = run.budget.max_steps
    part.budget = dataclasses.replace(
        run.budget, max_steps=int(steps) if own is None else min(int(steps), own)
    )
    quiet = run.child("looks")
    quiet.quiet = True
    points: list[np.ndarray] = []

    def look() -> None:
        points.append(_goodness(score(model, task, scored, quiet, batch_size=256), by))

    done = itertools.count(1)

    def after(*_: Any) -> None:
        step = next(done)
        if step % int(every) == 0 or step == int(steps):
            look()

    # What was seen on the way is in no checkpoint, so a run that died begins anew.
    remove_tree(part.folder)
    look()
    streams, terms = {"train": Stream(learned)}, (likelihood(task, "train"),)
    try:
        fit(model, task, streams, terms, schedule, part, after=after, label="relearning")
    except Interrupted:  # by the number of steps, or by the user
        run.check()
        if own is not None and own < int(steps):
            raise
    except NumericalError as error:
        raise NotApplicable(f"training diverged: {error}") from error
    finally:
        model.zero_grad(set_to_none=True)
    remove_tree(part.folder)
    values_RK = np.stack(points, axis=1)
    carry(model, CURVE, scored, values_RK)
    return model, task


@of_model(CURVE)
def curve_RK(model: nn.Module, task: Task, records: Records, run: Run) -> np.ndarray:
    """Return how well a relearned model got each record at every look; NaN where it was learned.

    Raises:
        UnsupportedModelError: The model was not relearned.
    """
    del task, run
    return carried(model, CURVE, records)


def time_findings(
    evidence: Evidence, time: RelearnTime, run: Run, reading: Reading, by: str
) -> list[Finding]:
    """Return the steps of relearning of every model, and their ratio to retraining.

    Args:
        evidence: The models.
        time: Settings.
        run: Gives the seed of the bootstrap.
        reading: What was scored after relearning; see ``timed_reading``.
        by: ``error`` or ``accuracy``.

    Source: Deep Regression Unlearning (Tarun et al., 2023) for the error; Chundawat et al. (2023),
        Zero-Shot Machine Unlearning, for the accuracy and the anamnesis index.
    """
    curves = {
        subject: _curve(evidence, subject, time, run.seed, reading, by) for subject in evidence
    }

    def steps(subject: Subject) -> Measurement:
        curve = curves[subject]
        if isinstance(curve, str):
            return Measurement(None, 0, note=curve, verdict="not_applicable")
        value = curve.crossing()
        note = f"not reached in {curve.steps_K[-1]} steps" if value is None else ""
        return Measurement(value, curve.n, note=note)

    def ain(subject: Subject) -> Measurement:
        curve = curves[subject]
        if isinstance(curve, str):
            return Measurement(None, 0, note=curve, verdict="not_applicable")
        found = [curves[other] for other in evidence.others(subject)]
        others = [one for one in found if not isinstance(one, str)]
        bound = time.min_ain if subject.role == "after" else None
        ratio = steps_ratio(curve, others, bound)
        if ratio.value is None or np.mean([one.capped()[0] for one in others]) >= time.every:
            return ratio
        coarse = "retrained models need fewer steps than lie between two looks; lower time.every"
        note = "; ".join(part for part in (ratio.note, coarse) if part)
        verdict: Verdict | None = "inconclusive" if bound is not None else None
        return dataclasses.replace(ratio, note=note, verdict=verdict)

    findings = evidence.compare(
        "relearn_steps",
        f"Steps of relearning until the {by} of unseen records is the original model's again",
        steps,
        direction="reference",
        record_set=reading.record_set,
        unit="steps",
    )
    findings += evidence.compare(
        "ain",
        "Anamnesis index: these steps, as a share of a retrained model's",
        ain,
        direction="higher",
        record_set=reading.record_set,
        threshold=time.min_ain,
        pairwise=True,
    )
    return findings


def _divided(scene: Scene, share: float) -> tuple[Records, Records]:
    """Return what is learned, and what is scored."""
    forget, retain = scene.records("forget"), scene.records("retain")
    if VALIDATION in scene.dataset.probes:
        scored = scene.records(VALIDATION)
        if not len(scored):
            raise NotApplicable(f"there are no {VALIDATION} records")
        return concatenate([retain, forget]), scored
    if len(forget) < 2:
        raise NotApplicable("one forget record cannot be learned and scored by another")
    groups_R = groups_of(forget)
    require_two_groups(groups_R)
    seen = set(attacked_ids(forget.ids, share, scene.seed, groups_R))
    learned = concatenate([retain, forget.select([i for i in forget.ids if i in seen])])
    return learned, forget.select([i for i in forget.ids if i not in seen])


def _goodness(scores: Scores, by: str) -> np.ndarray:
    """Return how well each record is got: minus its loss, or whether it is right."""
    return -scores.loss_R if by == "error" else scores.greedy_N.astype(np.float64)


def _curve(
    evidence: Evidence, subject: Subject, time: RelearnTime, seed: int, reading: Reading, by: str
) -> Curve | str:
    """Return how far a model is from the goal at every look, or why that cannot be had."""
    if evidence.before is None:
        return "there is no model before unlearning whose level could be reached"
    if subject is evidence.before:
        return "relearning is measured against this model"
    if reading not in subject.scores:
        return subject.absent.get(reading, f"the {subject.role} model does not undergo it")
    values_RK = measured(subject.scores[reading], CURVE)
    plain = dataclasses.replace(reading, treatment="")
    original_R = _goodness(evidence.before.scores[plain], by)
    goal_R = original_R - time.margin * np.abs(original_R)
    used_R = np.isfinite(values_RK).all(axis=1)
    ahead_KR = (values_RK[used_R] - goal_R[used_R, None]).T
    draws_SK = np.stack([bootstrap_means(v, seed, "relearn-time") for v in ahead_KR], axis=1)
    steps_K = np.array([*range(0, time.steps, time.every), time.steps])
    return Curve(
        steps_K,
        ahead_KR.mean(axis=1),
        draws_SK,
        int(used_R.sum()),
        level=0.0,
        goal=f"the original model's {by}",
    )
