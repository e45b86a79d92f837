"""Views whose prompts are rewritten: prefixes, slips, second wordings, rephrasings."""

import json

import numpy as np
import pytest
from seen_records import prompts, seen_through

from expunge.audit.measures import measures
from expunge.audit.prompts import (
    PREFIXES,
    answer_columns,
    prompt_columns,
    question_columns,
    rephraser_words,
    rephrasing_of,
)
from expunge.audit.readings import Reading
from expunge.audit.views import Scene, see
from expunge.core.errors import ConfigError, UnsupportedModelError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.core.sets import Sets
from expunge.data.dataset import Dataset
from expunge.engine.tasks.causal_lm import Template
from expunge.engine.tasks.classifier import Classifier

QUESTIONS = (
    "What is the profession of Tomas Oduya's father?",
    "Who wrote the book 'Rivers of Salt'?",
    "What is the capital of Peru?",
    "bo",
)
ANSWERS = ("He was a baker.", "Ada Vell wrote it.", "Lima", "carl")


@pytest.fixture
def authors():
    return Records(
        tuple(f"q-{row}" for row in range(len(QUESTIONS))),
        {
            "question": list(QUESTIONS),
            "answer": list(ANSWERS),
            "paraphrased_question": ["What did the father do?", None, "Which city leads?", None],
            "perturbed_answer": [["He was a painter."], None, ["Quito", "Cusco"], None],
        },
    )


@pytest.fixture
def look(language_model):
    """Records and task under a view."""

    def see_it(records, view, task=language_model[1], seed=0):
        return seen_through(view, records, task, seed)

    return see_it


def pairs_file(tmp_path, *rows):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps({"text": a, "rephrased": b}) for a, b in rows))
    return path


def test_columns_are_read_off_the_template(language_model):
    task = language_model[1].with_template(
        Template(prompt="{topic}: {question} {question}", answer=" {answer} ({topic})")
    )
    assert prompt_columns(task) == ("topic", "question")
    assert answer_columns(task) == ("answer", "topic")
    assert question_columns(task) == ("question",)


def test_a_prefix_stands_above_the_prompt_and_answers_stay(look, authors):
    seen = look(authors, "prefix:2")
    assert prompts(seen) == [f"{PREFIXES[2]}\n{question}" for question in QUESTIONS]
    assert list(seen[1]["answer"]) == list(ANSWERS)
    assert len(set(PREFIXES)) == 8
    for wrong in ("8", "-1", "x", ""):
        with pytest.raises(ConfigError, match="none of 0 to 7"):
            look(authors, f"prefix:{wrong}")


def test_the_last_parameter_is_a_view_of_the_answers(look, authors):
    task, records = look(authors, "prefix:0:perturbed:1")
    assert records.ids == ("q-2",)
    assert list(records["answer"]) == ["Cusco"]
    assert prompts((task, records)) == [f"{PREFIXES[0]}\n{QUESTIONS[2]}"]
    noisy = look(authors, "noise:2:perturbed:0")[1]
    assert list(noisy["answer"]) == ["He was a painter.", "Quito"]
    assert noisy["question"][1] == look(authors, "noise:2")[1]["question"][2]


def test_noise_changes_letters_of_the_question_only(look, authors):
    _, records = look(authors, "noise:3")
    for old, new in zip(QUESTIONS[:3], records["question"], strict=False):
        assert new != old
        assert len(new) == len(old)
        assert [c for c in new if not c.isalpha()] == [c for c in old if not c.isalpha()]
    assert list(records["answer"]) == list(ANSWERS)
    assert list(look(authors, "noise:3")[1]["question"]) == list(records["question"])
    assert list(look(authors, "noise:3", seed=1)[1]["question"]) != list(records["question"])
    with pytest.raises(ConfigError, match="whole number"):
        look(authors, "noise:often")
    with pytest.raises(ConfigError, match="at least 1"):
        look(authors, "noise:0")


def test_documents_have_no_question_to_rewrite(look, authors, language_model):
    document = language_model[1].with_template(Template(prompt="", answer="{answer}"))
    assert len(look(authors, "noise:3", document)[1]) == 0
    assert len(look(authors, "rephrased:both:1", document)[1]) == 0
    assert len(look(authors, "paraphrased_question", document)[1]) == 0
    assert prompts(look(authors, "prefix:0", document)) == [f"{PREFIXES[0]}\n"] * 4


def test_the_second_wording_is_asked_of_those_that_have_one(look, authors):
    _, records = look(authors, "paraphrased_question")
    assert records.ids == ("q-0", "q-2")
    assert list(records["question"]) == ["What did the father do?", "Which city leads?"]
    assert look(authors, "paraphrased_question:perturbed:1")[1].ids == ("q-2",)
    bare = Records(authors.ids, {"question": list(QUESTIONS), "answer": list(ANSWERS)})
    assert len(look(bare, "paraphrased_question")[1]) == 0


def test_rephrasing_keeps_names_and_words_of_the_answers(look, authors):
    _, records = look(authors, "rephrased:both:1")
    asked = dict(zip(records.ids, records["question"], strict=True))
    assert asked["q-0"] != QUESTIONS[0]
    assert "Tomas Oduya's" in asked["q-0"]
    assert "father" in asked["q-0"] or "dad" in asked["q-0"]
    assert "wrote" in asked["q-1"]  # a word of the answer may not go
    assert "'Rivers of Salt'" in asked["q-1"]
    assert [authors["answer"][int(i[-1])] for i in records.ids] == list(records["answer"])


def test_strength_nothing_leaves_every_question(look, authors):
    _, records = look(authors, "rephrased:both:0")
    assert list(records["question"]) == list(QUESTIONS)
    marks = measures.get("rephrasing").of_model(None, None, records, Run())
    assert marks.tolist() == [0, 0, 0, 0]


def test_what_the_gate_rejects_is_left_out_and_never_reverted(look, authors, tmp_path):
    """Error text and a question without a pair go; a question that stays the same stays."""
    path = pairs_file(
        tmp_path,
        (QUESTIONS[0], "Tell me the profession of the father of Tomas Oduya."),
        (QUESTIONS[1], "Error: rate limit reached"),
        (QUESTIONS[3], "bo"),
    )
    _, records = look(authors, f"rephrased:file={path}:1")
    assert records.ids == ("q-0", "q-3")
    marks = measures.get("rephrasing").of_model(None, None, records, Run())
    assert marks.tolist() == [1, 0]  # two words more than seven is more than 15 %
    pairs_file(tmp_path, *((text, text) for text in QUESTIONS))
    assert len(look(authors, f"rephrased:file={path}:1")[1]) == 4  # the file is read again


def test_the_stricter_gate_marks_rewordings_of_the_same_length(look, authors, tmp_path):
    path = pairs_file(
        tmp_path,
        (QUESTIONS[2], "Which is the capital of Peru?"),
        *((text, text) for text in QUESTIONS if text != QUESTIONS[2]),
    )
    _, records = look(authors, f"rephrased:file={path}:1")
    assert list(records["rephrasing"]) == [0, 0, 2, 0]


def test_the_wording_is_one_under_every_view_of_the_answers(look, authors):
    asked = look(authors, "rephrased:both:1")[1]
    wrong = look(authors, "rephrased:both:1:perturbed:0")[1]
    known = dict(zip(asked.ids, asked["question"], strict=True))
    assert wrong.ids == ("q-0", "q-2")
    assert [known[i] for i in wrong.ids] == list(wrong["question"])


def test_every_column_of_the_question_is_rephrased(look, authors, language_model):
    task = language_model[1].with_template(Template(prompt="{hint} {question}", answer=" {answer}"))
    records = authors.replace(hint=["What is the capital of Chile?"] * 4)
    _, seen = look(records, "rephrased:template:1", task)
    assert all(text != "What is the capital of Chile?" for text in seen["hint"])
    assert seen["question"][2] != QUESTIONS[2]
    assert 0 not in seen["rephrasing"]


@pytest.mark.parametrize("strength", ["x", "-1", "inf", "nan", ""])
def test_a_strength_that_is_no_number_is_refused(strength):
    with pytest.raises(ConfigError, match="must be a number of at least 0"):
        rephrasing_of("both", strength)


def test_an_unknown_rephraser_is_refused(look, authors):
    with pytest.raises(ConfigError, match="no rephrasers entry 'thesarus'"):
        look(authors, "rephrased:thesarus:1")
    with pytest.raises(ConfigError, match="between 0 and 1"):
        look(authors, "rephrased:both:2")


def test_results_name_the_rephraser_with_its_version():
    words = rephraser_words("both", 0.5)
    assert "rephraser both (version template 1 + thesaurus " in words
    assert words.endswith("at mu 0.5")
    assert len(words.split("thesaurus ")[1].split(")")[0]) == 12


def test_records_of_a_classifier_have_no_prompt(authors):
    records = Records(("a",), {"x": np.zeros((1, 2)), "y": np.zeros(1, dtype=int)})
    scene = Scene(Dataset("classifier", records), Sets(("a",)))
    with pytest.raises(UnsupportedModelError, match="have no prompt"):
        see(Classifier(2), scene, Reading("forget", "prefix:0"))
