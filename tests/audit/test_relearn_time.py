"""Relearn time: steps back to the original's level, their ratio to retraining, the cap."""

import copy
import dataclasses

import attack_worlds
import numpy as np
import pytest
import torch
from torch import nn

from expunge.audit.audit import audits, parse_config
from expunge.audit.collecting import collect
from expunge.audit.evidence import Evidence, Subject
from expunge.audit.outputs import measured
from expunge.audit.readings import Reading
from expunge.audit.relearn_time import (
    CURVE,
    RelearnTime,
    curve_RK,
    time_findings,
    time_readings,
    timed_reading,
)
from expunge.audit.treatments import NotApplicable, attacked_ids, treat
from expunge.audit.views import Scene
from expunge.core.errors import ConfigError, Interrupted, UnsupportedModelError
from expunge.core.records import Records, concatenate
from expunge.core.run import Budget, Run
from expunge.core.sets import Sets
from expunge.core.streams import stream_seed
from expunge.data.dataset import Dataset
from expunge.engine.schedule import Schedule
from expunge.engine.tasks.regressor import Regressor
from expunge.engine.weights import state_digest
from expunge.train.supervised import learn

TIME = RelearnTime(steps=30, every=10, lr=3e-3)
SPEC = "relearn_time:error:30:10:0.5:0.003:64"


@pytest.fixture(scope="module")
def band():
    """A regressor of a broken line, a band of which is to be forgotten; and models that did."""
    draw = np.random.default_rng(0)
    x = draw.uniform(-1, 1, size=(240, 1)).astype(np.float32)
    side = np.where(x[:, 0] < -0.5, -3, 3)
    y = (side * np.abs(x[:, 0]) + draw.normal(0, 0.05, 240)).astype(np.float32)
    records = Records(tuple(f"p-{i}" for i in range(240)), {"x": x, "y": y})
    gone = [i for i, value in zip(records.ids, x[:, 0], strict=True) if value < -0.5]
    sets, task = Sets.partition(records.ids, gone), Regressor()
    schedule = Schedule(epochs=40, batch_size=32, lr=1e-2, weight_decay=0.0)

    def trained(ids, seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = nn.Sequential(nn.Linear(1, 32), nn.ReLU(), nn.Linear(32, 1))
        learn(model, task, records.select(ids), schedule, Run(seed))
        return model

    before, retrained = trained(sets.train, 0), trained(sets.retain, 1)
    hidden = copy.deepcopy(before)
    with torch.no_grad():
        hidden[2].bias += 0.3  # looks forgotten, knows everything
    dataset = Dataset("regressor", records)
    return attack_worlds.Worlds(task, dataset, sets, before, hidden, (retrained,))


class Composite(nn.Module):
    """Has parts, as composites do."""

    def parts(self):
        return {}


def of(findings, metric, subject="after"):
    return next(f for f in findings if f.metric == metric and f.subject == subject)


def settings(**time):
    return {"share": 0.5, "time": {"steps": 60, "every": 5, "lr": 3e-3, **time}}


def test_a_model_that_only_looks_as_if_it_had_forgotten_relearns_sooner(band):
    found = band.audit("relearn", settings(min_ain=0.9, margin=0.5))
    assert {f.metric for f in found} == {"relearn_steps", "ain"}
    after, reference = (of(found, "relearn_steps", subject) for subject in ("after", "reference"))
    theirs = 60.0 if reference.value is None else reference.value
    assert after.value < theirs
    ain = of(found, "ain")
    assert ain.value == pytest.approx(after.value / theirs)
    assert ain.n == after.n == len(band.sets.forget) - round(len(band.sets.forget) / 2)
    assert ain.interval.low <= ain.value <= ain.interval.high
    assert ain.verdict == "inconclusive"  # fewer than 50 scored records
    assert of(found, "relearn_steps", "before").note == "relearning is measured against this model"
    again = band.audit("relearn", settings(min_ain=0.9, margin=0.5))
    assert [f.digest() for f in again] == [f.digest() for f in found]


def test_the_original_itself_needs_no_step(band):
    found = band.audit("relearn", settings(), after=band.before)
    assert of(found, "relearn_steps").value == 0
    assert of(found, "ain").value == 0


def test_what_is_not_reached_within_the_cap_is_told(band):
    found = band.audit("relearn", settings(steps=2, lr=1e-6))
    after = of(found, "relearn_steps")
    assert (after.value, after.note) == (None, "not reached in 2 steps")
    assert "neither the model nor retrained ones" in of(found, "ain").note


def treated(band, spec=SPEC, run=None, model=None, scene=None):
    run = run or Run(3)
    return treat(model or band.after, band.task, scene or band.scene(), spec, run)[0]


def curve(band, model):
    return curve_RK(model, band.task, band.scene().records("forget"), Run())


def test_looking_changes_nothing_of_the_training(band):
    digest = state_digest(band.after)
    often, once = (treated(band, f"relearn_time:error:30:{k}:0.5:0.003:64") for k in (10, 30))
    assert state_digest(band.after) == digest
    assert state_digest(often) == state_digest(once)
    many, few = curve(band, often), curve(band, once)
    assert (many.shape[1], few.shape[1]) == (4, 2)
    np.testing.assert_array_equal(many[:, [0, 3]], few)
    # An uneven last stretch ends at the cap, and a longer training begins as a shorter one.
    longer = curve(band, treated(band, "relearn_time:error:35:10:0.5:0.003:64"))
    np.testing.assert_array_equal(longer[:, :4], many)


def test_the_training_is_the_one_loop_without_a_stop(band):
    records, forget = band.dataset.train, band.sets.forget
    seen = set(attacked_ids(forget, 0.5, 3))
    learned = records.select([*band.sets.retain, *(i for i in forget if i in seen)])
    steps = -(-len(learned) // 64)
    plain = copy.deepcopy(band.after)
    schedule = Schedule(epochs=2, batch_size=64, lr=0.003, weight_decay=0.0)
    learn(plain, band.task, learned, schedule, Run(stream_seed(3, "relearn_time")))
    found = treated(band, f"relearn_time:error:{2 * steps}:1:0.5:0.003:64")
    assert state_digest(found) == state_digest(plain)


def test_learned_records_are_not_scored_and_scored_ones_are_not_learned(band):
    model, forget = treated(band), band.sets.forget
    seen = set(attacked_ids(forget, 0.5, 3))
    known = np.isfinite(curve(band, model)).all(axis=1)
    assert {i for i, one in zip(forget, known, strict=True) if not one} == seen
    train = band.dataset.train
    other = np.where(np.isin(train.ids, list(seen)), train["y"], train["y"] + 100).astype("f4")
    kept = np.isin(train.ids, band.sets.retain)
    changed = train.replace(y=np.where(kept, train["y"], other))
    scene = Scene(Dataset("regressor", changed), band.sets, 3)
    assert state_digest(treated(band, scene=scene)) == state_digest(model)


def test_held_out_records_like_the_forgotten_ones_are_scored_where_there_are_some(band):
    train, gone = band.dataset.train, band.sets.forget
    held = train.select(gone[:20])
    held = Records(tuple(f"v-{i}" for i in range(20)), dict(held.columns))
    dataset = dataclasses.replace(band.dataset, probes={"forget_validation": held})
    found = dataclasses.replace(band, dataset=dataset).audit("relearn", settings(steps=10))
    assert of(found, "relearn_steps").record_set == "forget_validation"
    assert of(found, "relearn_steps").n == 20


def test_a_classifier_is_timed_by_its_accuracy(digits_world):
    records = concatenate([digits_world.retain, digits_world.forget])
    masked, dataset = copy.deepcopy(digits_world.model), Dataset("classifier", records)
    with torch.no_grad():
        masked[2].bias[3] -= 20  # the threes are hidden, not forgotten
    sets = Sets.partition(records.ids, digits_world.forget.ids)
    world = attack_worlds.Worlds(
        digits_world.task, dataset, sets, digits_world.model, masked, (digits_world.fresh(),)
    )
    chosen = {"steps": [1], "benign": [], "time": {"steps": 60, "every": 4, "lr": 3e-3}}
    found = world.audit("relearn", chosen)
    assert "excess" in {f.metric for f in found}  # the other numbers are there as well
    after, fresh = (of(found, "relearn_steps", subject) for subject in ("after", "reference"))
    assert after.value < (60 if fresh.value is None else fresh.value)
    assert after.n == 20
    without = {f.metric for f in world.audit("relearn", {**chosen, "time": None})}
    assert without == {f.metric for f in found} - {"relearn_steps", "ain"}


@pytest.fixture
def planted(make_scores):
    """Evidence whose curves are given: rows of goodness of 60 records at 4 looks."""

    def make(after, reference, original=-1.0, before=True):
        def subject(role, values, seed=None):
            plain = make_scores([original] * 60)
            row = np.tile(np.asarray(values, float), (60, 1))
            curve = dataclasses.replace(plain, measured={CURVE: row})
            scores = {Reading("forget"): plain, Reading("forget", treatment=SPEC): curve}
            if role == "before":
                scores.pop(Reading("forget", treatment=SPEC))
            return Subject(role, role, scores, seed)

        return Evidence(
            after=subject("after", after),
            before=subject("before", after) if before else None,
            references=(subject("reference", reference, 0),),
            sets="s",
        )

    return make


def timed(evidence, **changes):
    time = dataclasses.replace(TIME, **changes)
    return time_findings(evidence, time, Run(), *timed_reading(evidence))


def test_the_goal_is_the_originals_error_and_five_percent(planted):
    # The goal is a loss of 1.05: reached at step 5 of 0..10, and at step 25 of 20..30.
    found = timed(planted([-1.1, -1.0, -1.0, -1.0], [-3, -2, -1.1, -1.0]), min_ain=0.5)
    assert of(found, "relearn_steps").value == pytest.approx(5.0)
    assert of(found, "relearn_steps", "reference").value == pytest.approx(25.0)
    assert of(found, "ain").value == pytest.approx(0.2)
    assert of(found, "ain").verdict == "fail"
    wide = timed(planted([-1.1, -1.0, -1.0, -1.0], [-3, -2, -1.1, -1.0]), margin=0.2)
    assert of(wide, "relearn_steps").value == 0


def test_ratios_are_bounds_where_one_side_is_not_reached(planted):
    found = timed(planted([-1.1, -1.0, -1.0, -1.0], [-3, -3, -3, -3]), min_ain=0.1)
    assert of(found, "ain").value == pytest.approx(5 / 30)
    assert of(found, "ain").note == "at most; a retrained model needs more than 30 steps"
    assert of(found, "ain").verdict == "inconclusive"  # the truth may be below the bound
    found = timed(planted([-3, -3, -3, -3], [-3, -1.2, -1.0, -1.0]), min_ain=1.0)
    assert (
        of(found, "ain").note == "at least; the original model's error is not reached in 30 steps"
    )
    assert of(found, "ain").verdict == "pass"
    found = timed(planted([-1.1, -1.0, -1.0, -1.0], [-1, -1, -1, -1]))
    assert of(found, "ain").note == (
        "retrained models reach the original model's error without an attack"
    )


def test_a_ratio_of_fewer_steps_than_lie_between_two_looks_decides_nothing(planted):
    found = timed(planted([-1.06, -1.0, -1.0, -1.0], [-1.1, -1.0, -1.0, -1.0]), min_ain=0.5)
    assert of(found, "ain").value == pytest.approx((1 / 6) / 0.5)
    assert "lower time.every" in of(found, "ain").note
    assert of(found, "ain").verdict == "inconclusive"


def test_without_the_original_there_is_no_goal(planted):
    found = timed(planted([-1] * 4, [-1] * 4, before=False), min_ain=0.5)
    assert "no model before unlearning" in of(found, "ain").note
    assert of(found, "ain").verdict == "inconclusive"


def test_what_cannot_be_relearned_is_told(band):
    alone = Scene(band.dataset, Sets(band.sets.forget[:1], band.sets.retain), 3)
    with pytest.raises(NotApplicable, match="one forget record"):
        treated(band, scene=alone)
    empty = dataclasses.replace(band.dataset, probes={"forget_validation": Records((), {})})
    with pytest.raises(NotApplicable, match="no forget_validation records"):
        treated(band, scene=Scene(empty, band.sets, 3))
    with pytest.raises(NotApplicable, match="diverged"):
        treated(band, "relearn_time:error:30:10:0.5:1e30:64")
    with pytest.raises(NotApplicable, match="part by part"):
        treated(band, model=Composite())
    with pytest.raises(
        UnsupportedModelError, match="'relearn_curve' is of a model after its treatment"
    ):
        curve(band, band.after)


def test_a_cancelled_or_spent_run_stops(band):
    run = Run(3)
    run.cancel()
    with pytest.raises(Interrupted, match="cancelled"):
        treated(band, run=run)
    with pytest.raises(Interrupted, match="budget of 12 steps"):
        treated(band, run=Run(3, budget=Budget(max_steps=12)))


def test_a_run_that_was_stopped_finds_the_same_curve(band, tmp_path):
    with pytest.raises(Interrupted):
        treated(band, run=Run(3, folder=tmp_path, checkpoint_every=4, budget=Budget(max_steps=12)))
    again = curve(band, treated(band, run=Run(3, folder=tmp_path)))
    np.testing.assert_array_equal(again, curve(band, treated(band)))


def test_readings_of_regressors_and_language_models(band, people):
    [plain, curve] = time_readings(RelearnTime(), 0.5, band.dataset)
    assert plain == Reading("forget")
    assert curve.treatment == "relearn_time:error:200:5:0.5:0.001:64"
    info = audits.get("relearn")
    with pytest.raises(ConfigError, match="time = none"):
        list(info.reads(parse_config(info, {"time": None}), band.dataset))
    with pytest.raises(ConfigError, match="classifiers and regressors"):
        list(info.reads(parse_config(info, settings()), Dataset("causal_lm", people)))


def test_a_kept_curve_is_read_back(band, tmp_path):
    readings = tuple(time_readings(TIME, 0.5, band.dataset))

    def scored():
        data = (band.dataset, band.sets, readings)
        return collect(band.after, band.task, *data, Run(3), role="after", cache=tmp_path)

    first, again = scored(), scored()
    for subject in (first, again):
        assert measured(subject.scores[readings[1]], CURVE).shape[1] == 4
    np.testing.assert_array_equal(
        *(measured(subject.scores[readings[1]], CURVE) for subject in (first, again))
    )
