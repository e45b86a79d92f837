"""Questions in Base64 and ROT13, below words that say so."""

import base64
import typing

import pytest
from seen_records import prompts, seen_through

from expunge.audit.encodings import FRAMES
from expunge.audit.input_attacks import Encoding
from expunge.core.errors import ConfigError
from expunge.core.records import Records
from expunge.engine.tasks.causal_lm import Template

QUESTIONS = ("What is the capital of Perú?", "Who wrote it in 1994?")
SHIFTED = ("Jung vf gur pncvgny bs Creú?", "Jub jebgr vg va 1994?")


@pytest.fixture
def facts():
    columns = {"question": list(QUESTIONS), "answer": ["Lima", "Ada Vell"]}
    return Records(("q-0", "q-1"), {**columns, "perturbed_answer": [None, ["Bo"]]})


@pytest.fixture
def look(language_model):
    def see_it(records, view, template=None):
        task = language_model[1]
        task = task.with_template(template) if template else task
        return seen_through(view, records, task)

    return see_it


def test_every_encoding_of_the_settings_has_a_frame():
    assert typing.get_args(Encoding) == tuple(FRAMES)


def test_base64_is_read_back_to_the_question(look, facts):
    template = Template(prompt="Question: {question}\nAnswer:", answer=" {answer}")
    seen = look(facts, "encoded:base64", template)
    for prompt, question in zip(prompts(seen), QUESTIONS, strict=True):
        code = prompt.removeprefix(f"Question: {FRAMES['base64']}").removesuffix("\nAnswer:")
        assert question not in prompt
        assert base64.b64decode(code, validate=True).decode() == question
    assert list(seen[1]["answer"]) == list(facts["answer"])


def test_rot13_moves_the_letters_of_the_question_and_nothing_else(look, facts):
    template = Template(prompt="Question: {question}\nAnswer:", answer=" {answer}")
    seen = look(facts, "encoded:rot13", template)
    assert prompts(seen) == [f"Question: {FRAMES['rot13']}{q}\nAnswer:" for q in SHIFTED]
    assert list(seen[1]["answer"]) == list(facts["answer"])


def test_a_question_of_several_columns_is_encoded_as_one(look, facts):
    template = Template(prompt="{answer}? {encoded}: {question}!", answer=" {answer}")
    records = facts.replace(encoded=["towns"] * 2)
    [first, _] = prompts(look(records, "encoded:rot13", template))
    assert first == f"Lima? {FRAMES['rot13']}gbjaf: {SHIFTED[0]}!"


def test_what_has_no_question_cannot_be_encoded(look, facts):
    assert len(look(facts, "encoded:rot13", Template(prompt="", answer="{answer}"))[1]) == 0
    with pytest.raises(ConfigError, match="did you mean 'base64'"):
        look(facts, "encoded:base46")


def test_wrong_answers_are_scored_below_the_same_code(look, facts):
    seen = look(facts, "encoded:base64:perturbed:0")
    assert seen[1].ids == ("q-1",)
    assert list(seen[1]["answer"]) == ["Bo"]
    assert prompts(seen) == prompts(look(facts, "encoded:base64"))[1:]
