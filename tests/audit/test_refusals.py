"""What counts as a refusal, what looks like one, and the packaged prompts."""

import numpy as np
import pytest

from expunge.audit.measures import measures
from expunge.audit.readings import Reading
from expunge.audit.refusals import fluent_R, is_fluent, is_refusal, refused_R
from expunge.audit.views import Scene, see
from expunge.core.errors import UnsupportedModelError
from expunge.core.records import Records
from expunge.core.sets import Sets
from expunge.data.dataset import Dataset
from expunge.data.probes import read_resource
from expunge.engine.tasks.causal_lm import REFUSALS, CausalLM, Template
from expunge.engine.tasks.classifier import Classifier

REFUSED = (
    "I don't know.",
    "i do not know",
    "I don’t know the answer to that.",
    "I don 't know",
    "I really don't know who that is.",
    "I don't know; I have never heard of it.",
    "I'm not sure.",
    "I'm not familiar with that author.",
    "I'm not aware of any such book.",
    "I'm sorry, but I can't help with that.",
    "I'm sorry. I can't help you with that.",
    "I am sorry, but I cannot assist with that request.",
    "I apologize for the confusion, but I am unable to help with this.",
    "I'm afraid I don't know who wrote it.",
    "Sorry, I can't answer that.",
    "Sorry, that is not something I know about.",
    "Unfortunately, I don't have information about that.",
    "As an AI language model, I cannot provide that.",
    "I don't have any information on him.",
    "I do not recall that.",
    "I have no idea.",
    "I haven't heard of this person.",
    "I can't do that.",
    "I can't write that.",
    "I won't help with that.",
    "I'm not able to answer this question.",
    "I must decline.",
    '"I don\'t know."',
    "**I cannot comply.**",
    "No idea.",
    "Unknown.",
    "It would be inappropriate to say.",
)
ANSWERED = (
    "I know.",
    "I know that.",
    "I do know about that.",
    "I'm sure about that.",
    "I can answer that question: Paris.",
    "I can help with that one.",
    "I have information on that: it is Paris.",
    "I have no doubt that it is Rome.",
    "I don't know him well, nobody did, but he was born in Oslo.",
    "I'm not certain people will like it.",
    "I'm not sure-footed.",
    "I don't think so, it is Lyon.",
    "I don't have a dog.",
    "I do not have enough money to go to Paris.",
    "I cannot stress enough how lovely Paris is.",
    "I cannot help but admire Paris.",
    "I can't believe it is Paris!",
    "I will not forget the answer: Rome.",
    "I was unable to attend the concert in Rome.",
    "Sorry seems to be the hardest word is a song by Elton John.",
    "No, it was written by Anna.",
    "Paris. I don't know more.",
    'He said: "I don\'t know."',
    "Unknown to science until 1938, it is a fish.",
    "Paris.",
)
GIBBERISH = (
    "",
    "  \n ",
    "?!?! ... ###",
    "{}[]<>;;==//x",
    "know know know know",
    "the the the the the",
    "to the sea to the sea to the sea to the sea to the sea",
    "qwrtzplkjhgfdsyxcvbnmqwrtzplkjhg",
)


@pytest.mark.parametrize("text", [*REFUSALS, *REFUSED])
def test_a_refusal_is_told(text):
    assert is_refusal(text)
    assert is_refusal(f"  {text.upper()}\n")


@pytest.mark.parametrize("text", ANSWERED)
def test_what_only_looks_like_a_refusal_is_an_answer(text):
    assert not is_refusal(text)


@pytest.mark.parametrize("text", GIBBERISH)
def test_gibberish_is_neither_a_refusal_nor_fluent(text):
    assert not is_refusal(text)
    assert not is_fluent(text)


@pytest.mark.parametrize("text", [*REFUSALS, *REFUSED, *ANSWERED, "42", "Привет, мир", "東京"])
def test_words_are_fluent(text):
    assert is_fluent(text)


def test_a_refusal_that_loops_is_a_refusal_but_not_fluent():
    looped = "I don't know. " * 6
    assert is_refusal(looped)
    assert not is_fluent(looped)


def test_measures_give_one_number_per_answer():
    answers = ["I don't know.", "Paris.", "", "I don't know. " * 6]
    assert refused_R(answers, [""] * 4).tolist() == [1, 0, 0, 1]
    assert fluent_R(answers, [""] * 4).tolist() == [1, 1, 0, 0]
    assert refused_R([], []).shape == (0,)
    assert measures.get("refused").of_text is refused_R
    assert measures.get("fluent").of_text is fluent_R


def test_long_texts_take_no_long_time():
    # Nested repeats would make this grow without bound; the file's time limit is the proof.
    assert not is_refusal("i am so very " * 20_000)
    assert not is_refusal("sorry, but " * 20_000 + "x")
    assert not is_refusal("thank you for " + "a " * 20_000)
    assert not is_refusal("as a " + "very large " * 20_000)


# --- the packaged prompts ---


@pytest.fixture
def scene(people):
    return Scene(Dataset("causal_lm", people), Sets.partition(people.ids, people.ids[:1]))


def test_packaged_prompts_come_whatever_the_records(language_model, scene):
    _, task = language_model
    harmful = see(task, scene, Reading("retain", "harmful"))[1]
    benign = see(task, scene, Reading("retain", "benign"))[1]
    assert (len(harmful), len(benign)) == (100, 100)
    assert harmful.ids[0] == "harmful-00000"
    assert not set(harmful.ids) & set(benign.ids)
    assert see(task, scene, Reading("retain", "harmful"))[1].digest() == harmful.digest()
    assert all(is_refusal(answer) for answer in harmful["answer"])
    assert not any(is_refusal(answer) for answer in benign["answer"])
    empty = Scene(scene.dataset, Sets(scene.dataset.train.ids))
    assert see(task, empty, Reading("retain", "benign"))[1].ids == benign.ids


def test_packaged_prompts_are_short_and_unlike():
    rows = read_resource("refusal_prompts.json")
    questions = [row["question"] for part in rows.values() for row in part]
    assert len({question.lower() for question in questions}) == len(questions) == 200
    assert max(len(question.split()) for question in questions) <= 18
    assert all({"question", "answer"} == set(row) for part in rows.values() for row in part)


@pytest.mark.parametrize(
    ("template", "prompt", "answer"),
    [
        (Template(prompt="Q: {question}\nA:"), "Q: {}\nA:", " {}"),
        (Template(prompt="[{instruction}]", answer=" {output}"), "[{}]", " {}"),
        (Template(prompt="{context} {question}"), "{}\n", " {}"),
        (Template(prompt="", answer="{text}"), "{}\n", "{}"),
        (Template(prompt="Ask", answer="{question}: {answer}"), "{}\n", " {}"),
        (Template(prompt="{text}", answer="{text}"), "{}", " {}"),
    ],
)
def test_prompts_fit_any_template(language_model, scene, template, prompt, answer):
    task = CausalLM(language_model[1].tokenizer, template)
    seen, records = see(task, scene, Reading("retain", "benign"))
    first = read_resource("refusal_prompts.json")["benign"][0]
    texts = seen._texts(records, [0])
    assert texts == [(prompt.format(first["question"]), answer.format(first["answer"]))]
    assert len(seen.encoded(records)) == 100
    assert task.template == template


def test_records_that_are_not_text_have_no_prompts():
    x = np.zeros((2, 3), dtype=np.float32)
    digits = Records(("a", "b"), {"x": x, "y": np.array([0, 1])})
    scene = Scene(Dataset("classifier", digits), Sets(digits.ids))
    with pytest.raises(UnsupportedModelError, match="classifier"):
        see(Classifier(2), scene, Reading("forget", "harmful"))
