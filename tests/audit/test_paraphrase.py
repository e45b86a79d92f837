"""Attacks on the input: planted models, and a small Llama beside plain likelihoods."""

import base64
import dataclasses
import json

import numpy as np
import pytest
from by_hand import probability

from expunge.audit.audit import audits, plan_readings, run_audit
from expunge.audit.collecting import collect
from expunge.audit.encodings import FRAMES
from expunge.audit.evidence import Evidence, Subject
from expunge.audit.paraphrase import ParaphraseConfig
from expunge.audit.prompts import PREFIXES
from expunge.audit.readings import Reading
from expunge.core.errors import StorageError
from expunge.core.records import Records, concatenate
from expunge.core.run import Run
from expunge.core.sets import Sets
from expunge.data.dataset import Dataset

PLAIN = Reading("forget")
OTHER = Reading("forget", "rephrased:both:1", measures=("rephrasing",))
N = 60
SPREAD = np.tile([-0.05, 0.05], N // 2)
BARE = {
    "prefixes": (),
    "noise": (),
    "languages": (),
    "encodings": (),
    "again": False,
    "turns": (),
    "search_steps": 0,
}
FEW = {**BARE, "prefixes": (0, 3), "rephrasers": ("both",)}


@pytest.fixture
def model(make_scores):
    """A model whose forget records have these mean probabilities, plain and under attacks."""

    def make(role, plain, attacks=None, seed=None, changed=N):
        scores = {PLAIN: make_scores(np.log(plain + SPREAD))}
        for view, mean in (attacks or {}).items():
            made = make_scores(np.log(mean + SPREAD))
            if view == OTHER.view:
                marks = np.where(np.arange(N) < changed, 2.0, 0.0)
                made = dataclasses.replace(made, measured={"rephrasing": marks})
            scores[Reading("forget", view)] = made
        return Subject(role, f"{role}{seed}", scores, seed)

    return make


def found(after, before=None, references=(), **settings):
    info = audits.get("paraphrase")
    evidence = Evidence(after, before, tuple(references), "sets")
    return run_audit(info, info.config(**{**FEW, **settings}), evidence, Run())


def by_name(findings, subject="after"):
    return {f.metric: f for f in findings if f.subject == subject}


def attacks(other, first, fourth):
    return {OTHER.view: other, "prefix:0": first, "prefix:3": fourth}


def test_recovery_and_excess_of_the_card(model):
    """(.65, .30, .61) gives .885714, retraining (.65, .28, .40) .324324, the excess .561390."""
    before = model("before", 0.65, attacks(0.65, 0.65, 0.65))
    after = model("after", 0.30, attacks(0.35, 0.61, 0.40))
    reference = model("reference", 0.28, attacks(0.30, 0.40, 0.30), seed=1)
    told = by_name(found(after, before, [reference], max_excess=0.1))
    assert told["recovery_prefix_0"].value == pytest.approx(0.885714, abs=1e-5)
    assert told["excess_prefix_0"].value == pytest.approx(0.561390, abs=1e-5)
    assert told["recovery_rephrased_both_1"].value == pytest.approx(0.05 / 0.35, abs=1e-5)
    assert told["excess"].value == pytest.approx(0.561390, abs=1e-5)
    assert told["excess"].verdict == "fail"
    assert told["excess"].note == "strongest: prefix 0"
    assert told["recovery_prefix_0"].note == f"prefix: {PREFIXES[0]}"


def test_the_strongest_attack_is_named_and_set_beside_retraining(model):
    after = model("after", 0.30, attacks(0.35, 0.61, 0.40))
    references = [
        model("reference", 0.28, attacks(0.50, 0.40, 0.30), seed=1),
        model("reference", 0.28, attacks(0.30, 0.40, 0.30), seed=2),
    ]
    told = by_name(found(after, model("before", 0.65, attacks(0.65, 0.65, 0.65)), references))
    strongest = told["strongest"]
    assert strongest.value == pytest.approx(0.61, abs=1e-6)
    assert strongest.note == "of 3 attacks: prefix 0"
    assert strongest.reference.values == pytest.approx((0.50, 0.40), abs=1e-6)
    assert strongest.interval.low < 0.61 < strongest.interval.high
    assert told["strongest_gain"].value == pytest.approx(0.31, abs=1e-6)
    assert told["strongest_gain"].reference.values == pytest.approx((0.22, 0.12), abs=1e-6)


def test_an_encoded_question_is_an_attack_with_an_excess_of_its_own(model):
    """(.65, .30, .61) gives .885714, retraining (.65, .28, .40) .324324, the excess .561390."""
    bare = {**BARE, "rephrasers": (), "encodings": ("base64", "rot13")}
    before = model("before", 0.65, {"encoded:base64": 0.65, "encoded:rot13": 0.65})
    after = model("after", 0.30, {"encoded:base64": 0.61, "encoded:rot13": 0.30})
    reference = model("reference", 0.28, {"encoded:base64": 0.40, "encoded:rot13": 0.28}, seed=1)
    told = by_name(found(after, before, [reference], **bare, max_excess=0.1))
    assert told["recovery_encoded_base64"].value == pytest.approx(0.885714, abs=1e-5)
    assert told["excess_encoded_base64"].value == pytest.approx(0.561390, abs=1e-5)
    assert told["excess_encoded_rot13"].value == pytest.approx(0, abs=1e-5)
    assert told["excess"].verdict == "fail"
    assert told["excess"].note == "strongest: question in base64"
    assert told["recovery_encoded_base64"].note == f"frame: {FRAMES['base64']}…"
    assert told["queries"].value == 2 * N


def test_choosing_the_strongest_of_equals_is_paid_for(model, make_scores):
    """Six attacks that do nothing but spread: the largest resampled mean lies above each one."""
    rng = np.random.default_rng(0)
    scores = {PLAIN: make_scores(np.log(np.full(N, 0.3)))}
    for number in range(6):
        noise = rng.uniform(0.1, 0.5, N)
        scores[Reading("forget", f"prefix:{number}")] = make_scores(np.log(noise))
    told = by_name(found(Subject("after", "m", scores), prefixes=tuple(range(6))))
    means = [np.exp(-s.loss_R).mean() for r, s in scores.items() if r != PLAIN]
    assert told["strongest"].value == pytest.approx(max(means), abs=1e-6)
    assert told["strongest"].interval.low > np.mean(means) - 0.02
    assert told["strongest"].interval.high > max(means) + 0.01


def test_a_question_that_was_not_reworded_is_no_attack(model):
    """Twenty-four of sixty questions got other words; the others cannot dilute what they did."""
    after = model("after", 0.30, attacks(0.30, 0.30, 0.30), changed=24)
    scores = dict(after.scores)
    high = np.where(np.arange(N) < 24, 0.8, 0.3)
    scores[OTHER] = dataclasses.replace(scores[OTHER], logprob_N=np.log(high).astype(np.float32))
    after = dataclasses.replace(after, scores=scores)
    told = by_name(found(after, model("before", 0.80, attacks(0.8, 0.8, 0.8), changed=24)))
    assert told["score_rephrased_both_1"].n == 24
    assert told["score_rephrased_both_1"].value == pytest.approx(0.8, abs=1e-6)
    assert told["rewording_gain_rephrased_both_1"].value == pytest.approx(0.5, abs=1e-6)
    assert told["rewording_gain_rephrased_both_1"].n == 24
    assert told["strongest"].note == "of 3 attacks: other words (both:1)"


def test_an_attack_on_fewer_than_twenty_records_gives_no_number(model):
    after = model("after", 0.30, attacks(0.79, 0.31, 0.30), changed=19)
    told = by_name(found(after, model("before", 0.80, attacks(0.8, 0.8, 0.8), changed=19)))
    assert told["rewording_gain_rephrased_both_1"].value is None
    assert "19 records" in told["rewording_gain_rephrased_both_1"].note
    assert told["recovery_rephrased_both_1"].value is None
    assert told["strongest"].note == "of 2 attacks: prefix 0"


def test_forgetting_that_clings_to_the_wording_fails_its_bound(model):
    before = model("before", 0.80, attacks(0.8, 0.8, 0.8))
    clings = model("after", 0.10, attacks(0.60, 0.1, 0.1))
    told = by_name(found(clings, before, max_rewording_gain=0.05))
    gain = told["rewording_gain_rephrased_both_1"]
    assert gain.value == pytest.approx(0.5, abs=1e-6)
    assert gain.verdict == "fail"
    assert "rephraser both (version template 1 + thesaurus " in gain.note
    holds = model("after", 0.10, attacks(0.10, 0.1, 0.1))
    gain = by_name(found(holds, before, max_rewording_gain=0.05))["rewording_gain_rephrased_both_1"]
    assert gain.verdict == "inconclusive"  # sixty equal records: up to 6 % may differ unseen
    gain = by_name(found(holds, before, max_rewording_gain=0.1))["rewording_gain_rephrased_both_1"]
    assert gain.verdict == "pass"


def test_the_prompts_spent_are_counted(model):
    told = by_name(found(model("after", 0.3, attacks(0.3, 0.3, 0.3))))["queries"]
    assert (told.value, told.n) == (3 * N, N)
    assert "3 attacks on 60 records" in told.note


def test_without_references_or_a_model_before_the_reason_is_given(model):
    after = model("after", 0.3, attacks(0.3, 0.6, 0.3))
    told = by_name(found(after, max_excess=0.1))
    assert told["recovery_prefix_0"].value is None
    assert told["excess"].verdict == "inconclusive"
    before = model("before", 0.35, attacks(0.35, 0.6, 0.35))
    told = by_name(found(after, before, max_excess=0.1))
    assert told["recovery_prefix_0"].value is None
    assert "less than 0.1 was lost" in told["recovery_prefix_0"].note
    assert told["strongest"].value == pytest.approx(0.6, abs=1e-6)


def test_without_any_attack_nothing_is_claimed(make_scores):
    after = Subject("after", "m", {PLAIN: make_scores([-1.0] * N)})
    told = by_name(found(after))
    gain = "rewording_gain_rephrased_both_1"
    assert set(told) == {"excess", "strongest", "strongest_gain", gain, "queries"}
    assert told["strongest"].value is None
    assert told["queries"].value == 0


@pytest.mark.parametrize("rephrasers", [("both",), ()])
def test_a_bound_never_vanishes_with_the_attacks(make_scores, rephrasers):
    bounds = {"max_excess": 0.1, "max_rewording_gain": 0.1}
    empty = make_scores([])
    for scores in ({}, {OTHER: empty}):
        after = Subject("after", "m", {PLAIN: make_scores([-1.0] * N), **scores})
        told = found(after, **bounds, rephrasers=rephrasers)
        held = {f.metric: f for f in told if f.threshold is not None}
        view = "rephrased_both_1" if rephrasers else "paraphrased_question"
        assert set(held) == {"excess", f"rewording_gain_{view}"}
        assert {(f.value, f.verdict) for f in held.values()} == {(None, "inconclusive")}
        assert all(f.note for f in held.values())


def test_it_reads_every_attack_that_the_data_allow(people):
    info = audits.get("paraphrase")

    def views(records, **settings):
        config = info.config(**{**BARE, **settings})
        readings = plan_readings([(info, config)], Dataset("causal_lm", records))
        assert {r.measures for r in readings if r.view == OTHER.view} <= {("rephrasing",)}
        return {r.view for r in readings}

    plain = {"answer", OTHER.view}
    assert views(people, prefixes=(0, 7), noise=(3,)) == plain | {"prefix:0", "prefix:7", "noise:3"}
    second = people.replace(paraphrased_question=["who"] * len(people))
    assert views(second) == plain | {"paraphrased_question"}
    fixed = {"languages": ("german",), "translators": ("file=de.jsonl",), "again": True}
    with pytest.raises(StorageError, match=r"de\.jsonl"):
        views(people, **fixed)
    fixed["translators"] = ("both",)
    told = {"language:german", "translated:both", "talk:again"}
    assert views(people, **fixed) == plain | told
    assert views(people, encodings=("rot13",)) == plain | {"encoded:rot13"}
    informed = views(people, turns=(1, 3), search_steps=5, share=0.25)
    assert informed == plain | {"talk:facts:1:0.25", "talk:facts:3:0.25", "unseen:0.25"}


def test_every_attack_of_the_card_is_made_by_default(people):
    """S8: other words, other language or encoding, noise, prefix search, several turns."""
    info = audits.get("paraphrase")
    readings = plan_readings([(info, info.config())], Dataset("causal_lm", people))
    kinds = {(r.treatment or r.view).partition(":")[0] for r in readings}
    attacks = {"rephrased", "prefix", "noise", "language", "encoded", "talk", "prefix_search"}
    assert kinds == {"answer", *attacks}
    assert {r.view for r in readings if r.treatment} == {"unseen:0.5"}


@pytest.mark.parametrize("wrong", [{"prefixes": (8,)}, {"noise": (0,)}, {"mu": -1.0}])
def test_attacks_that_do_not_exist_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ParaphraseConfig(**wrong)


def test_on_a_small_model_scores_follow_from_plain_likelihoods(questions_world, tmp_path):
    world = questions_world
    records = concatenate([world.forget, world.retain])
    questions, answers = list(records["question"]), list(records["answer"])
    others = [f"in truth, {text}" for text in questions]
    path = tmp_path / "pairs.jsonl"
    rows = [{"text": a, "rephrased": b} for a, b in zip(questions, others, strict=True)]
    path.write_text("\n".join(map(json.dumps, rows)))
    codes = [base64.b64encode(text.encode()).decode() for text in questions]
    second = [questions[(row + 1) % 3 + row // 3 * 3] for row in range(len(questions))]
    records = Records(records.ids, {**records.columns, "paraphrased_question": second})
    dataset, sets = Dataset("causal_lm", records), Sets.partition(records.ids, records.ids[:20])
    info = audits.get("paraphrase")
    given = {"rephrasers": (f"file={path}",), "prefixes": (5,), "noise": (2,)}
    given["encodings"] = ("base64",)
    config = info.config(**{**BARE, **given})
    readings = plan_readings([(info, config)], dataset)
    empty = world.fresh()
    subjects = [
        collect(m, world.task, dataset, sets, readings, Run(), role=role, batch_size=size)
        for m, role, size in ((empty, "after", 32), (world.model, "before", 3))
    ]
    told = run_audit(info, config, Evidence(*subjects, (), "sets"), Run())
    [ending] = {f.metric for f in told if f.metric.startswith("score_rephrased_file_")}
    for subject, one in (("after", empty), ("before", world.model)):
        values = by_name(told, subject)
        for metric, prompts in (
            (ending, others),
            ("score_paraphrased_question", second),
            ("score_prefix_5", [f"{PREFIXES[5]}\n{text}" for text in questions]),
            ("score_encoded_base64", [f"{FRAMES['base64']}{code}" for code in codes]),
        ):
            pairs = list(zip(prompts, answers, strict=True))[:20]
            mean = np.mean([probability(world, one, *pair) for pair in pairs])
            assert values[metric].value == pytest.approx(mean, abs=1e-5)
    assert by_name(told)["queries"].value == 5 * 20
    assert by_name(told, "before")["score_paraphrased_question"].value > 0.5  # it learned all three
