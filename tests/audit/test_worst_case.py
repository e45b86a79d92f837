"""The hardest part of a forget set: chosen by the original alone, set beside the whole."""

import copy
import dataclasses
import math

import attack_worlds
import numpy as np
import pytest
import torch
from torch import nn

from expunge.audit.audit import audits, parse_config
from expunge.audit.collecting import collect
from expunge.audit.evidence import Evidence, Subject
from expunge.audit.outputs import PREDICTION, measured
from expunge.audit.readings import Reading
from expunge.audit.treatments import NotApplicable, treat
from expunge.audit.worst_case import DIFFICULTY, WorstCaseConfig, worst_case
from expunge.core.errors import ConfigError
from expunge.core.records import concatenate
from expunge.core.run import Run
from expunge.core.sets import Sets
from expunge.data.dataset import Dataset
from expunge.engine.weights import state_digest

FORGET = Reading("forget")
SEARCH = {"outer_steps": 2, "epochs": 1, "batch_size": 64}


@pytest.fixture
def planted(make_scores):
    """Evidence on 100 forget records, the first ten of which the original knows best."""

    def make(wrong, reference=(), easy=range(10), num_retain=60, before=True, loss=0.7):
        def subject(role, wrong, seed=None):
            known = np.where(np.isin(np.arange(100), list(easy)), 0.01, loss)
            scores = {
                FORGET: make_scores(-known, wrong=wrong),
                Reading("retain"): make_scores([-0.3] * num_retain, prefix="k"),
                Reading("test"): make_scores([-1.5] * 60, prefix="t"),
            }
            return Subject(role, role, scores, seed)

        return Evidence(
            after=subject("after", wrong),
            before=subject("before", []) if before else None,
            references=(subject("reference", reference, 0),),
            sets="s",
        )

    return make


def of(findings, metric, subject="after"):
    return next(f for f in findings if f.metric == metric and f.subject == subject)


def audited(evidence, **settings):
    return worst_case(evidence, parse_config(audits.get("worst_case"), settings), Run())


def test_the_hardest_part_is_what_the_original_knew_best(planted):
    # Ten records are got wrong, all of them among the hardest ten: 10 % of the whole, all of the
    # part. The reference gets none of them wrong.
    found = audited(planted(wrong=range(10)), max_gap=20.0)
    assert of(found, "ua").value == pytest.approx(10)
    assert of(found, "ua_low_loss").value == pytest.approx(100)
    assert of(found, "ua_low_loss").n == 10
    assert of(found, "ua_low_loss").reference.gap == pytest.approx(100)
    assert of(found, "loss_low_loss").value == pytest.approx(0.01)
    assert of(found, "loss").value == pytest.approx(0.9 * 0.7 + 0.1 * 0.01)
    assert of(found, "gap").value == pytest.approx(5)  # ua 10 points, mia none, over two
    assert of(found, "gap_low_loss").value == pytest.approx(50)
    assert of(found, "gap_low_loss").note == "ua +100.0, mia +0.0"
    assert of(found, "gap_low_loss").verdict == "fail"
    assert of(found, "gap").threshold is None


def test_what_is_audited_has_no_say_in_the_choice(planted):
    evidence = planted(wrong=range(10))
    other = dict(evidence.after.scores)
    turned = np.array(other[FORGET].logprob_N)[::-1].copy()
    other[FORGET] = dataclasses.replace(other[FORGET], logprob_N=turned)
    changed = dataclasses.replace(evidence, after=dataclasses.replace(evidence.after, scores=other))
    assert of(audited(changed), "ua_low_loss").value == pytest.approx(100)


def test_difficulty_is_the_chance_that_a_retained_record_has_the_smaller_loss(planted):
    # Of the forget losses 10 lie below all retained ones (0.3) and 90 above.
    found = of(audited(planted(wrong=[])), "difficulty", "before")
    assert found.value == pytest.approx(90)
    assert found.interval.low < 90 < found.interval.high
    assert found.n == 160
    easy = of(audited(planted(wrong=[], easy=range(100))), "difficulty", "before")
    assert easy.value == 0
    assert easy.interval.high > 0
    same = of(audited(planted(wrong=[], easy=[], loss=0.3)), "difficulty", "before")
    assert same.value == 50


def test_without_an_original_or_retained_records_the_reason_is_told(planted):
    found = audited(planted(wrong=[], before=False), max_gap=5.0)
    assert "no model before unlearning" in of(found, "gap_low_loss").note
    assert of(found, "gap_low_loss").verdict == "inconclusive"
    assert of(found, "ua").value == 0
    found = audited(planted(wrong=[0], num_retain=0))
    assert of(found, "difficulty").note == "there are no retained records"
    assert of(found, "mia_low_loss").note == "there are no retained or test records"
    assert of(found, "gap").note.endswith("without mia")


def test_one_record_has_no_part(make_scores):
    scores = {Reading(n): make_scores([-1.0]) for n in ("forget", "retain", "test")}
    evidence = Evidence(
        after=Subject("after", "a", scores),
        before=Subject("before", "b", scores),
        references=(),
        sets="s",
    )
    found = audited(evidence)
    assert of(found, "ua_low_loss").note == "one forget record has no hardest part"
    assert of(found, "gap").note == "no other retrained model to compare with"


def test_a_regressor_has_losses_and_no_accuracy(planted):
    evidence = planted(wrong=[])

    def with_predictions(subject):
        plain = subject.scores[FORGET]
        taken = dataclasses.replace(plain, measured={PREDICTION: np.zeros((100, 1))})
        return dataclasses.replace(subject, scores={**subject.scores, FORGET: taken})

    evidence = dataclasses.replace(
        evidence,
        after=with_predictions(evidence.after),
        before=with_predictions(evidence.before),
        references=tuple(with_predictions(one) for one in evidence.references),
    )
    found = audited(evidence)
    assert not any(f.metric.startswith("ua") for f in found)
    assert of(found, "loss_low_loss").value == pytest.approx(0.01)
    assert of(found, "gap_low_loss").value == 0
    bare = dataclasses.replace(evidence, before=None)
    assert not any(f.metric.startswith("ua") for f in audited(bare))


@pytest.fixture(scope="module")
def digits(digits_world):
    records = concatenate([digits_world.retain, digits_world.forget])
    dataset = Dataset("classifier", records, test=digits_world.retain)
    sets = Sets.partition(records.ids, digits_world.forget.ids)
    return attack_worlds.Worlds(
        digits_world.task,
        dataset,
        sets,
        digits_world.model,
        digits_world.fresh(),
        (digits_world.model,),
    )


def test_a_search_is_made_on_the_original_alone(digits):
    settings = {"by": ["low_loss", "bilevel"], "share": 0.25, "bilevel": SEARCH}
    _, _, evidence, _ = digits.evidence("worst_case", settings)
    searched = [one.role for one in evidence if any(r.treatment for r in one.scores)]
    assert searched == ["before"]
    found = digits.audit("worst_case", settings)
    assert of(found, "ua_bilevel").n == 10
    assert "of the search's random start" in of(found, "gap_bilevel").note
    assert of(found, "loss_bilevel", "before").value < of(found, "loss", "before").value
    low = of(found, "loss_low_loss", "before").value
    assert low <= of(found, "loss_bilevel", "before").value
    again = digits.audit("worst_case", settings)
    assert [f.digest() for f in again] == [f.digest() for f in found]


SPEC = "worst_case:0.25:2:1:0.0001:64:10000.0:0.0001"


def test_the_original_stays_as_it_is(digits, tmp_path):
    digest = state_digest(digits.before)
    treated, task = treat(digits.before, digits.task, digits.scene(), SPEC, Run(3))
    assert state_digest(digits.before) == state_digest(treated) == digest
    assert task is digits.task
    reading = Reading("forget", treatment=SPEC, measures=(DIFFICULTY,))
    data = (digits.dataset, digits.sets, (reading,))
    kept = [
        collect(digits.before, digits.task, *data, Run(3), role="before", cache=tmp_path)
        for _ in range(2)
    ]
    first, again = (measured(one.scores[reading], DIFFICULTY) for one in kept)
    np.testing.assert_array_equal(first, again)
    assert first[:, 0].sum() == pytest.approx(10)
    assert len(set(first[:, 1])) == 1


def test_what_cannot_be_searched_is_told(digits):
    class Composite(nn.Module):
        def parts(self):
            return {}

    alone = type(digits.scene())(digits.dataset, Sets(digits.sets.forget[:1]), 3)
    with pytest.raises(NotApplicable, match="no hardest part"):
        treat(digits.before, digits.task, alone, SPEC, Run(3))
    with pytest.raises(NotApplicable, match="composite"):
        treat(Composite(), digits.task, digits.scene(), SPEC, Run(3))


def test_a_method_that_scrambles_what_everybody_knows_stands_out(digits):
    """A model that gets the forget set wrong by design is farther from retraining where it is
    hardest: retrained models get the hardest part right."""
    scrambled = copy.deepcopy(digits.before)
    with torch.no_grad():
        scrambled[2].weight.mul_(-1)
    found = digits.audit("worst_case", {}, after=scrambled)
    assert of(found, "gap_low_loss").value >= of(found, "gap").value
    assert math.isclose(of(found, "ua_low_loss", "reference").value, 0)


def test_settings(people):
    info = audits.get("worst_case")
    for wrong in ({"share": 0.0}, {"share": 1.0}, {"by": ["best"]}, {"bilevel": {"step": 0.0}}):
        with pytest.raises(ConfigError):
            parse_config(info, wrong)
    assert WorstCaseConfig().by == ("low_loss",)
    kinds = {kind: list(info.reads(info.config(), Dataset(kind, people))) for kind in info.kinds}
    assert kinds["regressor"][0].measures == (PREDICTION,)
    assert kinds["classifier"][0].measures == ()
