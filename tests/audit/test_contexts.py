"""Contexts above prompts: what they hold, and what they never hold."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.audit.readings import Reading
from expunge.audit.scores import score
from expunge.audit.views import Scene, see, views
from expunge.core.errors import ConfigError, DataError
from expunge.core.records import Records, concatenate
from expunge.core.run import Run
from expunge.core.sets import Sets
from expunge.data.dataset import Dataset
from expunge.data.rephrasers.typos import character_noise
from expunge.engine.tasks.causal_lm import CausalLM, Template

SIZE, GONE = 14, 4


def facts():
    """Ten retained and four forgotten facts; row 13 asks what row 0 asks, in other letters."""
    questions = [f"who wrote book {'x' * row}" for row in range(SIZE)]
    questions[13] = " Who  wrote BOOK"
    questions[0] = "who wrote book"
    columns = {
        "question": questions,
        "answer": [f"answer {row}" for row in range(SIZE)],
        "paraphrased_answer": [f"in other words {row}" if row % 2 else None for row in range(SIZE)],
        "perturbed_answer": [[f"false {row}"] if row != 2 else None for row in range(SIZE)],
        "axioms": [[f"axiom {row}.{part}" for part in range(row)] for row in range(SIZE)],
    }
    return Records(tuple(f"r-{row}" for row in range(SIZE)), columns)


def scene_of(records, seed=0, gone=GONE):
    return Scene(
        Dataset("causal_lm", records), Sets.partition(records.ids, records.ids[:gone]), seed
    )


@pytest.fixture(scope="module")
def look(language_model):
    def see_it(view, record_set="forget", records=None, task=language_model[1], seed=0):
        scene = scene_of(facts() if records is None else records, seed)
        return see(task, scene, Reading(record_set, view))

    return see_it


def lines(seen):
    return {i: text.split("\n") for i, text in zip(seen[1].ids, seen[1]["context"], strict=True)}


def fact(row):
    records = facts()
    return f"{records['question'][row]} {records['answer'][row]}"


def test_a_statement_is_the_fact_in_other_words_among_others(look):
    seen = look("context:statement:3")
    told = lines(seen)
    others = {f"{q} answer {row}" for row, q in enumerate(facts()["question"]) if row >= GONE}
    for row in range(GONE):
        words = f"in other words {row}" if row % 2 else f"answer {row}"
        own = f"{facts()['question'][row]} {words}"
        assert len(told[f"r-{row}"]) == 3
        assert own in told[f"r-{row}"]
        assert set(told[f"r-{row}"]) - {own} <= others
    assert list(seen[1]["answer"]) == [f"answer {row}" for row in range(GONE)]


def test_the_context_is_a_line_of_its_own_above_the_prompt(look):
    task, records = look("context:statement:1")
    [(prompt, answer)] = task._texts(records, [1])
    assert prompt == "who wrote book x in other words 1\nwho wrote book x"
    assert answer == " answer 1"


def test_the_fact_stands_anywhere(look):
    places = set()
    for seed in range(12):
        told = lines(look("context:statement:3", seed=seed))
        places |= {told["r-1"].index("who wrote book x in other words 1")}
    assert places == {0, 1, 2}


def test_a_larger_context_holds_the_smaller_one(look):
    small, large = lines(look("context:statement:2")), lines(look("context:statement:6"))
    assert all(set(small[i]) < set(large[i]) for i in small)
    small, large = lines(look("context:demo:2")), lines(look("context:demo:6"))
    assert all(small[i] == large[i][:2] for i in small)


def test_irrelevant_differs_from_the_statement_by_the_fact_alone(look):
    statement, irrelevant = lines(look("context:statement:4")), lines(look("context:irrelevant:4"))
    for row, name in enumerate(statement):
        gone = set(statement[name]) - set(irrelevant[name])
        come = set(irrelevant[name]) - set(statement[name])
        assert [int(line.split()[-1]) for line in gone] == [row]
        assert [int(line.split()[-1]) >= GONE for line in come] == [True]
        assert len(irrelevant[name]) == 4


def test_what_is_irrelevant_is_as_long_as_the_fact(look):
    """Of all ten retained facts none comes nearer to its length."""
    [own], [other] = (
        lines(look(f"context:{kind}:1"))["r-2"] for kind in ("statement", "irrelevant")
    )
    lengths = [len(fact(row)) for row in range(GONE, SIZE)]
    assert abs(len(other) - len(own)) == min(abs(n - len(own)) for n in lengths)
    assert int(other.split()[-1]) >= GONE


def test_a_wrong_fact_has_the_same_form_and_the_same_company(look):
    wrong, statement = lines(look("context:wrong:4")), lines(look("context:statement:4"))
    assert list(wrong) == ["r-0", "r-1", "r-3"]  # r-2 has no wrong answer
    for row in (0, 1, 3):
        assert f"{facts()['question'][row]} false {row}" in wrong[f"r-{row}"]
        assert len(set(wrong[f"r-{row}"]) & set(statement[f"r-{row}"])) == 3


def test_what_is_disguised_has_slips_in_the_fact_and_in_the_question(look):
    seen, plain = look("context:disguised:2"), look("context:statement:2")
    task, records = seen
    for row, (name, told) in enumerate(lines(plain).items()):
        own = next(line for line in told if int(line.split()[-1]) == row)
        slipped = character_noise(own, 3, 0)
        assert slipped != own
        assert set(lines(seen)[name]) == {slipped, *(line for line in told if line != own)}
        asked = character_noise(facts()["question"][row], 3, 0)
        assert task._texts(records, [row])[0][0].split("\n")[-1] == asked
    assert list(records["answer"]) == [f"answer {row}" for row in range(GONE)]
    lent = look("borrowed_context:disguised:1", "retain")
    assert list(lent[1]["question"]) == facts()["question"][GONE:]
    slips = {character_noise(own, 3, 0) for [own] in lines(look("context:statement:1")).values()}
    assert {own for [own] in lines(lent).values()} <= slips


def test_demonstrations_have_the_form_of_the_prompt(language_model, look):
    task = language_model[1].with_template(Template(prompt="Q: {question} A:", answer=" {answer}"))
    told = lines(look("context:demo:2", task=task))
    asked = {f"Q: {q} A: answer {row}" for row, q in enumerate(facts()["question"]) if row >= GONE}
    assert all(len(demos) == 2 and set(demos) <= asked for demos in told.values())


def test_axioms_are_told_as_far_as_there_are_some(look):
    told = lines(look("context:axiom:2"))
    assert list(told) == ["r-1", "r-2", "r-3"]  # r-0 has none
    assert "axiom 1.0" in told["r-1"]
    assert len(told["r-1"]) == 2
    assert sorted(told["r-3"]) == ["axiom 3.0", "axiom 3.1"]
    bare = Records(facts().ids, {n: facts()[n] for n in ("question", "answer")})
    assert len(look("context:axiom:1", records=bare)[1]) == 0
    with pytest.raises(DataError, match="must be a list of texts"):
        look("context:axiom:1", records=facts().replace(axioms=["text"] * SIZE))


@pytest.mark.parametrize("kind", ["demo", "irrelevant", "statement"])
def test_no_context_holds_another_record_with_the_same_question(look, kind):
    """Row 13 asks what row 0 asks, so that nine of the ten retained records can be told."""
    most = 10 if kind == "statement" else 9
    told = lines(look(f"context:{kind}:{most}"))
    assert len(told["r-0"]) == most
    assert not any(line.endswith(" 13") for line in told["r-0"])
    assert list(lines(look(f"context:{kind}:{most + 1}"))) == [f"r-{row}" for row in range(1, GONE)]


@pytest.mark.parametrize(("view", "left"), [("demo:1", 0), ("irrelevant:1", 0), ("statement:1", 4)])
def test_without_retained_records_only_the_fact_itself_can_be_told(language_model, view, left):
    scene = scene_of(facts(), gone=SIZE)
    few = see(language_model[1], scene, Reading("forget", f"context:{view}"))[1]
    assert len(few) == (SIZE if left else 0)


@pytest.mark.parametrize("kind", ["statement", "demo", "irrelevant", "wrong"])
def test_a_retained_query_borrows_the_context_of_a_forgotten_record(look, kind):
    told = lines(look(f"borrowed_context:{kind}:3", "retain"))
    assert list(told) == [f"r-{row}" for row in range(GONE, SIZE)]
    owners = set()
    for name, held in told.items():
        rows = [int(line.split()[-1]) for line in held]
        forgotten = [row for row in rows if row < GONE]
        owners |= set(forgotten)
        assert int(name[2:]) not in rows
        assert len(set(rows)) == 3
        assert len(forgotten) == (kind in ("statement", "wrong"))
        assert sum("false" in line for line in held) == (kind == "wrong")
    if kind == "statement":
        assert len(owners) > 1
    if kind == "wrong":
        assert 2 not in owners  # it has no wrong answer


def test_without_anything_to_borrow_no_record_is_left(look):
    bare = Records(facts().ids, {n: facts()[n] for n in ("question", "answer")})
    assert len(look("borrowed_context:wrong:1", "retain", records=bare)[1]) == 0


def test_the_second_wording_of_a_question_tells_the_fact(look):
    records = facts().replace(paraphrased_question=["by whom"] + [None] * (SIZE - 1))
    told = lines(look("context:statement:1", records=records))
    assert told["r-0"] == ["by whom answer 0"]
    assert told["r-2"] == ["who wrote book xx answer 2"]


def test_a_column_called_context_is_left_alone(look, language_model):
    task = language_model[1].with_template(
        Template(prompt="{context} {question}", answer=" {answer}")
    )
    records = facts().replace(context=["page"] * SIZE)
    task, seen = look("context:statement:1", records=records, task=task)
    [(prompt, _)] = task._texts(seen, [0])
    assert prompt == "page who wrote book answer 0\npage who wrote book"


def test_wrong_answers_are_scored_under_the_same_context(look):
    plain, wrong = look("context:wrong:2"), look("context:wrong:2:perturbed:0")
    assert lines(plain) == lines(wrong)
    assert list(wrong[1]["answer"]) == ["false 0", "false 1", "false 3"]


def test_what_no_longer_fits_is_left_out_and_never_cut(language_model, look):
    tokenizer = language_model[1].tokenizer
    template = Template(prompt="{question}", answer=" {answer}", max_length=8)
    text = "who wrote book xxx in other words 3\nwho wrote book xxx answer 3"
    longest = len(tokenizer(text)["input_ids"]) + 1
    fits = CausalLM(tokenizer, template, context=longest)
    seen, told = look("context:statement:1", task=fits)
    assert max(seen.lengths(told)) == longest > template.max_length
    assert told.ids == ("r-0", "r-1", "r-2", "r-3")
    short = CausalLM(tokenizer, template, context=longest - 1)
    assert look("context:statement:1", task=short)[1].ids == ("r-0", "r-2")


def test_a_wrong_answer_that_does_not_fit_takes_the_record_with_it(language_model, look):
    """So that no record is compared with some of its wrong answers only."""
    tokenizer = language_model[1].tokenizer
    template = Template(prompt="{question}", answer=" {answer}")
    wrong = [["bo"], ["bo", "a b c d e f g h i j k l m n"], ["bo"], None]
    records = facts().replace(perturbed_answer=wrong + [None] * (SIZE - GONE))
    short = CausalLM(tokenizer, template, context=20)
    for inner in ("", ":perturbed:0", ":perturbed:1"):
        seen = look(f"context:statement:1{inner}", records=records, task=short)[1]
        assert "r-1" not in seen.ids
    assert look("context:statement:1", records=records, task=short)[1].ids == ("r-0", "r-2", "r-3")


def test_a_model_whose_window_the_task_does_not_know_refuses_too(questions_world):
    world = questions_world
    records = concatenate([world.forget, world.retain])
    scene = Scene(Dataset("causal_lm", records), Sets.partition(records.ids, world.forget.ids))
    task, seen = see(world.task, scene, Reading("forget", "context:demo:16"))
    with pytest.raises(DataError, match="the model reads 64"):
        score(world.model, task, seen, Run())


@pytest.mark.parametrize(
    ("view", "message"),
    [
        ("context:statment:1", "did you mean 'statement'"),
        ("context:demo:0", "whole number of at least 1"),
        ("context:demo:-1", "whole number of at least 1"),
        ("context:demo", "whole number of at least 1"),
        ("borrowed_context:demo:x", "whole number of at least 1"),
    ],
)
def test_bad_parameters_are_refused(look, view, message):
    with pytest.raises(ConfigError, match=message):
        look(view)


@settings(max_examples=25)
@given(seed=st.integers(0, 99), k=st.integers(1, 6), kept=st.integers(1, 3))
def test_the_context_of_a_record_does_not_depend_on_who_else_is_asked(
    language_model, look, seed, k, kept
):
    whole = lines(look(f"context:irrelevant:{k}", seed=seed))
    scene = scene_of(facts(), seed)
    part = scene.records("forget").take(range(kept))
    some = views.get("context")(language_model[1], part, scene, f"irrelevant:{k}")
    assert lines(some) == {name: whole[name] for name in part.ids}
