"""Neutral answers: a seeded generator, and files of one's own."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.core.config import parse
from expunge.core.errors import ConfigError, StorageError
from expunge.data.neutral import NUM_TEMPLATES, Neutral, neutral_answers, template_answers

TOFU = Path(__file__).parents[3] / "shared" / "data" / "tofu" / "idontknow.jsonl"


@given(seed=st.integers(0, 2**40), count=st.integers(0, 300))
def test_sentences_are_distinct_and_a_function_of_the_seed(seed, count):
    made = template_answers(seed, count)
    assert made == template_answers(seed, count)
    assert len(made) == len(set(made)) == count


def test_fewer_sentences_are_the_first_ones_and_seeds_differ():
    assert template_answers(3, 10) == template_answers(3)[:10]
    assert template_answers(3) != template_answers(4)
    assert len(template_answers(3)) == NUM_TEMPLATES == 200


def test_they_are_sentences_that_name_nobody():
    for sentence in template_answers(0):
        assert re.fullmatch(r"[A-Z][A-Za-z ,'-]+\.", sentence), sentence
        # Only the first word, and days of the week, begin with a capital.
        rest = re.sub(r"\b(Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)days?\b", "", sentence)[1:]
        assert rest == rest.lower(), sentence
        assert "{" not in sentence


def test_more_than_the_grammar_has_are_refused():
    with pytest.raises(
        ConfigError, match=r"100000 template answers were asked for; the grammar has"
    ):
        template_answers(0, 100_000)


def test_the_usual_answers_are_the_tasks_own():
    assert neutral_answers(Neutral(), 5) == ()
    assert neutral_answers(Neutral(style="templates"), 5) == template_answers(5)


def test_a_file_of_ones_own_comes_first_and_is_read_line_by_line(tmp_path):
    (tmp_path / "own.txt").write_text("  I do not know. \n\n\tNo idea — désolé.\r\n", "utf-8")
    settings = Neutral(style="templates", file=str(tmp_path / "own.txt"))
    assert neutral_answers(settings, 0) == ("I do not know.", "No idea — désolé.")


@pytest.mark.parametrize("content", ["", "\n", "  \n\t\n"])
def test_a_file_without_an_answer_is_refused(tmp_path, content):
    (tmp_path / "own.txt").write_text(content)
    with pytest.raises(ConfigError, match=r"own\.txt is empty; write one answer a line"):
        neutral_answers(Neutral(file=str(tmp_path / "own.txt")), 0)


def test_a_missing_file_a_folder_and_another_encoding_are_refused(tmp_path):
    (tmp_path / "latin.txt").write_bytes("désolé".encode("latin-1"))
    for name in ("absent.txt", ".", "latin.txt"):
        with pytest.raises(StorageError, match="cannot read the neutral answers"):
            neutral_answers(Neutral(file=str(tmp_path / name)), 0)


@pytest.mark.skipif(not TOFU.is_file(), reason=f"TOFU's list of refusals is not at {TOFU}")
def test_the_list_of_tofu_is_read():
    answers = neutral_answers(Neutral(file=str(TOFU)), 0)
    assert len(answers) == len(set(answers)) == 100
    assert "I'm not certain about that." in answers
    assert not any(answer.startswith(("{", '"')) for answer in answers)


def test_an_unknown_style_is_refused():
    with pytest.raises(ConfigError, match="style = 'template'"):
        parse(Neutral, {"style": "template"}, "answers")


def test_a_file_with_a_byte_order_mark_and_a_line_separator_inside_an_answer(tmp_path):
    path = tmp_path / "answers.txt"
    path.write_bytes("\ufeffNo idea.\r\nNot\u2028known.\n".encode())
    assert neutral_answers(Neutral(file=str(path)), 0) == ("No idea.", "Not\u2028known.")
