"""MUSE's numbers: the card's values, planted scores, and a tiny Llama that reads and writes."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.audit.audit import audits, plan_readings, run_audit
from expunge.audit.collecting import collect
from expunge.audit.evidence import Evidence, Subject
from expunge.audit.measures import measures
from expunge.audit.mia_scores import min_k
from expunge.audit.muse import MuseConfig, muse
from expunge.audit.privleak import bootstrap_areas, privleak
from expunge.audit.readings import Reading
from expunge.audit.scores import Scores
from expunge.audit.stats import auc
from expunge.audit.views import Scene, see
from expunge.core.errors import ConfigError, DataError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.core.sets import Sets
from expunge.data.dataset import Dataset

CONFIG = MuseConfig(min_k=1.0)
VERBATIM = Reading("forget", "continuation:0.5:128", 100)
KNOWLEDGE = Reading("forget", "few_shot:0:retain", 100)
UTILITY = Reading("retain", "few_shot:0:retain", 100)
MEMBERS, NONMEMBERS = Reading("forget", "apart"), Reading("holdout")


def texts(losses, prefix="f", tokens=4):
    """Scores of texts of equal length, every token with the text's loss."""
    logprob_N = np.repeat(-np.asarray(losses, dtype=np.float32), tokens)
    zero_N = np.zeros_like(logprob_N)
    ids = tuple(f"{prefix}-{row}" for row in range(len(losses)))
    offsets = tokens * np.arange(len(losses) + 1)
    return Scores(ids, offsets, logprob_N, zero_N.astype(np.int32), zero_N, zero_N)


def written(values, name, prefix="f"):
    scores = texts([1.0] * len(values), prefix)
    return dataclasses.replace(scores, measured={name: np.asarray(values, dtype=np.float64)})


def subject(role, forgotten, held, seed=None, *, verbatim=(0.5,), knows=(0.25,), keeps=(1.0,)):
    scores = {
        VERBATIM: written(verbatim, "rouge_l_f"),
        KNOWLEDGE: written(knows, "rouge_l_f_first"),
        UTILITY: written(keeps, "rouge_l_f_first", "r"),
        MEMBERS: texts(forgotten),
        NONMEMBERS: texts(held, "h"),
    }
    return Subject(role, f"{role}-{seed}", scores, seed)


def found(after, *references, before=None, config=CONFIG):
    evidence = Evidence(after, before, references, "sets")
    return {(f.metric, f.subject, f.seed): f for f in muse(evidence, config, Run())}


HELD = [2.5, 3.5, 4.5, 5.5]
# A retrained model with AUC 0.5 on four texts a side: every forgotten loss has its held-out twin.
LEVEL = subject("reference", HELD, HELD, 1)


@pytest.mark.parametrize(
    ("truth", "answer", "expected"),
    [
        ("the cat sat on the mat", "the cat lay on a mat", 0.666667),
        ("Paris", "The Eiffel Tower is located in Paris, France.", 0.222222),
        ("running dogs", "the dog runs", 0.0),
        ("abc def", "", 0.0),
    ],
)
@pytest.mark.parametrize("name", ["rouge_l_f", "rouge_l_f_first"])
def test_rouge_is_that_of_the_card(name, truth, answer, expected):
    """Card muse, section 11: F-measure without stemming."""
    [value] = measures.get(name).of_text([answer], [truth])
    assert value == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("tail", ["\n\nParis is", "\nQuestion: who", " Question: who"])
def test_an_answer_ends_where_the_next_question_begins(tail):
    [value] = measures.get("rouge_l_f_first").of_text(["oslo" + tail], ["oslo"])
    assert value == 1.0


@pytest.mark.parametrize(("k", "loss"), [(0.2, 2.302585), (0.4, 1.956012), (0.6, 1.278999)])
def test_min_k_is_that_of_the_card(k, loss):
    logprob_N = np.log([0.9, 0.5, 0.1, 0.8, 0.2, 0.6, 0.7]).astype(np.float32)
    zero_N = np.zeros_like(logprob_N)
    scores = Scores(("a",), np.array([0, 7]), logprob_N, zero_N, zero_N, zero_N)
    assert -min_k(scores, k)[0] == pytest.approx(loss, abs=1e-6)
    # Of 0.35 tokens MUSE's code takes none and gets NaN; one is taken here.
    assert -min_k(scores, 0.05)[0] == pytest.approx(2.302585, abs=1e-6)


@pytest.mark.parametrize(
    ("area", "standard", "expected"),
    [
        (0.0, 0.4772, -100),
        (1.0, 0.4772, 109.5557),
        (0.2, 0.4772, -58.0889),
        (1.0, 0.5393, 85.4256),
        (0.125, 0.5, -75),
    ],
)
def test_privleak_is_that_of_the_card(area, standard, expected):
    assert privleak(area, standard) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("standard", [0.0, 1.0])
def test_privleak_of_separable_sets_is_refused(standard):
    with pytest.raises(ValueError, match="separable without training"):
        privleak(0.5, standard)


def test_the_orientation_is_muses_and_the_leak_follows_from_it():
    """Card muse, section 11: losses [1,2,3,4] against [2.5,...] give a = 0.1875, not 0.8125."""
    told = found(subject("after", [1, 2, 3, 4], HELD), LEVEL)
    assert told["min_k_auc", "after", None].value == 0.1875
    assert told["min_k_auc", "reference", 1].value == 0.5
    leak = told["privleak", "after", None]
    assert leak.value == pytest.approx(100 * (0.1875 - 0.5) / 0.5)
    assert leak.interval.low < leak.value < leak.interval.high
    assert "only 4 forgotten and 4 held-out texts" in leak.note
    assert told["privleak_distance", "after", None].value == pytest.approx(62.5)


def test_forgotten_texts_that_look_unseen_leak_upwards():
    told = found(subject("after", [9, 9, 9, 9], HELD), LEVEL)
    assert told["privleak", "after", None].value == pytest.approx(100)


def test_a_wholly_memorised_set_has_an_interval_that_is_no_point():
    """No resample of separate sets overlaps; the interval is that of as many pairs, exactly."""
    leak = found(subject("after", [0.1] * 4, HELD), LEVEL)["privleak", "after", None]
    assert leak.value == -100
    assert leak.interval.low == -100
    # Clopper and Pearson (1934): 0 of 4 is at most 0.6024.
    assert leak.interval.high == pytest.approx(100 * (0.6024 - 0.5) / 0.5, abs=0.02)


def test_constant_scores_are_even_odds():
    told = found(subject("after", [2.0] * 4, [2.0] * 4), LEVEL)
    assert told["min_k_auc", "after", None].value == 0.5
    assert told["privleak", "after", None].value == 0


def test_without_retrained_models_there_is_no_leak_and_never_a_zero():
    told = found(subject("after", [1, 2, 3, 4], HELD))
    for metric in ("privleak", "privleak_distance"):
        assert told[metric, "after", None].value is None
        assert "no other retrained model" in told[metric, "after", None].note
    assert told["min_k_auc", "after", None].value == 0.1875


@pytest.mark.parametrize("forgotten", [[9.0] * 4, [0.1] * 4])
def test_sets_that_retraining_can_tell_apart_give_no_leak(forgotten):
    apart = subject("reference", forgotten, HELD, 1)
    leak = found(subject("after", [1, 2, 3, 4], HELD), apart)["privleak", "after", None]
    assert leak.value is None
    assert "separable without training" in leak.note


def test_a_standard_far_from_even_is_told():
    unlike = subject("reference", [5, 5, 5, 3], HELD, 1)
    leak = found(subject("after", [1, 2, 3, 4], HELD), unlike)["privleak", "after", None]
    assert leak.value is not None
    assert "differ by nature (AUC of retraining 0.62" not in leak.note  # within 0.15 of even
    unlike = subject("reference", [5, 5, 5, 5], HELD, 1)
    leak = found(subject("after", [1, 2, 3, 4], HELD), unlike)["privleak", "after", None]
    assert "differ by nature (AUC of retraining 0.75" in leak.note


def test_each_retrained_model_stands_beside_the_others():
    low, high = (
        subject("reference", [2, 3, 4, 5], HELD, 1),
        subject("reference", [3, 4, 5, 6], HELD, 2),
    )
    told = found(subject("after", [1, 2, 3, 4], HELD), low, high)
    areas = {seed: told["min_k_auc", "reference", seed].value for seed in (1, 2)}
    assert areas == {1: 0.375, 2: 0.625}
    assert told["privleak", "reference", 1].value == pytest.approx(privleak(0.375, 0.625))
    assert told["privleak", "reference", 2].value == pytest.approx(privleak(0.625, 0.375))
    assert told["privleak", "after", None].value == pytest.approx(privleak(0.1875, 0.5))


def test_a_bound_on_the_leak_is_judged_with_its_interval():
    config = MuseConfig(min_k=1.0, max_privleak=5)
    told = found(
        subject("after", [0.1] * 40, HELD * 10),
        subject("reference", HELD * 10, HELD * 10, 1),
        config=config,
    )
    assert told["privleak_distance", "after", None].verdict == "fail"
    told = found(subject("after", HELD, HELD), LEVEL, config=config)
    assert told["privleak_distance", "after", None].verdict == "inconclusive"
    many = subject("after", HELD * 50, HELD * 50)
    told = found(many, subject("reference", HELD * 50, HELD * 50, 1), config=config)
    assert told["privleak_distance", "after", None].verdict == "pass"
    assert told["privleak_distance", "after", None].note == ""


def test_a_model_like_the_retrained_one_is_as_sure_as_its_texts_are_many():
    """No resample tells them apart; of 200 texts the next may differ in 0.0183, of an area 0.5."""
    many = subject("after", HELD * 50, HELD * 50)
    told = found(many, subject("reference", HELD * 50, HELD * 50, 1))
    leak = told["privleak", "after", None]
    unseen = 100 * (1 - 0.025 ** (1 / 200)) / 0.5
    assert leak.value == 0
    assert (leak.interval.low, leak.interval.high) == pytest.approx((-unseen, unseen))


def test_texts_of_few_tokens_are_left_out_and_counted():
    after = subject("after", [1, 2, 3, 4], HELD)
    short = texts([9.0], "s", tokens=3)
    joined = Scores(
        (*after.scores[MEMBERS].ids, "s-0"),
        np.append(after.scores[MEMBERS].offsets, 19),
        *(
            np.concatenate([getattr(after.scores[MEMBERS], name), getattr(short, name)])
            for name in ("logprob_N", "rank_N", "mean_N", "variance_N")
        ),
    )
    longer = dataclasses.replace(after, scores={**after.scores, MEMBERS: joined})
    told = found(longer)["min_k_auc", "after", None]
    assert told.value == 0.1875
    assert "1 texts under 4 tokens" in told.note
    alone = dataclasses.replace(after, scores={**after.scores, MEMBERS: short})
    told = found(alone)["min_k_auc", "after", None]
    assert told.value is None
    assert "no text of 4 tokens" in told.note


def test_no_held_out_texts_no_attack():
    told = found(subject("after", [1, 2], []), subject("reference", [1, 2], [], 1))
    for metric in ("min_k_auc", "privleak", "privleak_distance"):
        assert told[metric, "after", None].value is None
        assert "no held-out records" in told[metric, "after", None].note


def test_means_are_percent_with_an_interval_and_their_direction():
    told = found(
        subject("after", HELD, HELD, verbatim=[1, 0, 0.5, 0.5], knows=[0, 0.5], keeps=[1, 1]),
        before=None,
    )
    verbatim = told["verbatim", "after", None]
    assert (verbatim.value, verbatim.n, verbatim.unit) == (50, 4, "%")
    assert 0 <= verbatim.interval.low < 50 < verbatim.interval.high <= 100
    assert told["knowledge", "after", None].value == 25
    assert told["utility", "after", None].value == 100
    assert (verbatim.direction, told["utility", "after", None].direction) == ("reference", "higher")


losses = st.lists(st.sampled_from([0.5, 1.0, 1.5, 2.0, 4.0]), min_size=2, max_size=12)


@given(losses, losses)
def test_resampled_areas_are_those_of_pairs_counted_one_by_one(forgotten, held):
    """An oracle: draw alike, and count every pair."""
    from expunge.core.streams import stream

    own, other = np.array(forgotten), np.array(held)
    draws = stream(3, "bootstrap", "privleak")
    areas = bootstrap_areas(own, other, 3, resamples=5)
    for area in areas:
        a = own[draws.integers(len(own), size=len(own))]
        b = other[draws.integers(len(other), size=len(other))]
        pairs = (b[:, None] > a).mean() + (b[:, None] == a).mean() / 2
        assert area == pytest.approx(pairs, abs=1e-12)


@given(losses, losses)
def test_swapping_the_sides_mirrors_the_area(forgotten, held):
    one = auc(np.array(held), np.array(forgotten))[0]
    assert one == pytest.approx(1 - auc(np.array(forgotten), np.array(held))[0])


# Views.

SETS = Sets(forget=("train-0", "train-1"), retain=("train-2", "train-3"), holdout=("holdout-0",))
HOLDOUT = Records(("holdout-0",), {"question": ["who is in the sea"], "answer": ["carl"]})


@pytest.fixture
def scene(people):
    return Scene(Dataset("causal_lm", people, holdout=HOLDOUT), SETS, 0)


def test_the_continuation_is_what_follows_the_share_that_was_read(language_model, scene):
    _, task = language_model
    seen, records = see(task, scene, Reading("forget", "continuation:0.5:128"))
    # "anna wrote the red book" has 5 tokens: 2 are read. "bo" has 1: none is.
    assert seen.answers(records) == ["the red book", "bo"]
    assert see(task, scene, Reading("forget", "continuation:0.5:2"))[0].answers(records) == [
        "the red",
        "bo",
    ]


@pytest.mark.parametrize("wrong", ["", "0.5", "1:8", "half:8", "0.5:-1", "nan:4"])
def test_a_continuation_needs_a_share_and_a_length(language_model, scene, wrong):
    with pytest.raises(ConfigError, match=r"share below 1"):
        see(language_model[1], scene, Reading("forget", f"continuation:{wrong}"))


def test_examples_stand_before_the_question_and_are_not_asked_themselves(language_model, scene):
    _, task = language_model
    seen, records = see(task, scene, Reading("forget", "few_shot:2:retain"))
    [first, _] = [seen.tokenizer.decode(tokens[:at]) for tokens, at in seen.encoded(records)]
    assert first.endswith("who wrote the red book")
    for example in (
        "was it the blue tree it was the red tree by the sea",
        "is it in the sea it is",
    ):
        assert first.count(example) == 1
    asked, asks = see(task, scene, Reading("retain", "few_shot:1:retain", limit=1))
    [(tokens, at)] = asked.encoded(asks)
    assert asked.tokenizer.decode(tokens[:at]) == "is it in the sea it is was it the blue tree"
    assert see(task, scene, Reading("forget", "few_shot:0:retain"))[0] is task


def test_the_same_question_under_another_id_is_no_example(language_model, people):
    again = people.replace(question=["who wrote it", *people["question"][1:]])
    sets = Sets(forget=("train-0",), retain=("train-1", "train-2"))
    scene = Scene(Dataset("causal_lm", again), sets)
    with pytest.raises(DataError, match="only 1 records that are not asked"):
        see(language_model[1], scene, Reading("forget", "few_shot:2:retain"))


def test_too_few_examples_are_told(language_model, scene):
    with pytest.raises(DataError, match="lower shots, or max_records"):
        see(language_model[1], scene, Reading("retain", "few_shot:1:retain"))
    with pytest.raises(ConfigError, match="few_shot:10:retain"):
        see(language_model[1], scene, Reading("retain", "few_shot:many:retain"))


@pytest.mark.parametrize("role", ["retain", "holdout"])
def test_a_text_in_two_sets_is_refused(language_model, people, role):
    copied = {"question": ["Who wrote  IT?"], "answer": ["bo"]}
    if role == "holdout":
        data, sets = Dataset("causal_lm", people, holdout=Records(("holdout-0",), copied)), SETS
    else:
        rows = {name: [*people[name], *copied[name]] for name in copied}
        data = Dataset("causal_lm", Records((*people.ids, "copy"), rows))
        sets = Sets(forget=("train-0", "train-1"), retain=("train-2", "copy"))
    with pytest.raises(DataError, match=rf"text of a {role} record \(train-1\)"):
        see(language_model[1], Scene(data, sets), Reading("forget", "apart"))


def test_shared_passages_are_warned_of(language_model):
    passage = "the red tree by the sea is it the blue book"
    train = Records(("a", "b"), {"question": ["who", "was it"], "answer": [passage, "bo"]})
    held = Records(("h",), {"question": ["it is in"], "answer": [passage]})
    scene = Scene(Dataset("causal_lm", train, holdout=held), Sets(("a",), ("b",), ("h",)))
    with pytest.warns(UserWarning, match="8-word sequences"):
        see(language_model[1], scene, Reading("forget", "apart"))


def test_sets_without_questions_have_no_knowledge_and_say_so():
    texts_only = Records(("a", "b"), {"text": ["one", "two"]})
    info = audits.get("muse")
    readings = plan_readings([(info, MuseConfig())], Dataset("causal_lm", texts_only))
    assert set(readings) == {VERBATIM, MEMBERS, NONMEMBERS}
    after = subject("after", HELD, HELD)
    kept = {r: s for r, s in after.scores.items() if r in readings}
    told = found(dataclasses.replace(after, scores=kept))
    assert told["knowledge", "after", None].value is None
    assert "knowledge_set" in told["knowledge", "after", None].note
    with pytest.raises(DataError, match="no records 'reta'"):
        plan_readings([(info, MuseConfig(utility_set="reta"))], Dataset("causal_lm", texts_only))


def test_a_model_that_learned_by_heart_writes_everything_and_a_fresh_one_nothing(questions_world):
    """End to end, on a Llama of hidden size 32 that learned 24 answers."""
    world = questions_world
    train = Records(
        (*world.forget.ids, *world.retain.ids),
        {n: [*world.forget[n], *world.retain[n]] for n in ("question", "answer")},
    )
    held = Records(
        ("h",), {"question": ["which city leads norway"], "answer": ["nairobi by the bay"]}
    )
    dataset = Dataset("causal_lm", train, holdout=held)
    sets = Sets(world.forget.ids, world.retain.ids, ("h",))
    info, config = audits.get("muse"), MuseConfig(verbatim_tokens=8, knowledge_tokens=8)
    readings = plan_readings([(info, config)], dataset)
    models = {"after": world.model, "reference": world.fresh()}
    after, reference = (
        collect(model, world.task, dataset, sets, readings, Run(), role=role, batch_size=3)
        for role, model in models.items()
    )
    evidence = Evidence(after, None, (reference,), sets.digest())
    told = {(f.metric, f.subject): f.value for f in run_audit(info, config, evidence, Run())}
    for metric in ("verbatim", "knowledge", "utility"):
        assert told[metric, "after"] == 100
        assert told[metric, "reference"] < 20
    assert told["min_k_auc", "after"] == 0
