"""Questions inside foreign instructions, and translated by whom the user names."""

import json
import typing

import pytest
from seen_records import prompts, seen_through

from expunge.audit.input_attacks import Language
from expunge.audit.languages import FRAMES
from expunge.core.errors import ConfigError
from expunge.core.records import Records
from expunge.data.rephrasers.rephraser import CallableRephraser, rephrasers
from expunge.engine.tasks.causal_lm import Template

QUESTIONS = ("What is the capital of Peru?", "Who wrote Rivers of Salt in 1994?", "How old is Bo?")
FRENCH = (
    "Quelle est la capitale du Pérou ?",
    "Qui a écrit Rivers of Salt en 1994 ?",
    "Quel âge a Bo ?",
)


@pytest.fixture
def facts():
    return Records(
        ("q-0", "q-1", "q-2"),
        {
            "question": list(QUESTIONS),
            "answer": ["Lima", "Ada Vell", "It is not known"],
            "perturbed_answer": [["Quito"], None, ["ten"]],
        },
    )


@pytest.fixture
def look(language_model):
    def see_it(records, view, template=None):
        task = language_model[1]
        task = task.with_template(template) if template else task
        return seen_through(view, records, task)

    return see_it


def test_the_settings_name_every_frame():
    assert typing.get_args(Language) == tuple(FRAMES)
    assert len(set(FRAMES.values())) == len(FRAMES)
    assert not any("{" in part or "}" in part for parts in FRAMES.values() for part in parts)


@pytest.mark.parametrize("name", FRAMES)
def test_the_frame_stands_around_the_question_which_stays(look, facts, name):
    before, after = FRAMES[name]
    template = Template(prompt="Question: {question}\nAnswer:", answer=" {answer}")
    seen = look(facts, f"language:{name}", template)
    assert prompts(seen) == [f"Question: {before}{q}{after}\nAnswer:" for q in QUESTIONS]
    assert list(seen[1]["answer"]) == list(facts["answer"])


def test_a_question_of_several_columns_is_framed_as_one(look, facts):
    template = Template(prompt="{answer}? {topic}: {question}!", answer=" {answer}")
    before, after = FRAMES["german"]
    [first, *_] = prompts(look(facts.replace(topic=["cities"] * 3), "language:german", template))
    assert first == f"Lima? {before}cities: {QUESTIONS[0]}{after}!"


def test_what_has_no_question_cannot_be_framed(look, facts):
    assert len(look(facts, "language:french", Template(prompt="", answer="{answer}"))[1]) == 0
    with pytest.raises(ConfigError, match="did you mean 'french'"):
        look(facts, "language:frensh")


def test_wrong_answers_are_scored_inside_the_same_frame(look, facts):
    seen = look(facts, "language:chinese:perturbed:0")
    assert seen[1].ids == ("q-0", "q-2")
    assert list(seen[1]["answer"]) == ["Quito", "ten"]
    assert prompts(seen) == prompts(look(facts, "language:chinese"))[::2]


def test_translated_questions_come_from_the_users_file(look, facts, tmp_path):
    path = tmp_path / "french.jsonl"
    rows = [{"text": a, "rephrased": b} for a, b in zip(QUESTIONS, FRENCH, strict=True)]
    path.write_text("\n".join(map(json.dumps, rows)))
    seen = look(facts, f"translated:file={path}")
    assert list(seen[1]["question"]) == list(FRENCH)
    assert list(seen[1]["answer"]) == list(facts["answer"])
    assert look(facts, f"translated:file={path}:perturbed:0")[1].ids == ("q-0", "q-2")


def test_what_is_missing_unchanged_or_gives_the_answer_away_is_left_out(look, facts, tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"text": QUESTIONS[0], "rephrased": "Quelle est la capitale du Pérou, Lima ?"},
        {"text": QUESTIONS[1], "rephrased": QUESTIONS[1]},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert len(look(facts, f"translated:file={path}")[1]) == 0


def test_a_registered_translator_is_called(look, facts, monkeypatch):
    known = dict(zip(QUESTIONS, FRENCH, strict=True))
    made = CallableRephraser(lambda text, mu, seed: known[text], "mine", "1")
    rephrasers.discover()
    monkeypatch.setitem(rephrasers._parts, "mine", lambda settings, items: made)
    assert list(look(facts, "translated:mine")[1]["question"]) == list(FRENCH)
    with pytest.raises(ConfigError, match="no rephrasers entry"):
        look(facts, "translated:yours")
