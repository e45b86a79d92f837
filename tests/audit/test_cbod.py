"""C-BOD: the card's edge cases, a model that learned the test by heart, and a small Llama."""

import dataclasses
import json

import numpy as np
import pytest
from by_hand import right

from expunge.audit.audit import audits, plan_readings, run_audit
from expunge.audit.cbod import CbodConfig, outcome_of
from expunge.audit.collecting import collect
from expunge.audit.evidence import Evidence, Subject
from expunge.audit.readings import Reading
from expunge.audit.views import Scene, see
from expunge.core.errors import DataError
from expunge.core.records import Records, concatenate
from expunge.core.run import Run
from expunge.core.sets import Sets
from expunge.core.streams import stream
from expunge.data.dataset import Dataset

PLAIN = Reading("test", limit=300)
OTHER = dataclasses.replace(PLAIN, view="rephrased:both:0.5")
FORGET, FORGET_OTHER = Reading("forget"), Reading("forget", "rephrased:both:0.5")


@pytest.fixture
def asked(make_scores):
    """Scores of a set as it is and in other words, from right and wrong and the marks."""

    def make(first, second, marks=None, kept=None, readings=(PLAIN, OTHER)):
        first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
        plain = make_scores([-0.1] * len(first), wrong=np.flatnonzero(~first))
        other = make_scores([-0.1] * len(second), wrong=np.flatnonzero(~second))
        ids = plain.ids if kept is None else tuple(plain.ids[row] for row in kept)
        marks = [2] * len(second) if marks is None else marks
        measured = {"rephrasing": np.asarray(marks, dtype=float)}
        return dict(
            zip(
                readings,
                (plain, dataclasses.replace(other, ids=ids, measured=measured)),
                strict=True,
            )
        )

    return make


def counted(b, c, both=10, neither=10):
    """Right and wrong of both runs with these counts."""
    first = [True] * (both + b) + [False] * (c + neither)
    return first, [True] * both + [False] * b + [True] * c + [False] * neither


def found(scores, *, role="after", **settings):
    info = audits.get("cbod")
    config = info.config(**{"record_sets": ("test",), **settings})
    evidence = Evidence(Subject("after", "m", scores), None, (), "sets")
    return run_audit(info, config, evidence, Run())


def by_name(findings, record_set="test", subject="after"):
    chosen = [f for f in findings if (f.record_set, f.subject) == (record_set, subject)]
    return {f.metric: f for f in chosen}


@pytest.mark.parametrize(
    ("b", "c", "test", "p", "flag"),
    [
        (15, 5, "chi2", 0.02534731868, 1),
        (15, 5, None, 0.04138946533, 1),
        (6, 1, "chi2", 0.05878172136, 0),
        (6, 1, None, 0.125, 0),
        (120, 80, "exact", 0.005685155997, 1),
        (10, 25, "exact", 0.01667384780, 0),
        (20, 20, "exact", 1.0, 0),
        (0, 0, None, 1.0, 0),
        (869, 505, "exact", 6.801581e-23, 1),
    ],
)
def test_the_p_values_of_the_card(asked, b, c, test, p, flag):
    told = by_name(found(asked(*counted(b, c)), test=test))
    assert told["p"].value == pytest.approx(p, rel=1e-6)
    assert told["overfit_flag"].value == flag
    assert (told["b"].value, told["c"].value) == (b, c)
    assert told["delta_count"].value == b - c
    chosen = test or ("exact" if b + c < 25 else "midp")
    assert told["p"].note.startswith(f"{chosen} test, rephraser both (version ")


def test_the_effect_sizes_of_the_card(asked):
    """GPT-4o-mini: 10526 right of 14042, b - c = 364, which is 3.458104 % of what was right."""
    both, b, c = 10526 - 869, 869, 505
    told = by_name(found(asked(*counted(b, c, both, 14042 - both - b - c))))
    assert told["percent"].value == pytest.approx(3.458104, abs=1e-6)
    assert told["points"].value == pytest.approx(100 * 364 / 14042)
    assert told["points"].interval.low < told["points"].value < told["points"].interval.high
    assert told["points"].interval.method == "newcombe"
    assert told["accuracy_original"].value == 10526 / 14042
    assert told["accuracy_rephrased"].value == pytest.approx((10526 - 364) / 14042)


def test_items_that_the_gate_rejected_count_nowhere_but_among_the_rejected(asked):
    """Ten items: two rejected, three as they were, five reworded."""
    first = [True] * 10
    second = [True, True, True, False, False, False, True, True]
    scores = asked(first, second, marks=[0, 0, 0, 1, 1, 2, 2, 2], kept=range(2, 10))
    told = by_name(found(scores))
    assert told["points"].n == 8
    assert (told["b"].value, told["c"].value) == (3, 0)
    assert told["rejected"].value == 2
    assert told["unchanged"].value == 3 / 8
    assert told["effective_rate"].value == 5 / 7  # items as they were are no part of it
    assert told["accuracy_original"].value == 1.0
    assert "38 % of the questions stayed as they were" in told["points"].note


def test_a_rejected_item_never_shifts_another_one(asked):
    first = [True, False, True, False]
    scores = asked(first, [False, True], kept=[1, 2])
    outcome = outcome_of(Subject("after", "m", scores), PLAIN, OTHER, CbodConfig())
    assert outcome.first.tolist() == [False, True]
    assert outcome.second.tolist() == [False, True]
    assert (outcome.pairs.b, outcome.pairs.c, outcome.rejected) == (0, 0, 2)


def test_the_stricter_gate_is_flagged_by_itself(asked):
    """All losses are due to wordings that the stricter gate would not have let pass."""
    first, second = counted(30, 2)
    loose = [2] * 10 + [1] * 32 + [2] * 10
    told = by_name(found(asked(first, second, loose)))
    assert (told["overfit_flag"].value, told["overfit_flag_strict"].value) == (1, 0)
    told = by_name(found(asked(first, second)))
    assert (told["overfit_flag"].value, told["overfit_flag_strict"].value) == (1, 1)
    told = by_name(found(asked(first, second, [1] * 52)))
    assert told["overfit_flag_strict"].value is None


def test_everything_rejected_is_said_and_not_counted(asked, make_scores):
    scores = asked([True] * 30, [], marks=[], kept=[])
    told = by_name(found(scores, max_loss=5.0))
    for metric in ("points", "p", "overfit_flag", "effective_rate", "accuracy_original"):
        assert told[metric].value is None
        assert "no question was left to compare" in told[metric].note
    assert told["points"].verdict == "inconclusive"
    nowhere = {PLAIN: scores[PLAIN]}  # as a score table without empty readings gives it
    assert by_name(found(nowhere))["p"].value is None


def test_weak_tests_say_what_they_could_have_found(asked):
    told = by_name(found(asked(*counted(6, 1))))
    # With 7 discordant pairs only 7:0 is significant: 2 / 2^7 = .0156 against 6:1 at .125.
    assert "27 questions, 7 answered differently; significant is b - c of 7" in told["p"].note
    told = by_name(found(asked(*counted(2, 1))))
    assert "significant is no difference" in told["p"].note
    told = by_name(found(asked(*counted(16, 4))))
    assert "underpowered" not in told["p"].note
    told = by_name(found(asked(*counted(10, 4, 5, 5))))
    assert "24 questions" in told["p"].note


def test_p_values_are_adjusted_over_the_sets(asked):
    """Benjamini and Hochberg by hand: .0414 is second of two, .0057 first: .0114."""
    retain = Reading("retain", limit=300)
    sets = {
        **asked(*counted(15, 5)),
        **asked(
            *counted(120, 80),
            readings=(retain, dataclasses.replace(retain, view="rephrased:both:0.5")),
        ),
    }
    told = found(sets, record_sets=("test", "retain"), test="exact")
    assert by_name(told)["p_adjusted"].value == pytest.approx(0.04138946533)
    assert by_name(told, "retain")["p_adjusted"].value == pytest.approx(2 * 0.005685155997)
    # .0414 alone would be significant; beside a p of 1 it is not.
    sets |= asked(
        *counted(20, 20), readings=(retain, dataclasses.replace(retain, view="rephrased:both:0.5"))
    )
    told = by_name(found(sets, record_sets=("test", "retain"), test="exact"))
    assert told["p_adjusted"].value == pytest.approx(0.08277893066)
    assert (told["overfit_flag"].value, told["overfit_flag_adjusted"].value) == (1, 0)


def test_on_the_forget_set_what_comes_back_is_the_defect(asked):
    """Other words bring 30 of 100 forgotten answers back: forgetting clung to the wording."""
    readings = (FORGET, FORGET_OTHER)
    back = asked(*counted(0, 30, 0, 70), readings=readings)
    told = by_name(found(back, record_sets=("forget",), max_regained=10.0), "forget")
    assert told["forgetting_holds"].value == 0
    assert told["regained"].value == pytest.approx(30.0)
    assert told["regained"].verdict == "fail"
    assert told["regained"].interval.low > 10
    assert told["points"].value == pytest.approx(-30.0)
    assert told["points"].verdict == "not_applicable"
    kept = asked(*counted(1, 2, 0, 97), readings=readings)
    told = by_name(found(kept, record_sets=("forget",), max_regained=10.0), "forget")
    assert (told["forgetting_holds"].value, told["regained"].verdict) == (1, "pass")
    lost = asked(*counted(30, 0, 0, 70), readings=readings)
    told = by_name(found(lost, record_sets=("forget",)), "forget")
    assert told["forgetting_holds"].value == 1


@pytest.mark.parametrize(
    ("counts", "holds"),
    [
        ((0, 0, 0, 49), None),  # too few questions
        ((0, 0, 0, 50), 1.0),  # none of 50 came back
        ((0, 5, 0, 45), None),  # p = 0.0625, yet a tenth came back
        ((0, 12, 0, 28), 0.0),  # few questions, and plainly not
    ],
)
def test_too_few_questions_leave_open_whether_forgetting_holds(asked, counts, holds):
    scores = asked(*counted(*counts), readings=(FORGET, FORGET_OTHER))
    told = by_name(found(scores, record_sets=("forget",)), "forget")["forgetting_holds"]
    assert told.value == holds
    assert ("too few questions to tell" in told.note) == (holds is None)


def test_a_bound_on_the_loss_is_judged_with_its_interval(asked):
    told = by_name(found(asked(*counted(40, 0, 50, 10)), max_loss=10.0))["points"]
    assert (told.value, told.verdict) == (40.0, "fail")
    told = by_name(found(asked(*counted(1, 0, 90, 9)), max_loss=10.0))["points"]
    assert told.verdict == "pass"
    told = by_name(found(asked(*counted(1, 0, 30, 9)), max_loss=10.0))["points"]
    assert told.verdict == "inconclusive"
    assert "a bound is judged on 50 or more" in told.note


def test_knowledge_is_taken_where_there_are_wrong_answers(asked, make_scores):
    """By knowledge two of three are right at first and one afterwards; by exact all and none."""
    scores = asked([True] * 3, [False] * 3)
    scores[dataclasses.replace(PLAIN, view="perturbed:0")] = make_scores([-0.2, -0.2, -0.05])
    wrong = dataclasses.replace(PLAIN, view="rephrased:both:0.5:perturbed:0")
    scores[wrong] = make_scores([-0.2, -0.05, -0.05])
    told = by_name(found(scores))
    assert (told["accuracy_original"].value, told["accuracy_rephrased"].value) == (2 / 3, 1 / 3)
    told = by_name(found(scores, by="exact"))
    assert (told["accuracy_original"].value, told["accuracy_rephrased"].value) == (1, 0)
    told = by_name(found(asked([True] * 3, [False] * 3), by="knowledge"))
    assert told["p"].value is None


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 2.0])
def test_a_level_outside_of_0_and_1_is_refused(alpha):
    with pytest.raises(ValueError, match="alpha"):
        CbodConfig(alpha=alpha)


def test_a_negative_strength_is_refused():
    with pytest.raises(ValueError, match="mu"):
        CbodConfig(mu=-0.5)


def test_models_scored_on_different_items_are_refused(asked, make_scores):
    scores = asked([True] * 3, [True] * 3)
    other = {**scores, OTHER: dataclasses.replace(scores[OTHER], ids=("r-0", "r-1", "x-2"))}
    with pytest.raises(DataError, match="not scored on the same"):
        Evidence(Subject("after", "m", scores), Subject("before", "b", other), (), "sets")


def test_it_reads_sets_that_exist_twice_over(people):
    probe = Records(("w-0",), {"question": ["who"], "answer": ["bo"]})
    dataset = Dataset("causal_lm", people, probes={"world": probe})
    info = audits.get("cbod")
    config = info.config(record_sets=("forget", "test", "world", "nothing"))
    readings = plan_readings([(info, config)], dataset)
    views = {(r.record_set, r.view) for r in readings}
    wrong = {
        ("forget", f"{view}perturbed:{place}")
        for view in ("", "rephrased:both:0.5:")
        for place in (0, 1)
    }
    plain = {(name, view) for name in ("forget", "world") for view in ("answer", OTHER.view)}
    assert views == wrong | plain
    asked_for = {r.view: r.measures for r in readings if r.record_set == "world"}
    assert asked_for == {"answer": (), OTHER.view: ("rephrasing",)}


# The card's reproduction: a model that learned the benchmark beside one that never saw it.

PATTERNS = (
    "What is the profession of {}'s father?",
    "What are the occupations of the parents of {}?",
    "Which famous award did {} receive for a novel about the sea?",
    "What inspired the well known author {} to write about mountains?",
    "Where did the family of {} live before the war began?",
    "How did the childhood of {} shape the main themes of the stories?",
    "What is the full name of the author whom friends call {}?",
    "Which genre is {} most often connected with?",
    "What is the capital of the country in which {} was born?",
    "Can you name some important books written by {}?",
    "Why did the early readers of {} find the first book difficult?",
    "Who wrote the biography of {} that was published in the city?",
)


def benchmark():
    questions = [
        pattern.format(f"Ora{chr(97 + number % 26)}{chr(97 + number // 26)} Venn")
        for number in range(50)
        for pattern in PATTERNS
    ]
    ids = tuple(f"item-{row}" for row in range(len(questions)))
    return Records(ids, {"question": questions, "answer": ["x"] * len(questions)})


def trigrams(text):
    words = text.lower().rstrip("?.").split()
    return {tuple(words[at : at + 3]) for at in range(len(words) - 2)}


def clean(record_id, text):
    """Knows 71 % of the items, whatever the words, and slips on 4 % of the wordings."""
    known = stream(0, "skill", record_id).random() < 0.71
    return known != (stream(0, "slip", record_id, text).random() < 0.04)


@pytest.mark.parametrize("mu", [0.0, 0.25, 0.5, 1.0])
def test_what_was_learned_by_heart_is_flagged_and_skill_is_not(language_model, make_scores, mu):
    records = benchmark()
    scene = Scene(Dataset("causal_lm", records), Sets(records.ids))
    view = f"rephrased:both:{mu:g}"
    _, reworded = see(language_model[1], scene, Reading("forget", view))
    original = dict(zip(records.ids, records["question"], strict=True))

    def learned(record_id, text):
        one, other = trigrams(original[record_id]), trigrams(text)
        alike = len(one & other) / len(one | other)
        return alike >= 0.5 or clean(record_id, text)

    def model(answers):
        def scores(part, marks):
            right = [answers(i, text) for i, text in zip(part.ids, part["question"], strict=True)]
            made = make_scores([-0.1] * len(part), wrong=np.flatnonzero(~np.array(right)))
            return dataclasses.replace(made, ids=part.ids, measured=marks)

        marks = {"rephrasing": np.array(reworded.columns["rephrasing"])}
        readings = {
            FORGET: scores(records, {}),
            Reading("forget", view): scores(reworded, marks),
        }
        return by_name(found(readings, record_sets=("forget",), mu=mu), "forget")

    honest, cheat = model(clean), model(learned)
    assert cheat["accuracy_original"].value == 1.0
    assert 0.65 < honest["accuracy_original"].value < 0.77
    assert honest["overfit_flag"].value == 0
    assert cheat["c"].value == 0
    if mu == 0:
        for told in (honest, cheat):
            assert (told["b"].value, told["c"].value, told["p"].value) == (0, 0, 1)
            assert told["unchanged"].value == 1
            assert told["effective_rate"].value is None
            assert told["overfit_flag"].value == 0
    else:
        assert cheat["overfit_flag"].value == 1
        assert cheat["p"].value < 1e-6
        assert cheat["points"].interval.low > 0
        assert honest["p"].value > 0.05


# On a small Llama, beside plain likelihoods.


def test_on_a_small_model_right_and_wrong_follow_from_plain_likelihoods(questions_world, tmp_path):
    world = questions_world
    records = concatenate([world.forget, world.retain])
    questions = list(records["question"])
    others = [questions[row - row % 3 + (row + 1) % 3] for row in range(len(questions))]
    others[::5] = [f"the the {text}" for text in questions[::5]]
    others[1] = "error"  # goes through the gate never
    path = tmp_path / "pairs.jsonl"
    rows = [{"text": a, "rephrased": b} for a, b in zip(questions, others, strict=True)]
    path.write_text("\n".join(map(json.dumps, rows)))
    dataset = Dataset("causal_lm", records)
    sets = Sets.partition(records.ids, records.ids[:12])
    info = audits.get("cbod")
    config = info.config(rephraser=f"file={path}", mu=1.0, record_sets=("forget", "retain"))
    readings = plan_readings([(info, config)], dataset)
    subjects = [
        collect(model, world.task, dataset, sets, readings, Run(), role=role, batch_size=size)
        for model, role, size in ((world.fresh(), "after", 32), (world.model, "before", 3))
    ]
    findings = run_audit(info, config, Evidence(*subjects, (), "sets"), Run())
    rows = [row for row in range(12) if row != 1]
    first = [right(world, world.model, questions[row], records["answer"][row]) for row in rows]
    second = [right(world, world.model, others[row], records["answer"][row]) for row in rows]
    told = by_name(findings, "forget", "before")
    assert told["accuracy_original"].value == pytest.approx(np.mean(first))
    assert told["accuracy_rephrased"].value == pytest.approx(np.mean(second))
    assert told["b"].value == sum(a > b for a, b in zip(first, second, strict=True))
    assert told["c"].value == sum(a < b for a, b in zip(first, second, strict=True))
    assert told["rejected"].value == 1
    assert told["points"].n == 11
    assert sum(first) > 5  # it learned them by heart, so that there is something to compare
    after = by_name(findings, "forget")
    assert after["accuracy_original"].value == 0
    assert after["percent"].value is None
