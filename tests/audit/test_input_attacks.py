"""Attacks that see a part of the forget set: planted models, and a small Llama by hand."""

import dataclasses

import numpy as np
import pytest
from by_hand import probability

from expunge.audit.audit import audits, plan_readings, run_audit
from expunge.audit.collecting import collect
from expunge.audit.evidence import Evidence, Subject
from expunge.audit.input_attacks import ParaphraseConfig, attacks_of
from expunge.audit.readings import Reading
from expunge.audit.treatments import treat
from expunge.audit.unseen import shown
from expunge.audit.views import Scene
from expunge.core.records import concatenate
from expunge.core.run import Run
from expunge.core.sets import Sets
from expunge.data.dataset import Dataset

BARE = {
    "rephrasers": (),
    "prefixes": (),
    "noise": (),
    "languages": (),
    "encodings": (),
    "again": False,
    "turns": (),
    "search_steps": 0,
}
PLAIN = Reading("forget")
TALK = Reading("forget", "talk:facts:3:0.5")
SEARCH = Reading("forget", "unseen:0.5", treatment="prefix_search:8:20:32:8:0.5")
N = 120


@pytest.fixture
def model(make_scores):
    """A model with these mean probabilities: plain on all records, attacked on the second half."""

    def make(role, plain, attacked=None, seed=None, absent=None):
        scores = {PLAIN: make_scores(np.log(np.full(N, plain)))}
        groups = {"group": np.arange(N) // 3.0}
        scores[PLAIN] = dataclasses.replace(scores[PLAIN], measured=groups)
        for reading, mean in (attacked or {}).items():
            part = make_scores(np.log(np.full(N // 2, mean)))
            scores[reading] = dataclasses.replace(part, ids=scores[PLAIN].ids[N // 2 :])
        return Subject(role, f"{role}{seed}", scores, seed, absent=absent or {})

    return make


def found(after, before, references=(), **settings):
    info = audits.get("paraphrase")
    evidence = Evidence(after, before, tuple(references), "sets")
    return run_audit(info, info.config(**{**BARE, **settings}), evidence, Run())


def by_name(findings, subject="after"):
    return {f.metric: f for f in findings if f.subject == subject}


BOTH = {"turns": (3,), "search_steps": 20, "max_excess": 0.1}


def test_attacks_that_see_facts_have_a_headline_of_their_own(model):
    """(.65, .30, .61) gives .885714, retraining (.65, .28, .40) .324324, the excess .561390."""
    before = model("before", 0.65, {TALK: 0.65})
    after = model("after", 0.30, {TALK: 0.30, SEARCH: 0.61})
    reference = model("reference", 0.28, {TALK: 0.28, SEARCH: 0.40}, seed=1)
    told = by_name(found(after, before, [reference], **BOTH))
    assert told["excess_prefix_search"].value == pytest.approx(0.561390, abs=1e-5)
    assert told["excess_prefix_search"].n == N // 2
    assert told["excess_informed"].value == pytest.approx(0.561390, abs=1e-5)
    assert told["excess_informed"].verdict == "fail"
    assert "strongest: searched prefix of 8 tokens" in told["excess_informed"].note
    assert told["excess_talk_facts_3"].value == pytest.approx(0, abs=1e-6)
    assert "of 40 groups of records, each is seen by the attack whole" in (
        told["recovery_talk_facts_3"].note
    )
    assert (told["excess"].value, told["excess"].verdict) == (None, "inconclusive")
    assert told["strongest"].value == pytest.approx(0.61, abs=1e-6)


def test_the_model_before_is_not_searched_and_is_compared_by_the_other_attacks(model):
    before = model("before", 0.65, {TALK: 0.5})
    after = model("after", 0.30, {TALK: 0.30, SEARCH: 0.61})
    told = found(after, before, **BOTH)
    assert by_name(told, "before")["strongest"].value == pytest.approx(0.5, abs=1e-6)
    assert by_name(told, "before")["queries"].value == N // 2
    spent = by_name(told)["queries"]
    assert spent.value == 2 * (N // 2) + 20 * 34 * 8
    assert "at most 5440 read by the search" in spent.note


def test_what_cannot_be_searched_is_told_with_its_reason(model):
    absent = {SEARCH: "a composite is attacked part by part"}
    before = model("before", 0.65, {TALK: 0.65})
    after = model("after", 0.30, {TALK: 0.60}, absent=absent)
    reference = model("reference", 0.28, {TALK: 0.28}, seed=1, absent=absent)
    told = by_name(found(after, before, [reference], **BOTH))
    assert told["recovery_prefix_search"].value is None
    assert told["recovery_prefix_search"].verdict == "not_applicable"
    assert told["recovery_prefix_search"].note == "a composite is attacked part by part"
    assert told["excess_informed"].value == pytest.approx(0.3 / 0.35, abs=1e-5)
    assert "without searched prefix of 8 tokens" in told["excess_informed"].note


def test_without_such_attacks_there_is_no_such_headline(model):
    told = by_name(found(model("after", 0.3), model("before", 0.65), max_excess=0.1))
    assert "excess_informed" not in told
    told = by_name(found(model("after", 0.3), model("before", 0.65), turns=(3,), max_excess=0.1))
    assert told["excess_informed"].verdict == "inconclusive"
    assert "no attack can be made" in told["excess_informed"].note


def test_every_attack_has_numbers_under_a_name_of_its_own():
    config = ParaphraseConfig(
        rephrasers=("both", "template", "both"), turns=(1, 3), languages=("french", "german")
    )
    attacks = attacks_of(config)
    assert len({attack.ending for attack in attacks}) == len(attacks)
    assert len({attack.title for attack in attacks}) == len(attacks)
    assert all(attack.ending.isidentifier() for attack in attacks)
    assert {a.ending for a in attacks if a.rewords} == {
        "rephrased_both_1",
        "rephrased_template_1",
        "paraphrased_question",
    }
    assert {a.ending for a in attacks if a.informed} == {
        "talk_facts_1",
        "talk_facts_3",
        "prefix_search",
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"turns": (0,)},
        {"languages": ("latin",)},
        {"encodings": ("hex",)},
        {"share": 1.0},
        {"search_tokens": 0},
    ],
)
def test_settings_that_name_no_attack_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ParaphraseConfig(**wrong)


def test_on_a_small_model_scores_follow_from_plain_likelihoods(questions_world):
    """The prefix is searched again here, and every prompt is scored one by one."""
    world = questions_world
    records = concatenate([world.forget, world.retain])
    dataset, sets = Dataset("causal_lm", records), Sets.partition(records.ids, records.ids[:20])
    info = audits.get("paraphrase")
    sizes = {"search_steps": 2, "search_tokens": 2, "search_candidates": 6, "search_facts": 4}
    config = info.config(**{**BARE, **sizes, "turns": (1,), "languages": ("spanish",)})
    readings = plan_readings([(info, config)], dataset)
    empty = world.fresh()
    subjects = [
        collect(m, world.task, dataset, sets, readings, Run(), role=role, batch_size=size)
        for m, role, size in ((empty, "after", 32), (world.model, "before", 3))
    ]
    told = by_name(run_audit(info, config, Evidence(*subjects, (), "sets"), Run()))
    scene = Scene(dataset, sets)
    _, task = treat(empty, world.task, scene, "prefix_search:2:2:6:4:0.5", Run())
    prefix = task.template.prompt.removesuffix("\n{question}")
    _, others = shown(scene, 0.5)
    pairs = list(zip(others["question"], others["answer"], strict=True))
    expected = np.mean([probability(world, empty, f"{prefix}\n{q}", a) for q, a in pairs])
    assert told["score_prefix_search"].value == pytest.approx(expected, abs=1e-5)
    assert told["score_prefix_search"].n == 10
    assert told["score_talk_facts_1"].n == 10
    assert told["score_language_spanish"].n == 20
    assert told["excess_informed"].value is None
    assert told["excess_informed"].n == 10
