"""Questions at the end of a talk: which turns stand before them, as text and as messages."""

import pytest
from seen_records import prompts
from tiny_llama import word_tokenizer

from expunge.audit.readings import Reading
from expunge.audit.talks import AGAIN
from expunge.audit.unseen import shown
from expunge.audit.views import Scene, see
from expunge.core.errors import ConfigError
from expunge.core.records import Records
from expunge.core.sets import Sets
from expunge.data.dataset import Dataset
from expunge.engine.tasks.causal_lm import CausalLM, Template

SIZE, GONE = 10, 8
WORDS = (
    "who",
    "where",
    "is",
    "no",
    "unknown",
    "user",
    "assistant",
    "system",
    "be",
    "short",
    "Q",
    "A",
)
CHAT = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} \n{% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    numbers = [f"{name}{row}" for name in "qaw" for row in range(SIZE)]
    made = word_tokenizer([*WORDS, *numbers, "That", "wrong", "Try", "again", "."])
    made.chat_template = CHAT
    return made


def scene_of(seed=0, gone=GONE, **columns):
    rows = range(SIZE)
    records = Records(
        tuple(f"r-{row}" for row in rows),
        {
            "question": [f"who is q{row}" for row in rows],
            "answer": [f"a{row}" for row in rows],
            **columns,
        },
    )
    return Scene(
        Dataset("causal_lm", records), Sets.partition(records.ids, records.ids[:gone]), seed
    )


def plain(tokenizer, **changes):
    return CausalLM(tokenizer, Template(prompt="Q {question} A", answer=" {answer}"), **changes)


def test_earlier_turns_are_attacked_facts_and_the_question_is_another(tokenizer):
    scene = scene_of()
    seen, others = shown(scene, 0.5)
    task, asked = see(plain(tokenizer), scene, Reading("forget", "talk:facts:2:0.5"))
    assert asked.ids == others.ids
    told = {f"Q {q} A {a}" for q, a in zip(seen["question"], seen["answer"], strict=True)}
    orders = set()
    for question, text in zip(asked["question"], prompts((task, asked)), strict=True):
        *turns, last = text.split("\n")
        assert last == f"Q {question} A"
        assert len(set(turns)) == 2
        assert set(turns) <= told
        orders.add(tuple(turns))
    assert len(orders) > 1
    assert list(asked["answer"]) == list(others["answer"])


def test_the_turns_of_a_record_do_not_depend_on_who_else_is_asked(tokenizer):
    scene = scene_of()
    whole = see(plain(tokenizer), scene, Reading("forget", "talk:facts:3:0.5"))
    few = see(plain(tokenizer), scene, Reading("forget", "talk:facts:3:0.5", limit=5))
    known = dict(zip(whole[1].ids, prompts(whole), strict=True))
    assert 0 < len(few[1]) < len(whole[1])
    assert prompts(few) == [known[name] for name in few[1].ids]
    other = see(plain(tokenizer), scene_of(seed=1), Reading("forget", "talk:facts:3:0.5"))
    assert prompts(other) != prompts(whole)


def test_with_fewer_attacked_facts_than_turns_nothing_is_asked(tokenizer):
    for count, asked in ((4, 4), (5, 0)):
        view = f"talk:facts:{count}:0.5"
        assert len(see(plain(tokenizer), scene_of(), Reading("forget", view))[1]) == asked


def test_a_wrong_answer_is_called_wrong_and_the_question_comes_again(tokenizer):
    wrong = [[f"w{row}", "no"] if row else None for row in range(SIZE)]
    task = plain(tokenizer, refusals=("unknown",))
    seen = see(task, scene_of(perturbed_answer=wrong), Reading("forget", "talk:again"))
    first, second, *_ = prompts(seen)
    assert first == f"Q who is q0 A unknown\n{AGAIN}\nQ who is q0 A"
    assert second == f"Q who is q1 A w1\n{AGAIN}\nQ who is q1 A"
    assert list(seen[1]["answer"]) == [f"a{row}" for row in range(GONE)]


def test_without_a_wrong_answer_or_refusal_there_is_no_talk(tokenizer):
    task = plain(tokenizer, refusals=())
    assert len(see(task, scene_of(), Reading("forget", "talk:again"))[1]) == 0
    document = task.with_template(Template(prompt="", answer="{answer}"))
    assert len(see(document, scene_of(), Reading("forget", "talk:again"))[1]) == 0


@pytest.mark.parametrize("view", ["facts:2:0.5", "again"])
def test_with_a_chat_template_every_turn_is_a_message(tokenizer, view):
    """The tokens are those of the tokenizer's own rendering of the messages."""
    template = Template(prompt="{question}", answer="{answer}", chat=True, system="be short")
    task = CausalLM(tokenizer, template, ("no",))
    scene = scene_of()
    told, asked = see(task, scene, Reading("forget", f"talk:{view}"))
    turns, _ = shown(scene, 0.5)
    facts = dict(zip(turns["question"], turns["answer"], strict=True))
    for (tokens, start), question, answer in zip(
        told.encoded(asked), asked["question"], asked["answer"], strict=True
    ):
        text = tokenizer.decode(tokens[:start])
        if view == "again":
            earlier, last = [(question, "no")], f"{AGAIN}\n{question}"
        else:
            names = [word for word in text.split() if word[0] == "q"][:2]
            earlier, last = [(f"who is {name}", f"a{name[1:]}") for name in names], question
            assert all(facts[one] == other for one, other in earlier)
        messages = [{"role": "system", "content": "be short"}]
        for one, other in earlier:
            messages.append({"role": "user", "content": one})
            messages.append({"role": "assistant", "content": other})
        messages.append({"role": "user", "content": last})
        whole = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert tokens[:start] == tokenizer(whole, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(tokens[start:-1]) == answer


def test_other_answers_are_scored_at_the_end_of_the_same_talk(tokenizer):
    scene = scene_of(perturbed_answer=[[f"w{row}"] for row in range(SIZE)])
    for chat in (False, True):
        task = plain(tokenizer) if not chat else CausalLM(tokenizer, Template(chat=True))
        asked = see(task, scene, Reading("forget", "talk:facts:2:0.5"))
        wrong = see(task, scene, Reading("forget", "talk:facts:2:0.5:perturbed:0"))
        assert prompts(asked) == prompts(wrong)
        assert list(wrong[1]["answer"]) == [f"w{name[2:]}" for name in wrong[1].ids]
        assert type(asked[0]) is type(wrong[0])


def test_a_talk_that_does_not_fit_is_left_out(tokenizer):
    longest = 6 + 5 + 2  # the fact, the question, the answer with its end
    for room, asked in ((longest, 4), (longest - 1, 0)):
        task = plain(tokenizer, context=room)
        assert len(see(task, scene_of(), Reading("forget", "talk:facts:1:0.5"))[1]) == asked


def test_a_column_called_talk_is_left_alone(tokenizer):
    task = CausalLM(tokenizer, Template(prompt="{talk} {question}", answer=" {answer}"))
    seen = see(task, scene_of(talk=["no"] * SIZE), Reading("forget", "talk:again"))
    assert prompts(seen)[0].endswith("\nno who is q0")


@pytest.mark.parametrize(
    "view",
    ["talk", "talk:facts", "talk:facts:0:0.5", "talk:facts:x:0.5", "talk:facts:2", "talk:no"],
)
def test_talks_that_do_not_exist_are_refused(tokenizer, view):
    with pytest.raises(ConfigError):
        see(plain(tokenizer), scene_of(), Reading("forget", view))
