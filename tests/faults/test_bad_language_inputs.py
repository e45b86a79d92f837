"""Wrong or awkward inputs of language models: refused with one message, or told and carried out."""

import warnings

import pytest
import torch
from refusals import refused
from small_recipes import PEOPLE, write_recipe
from tiny_llama import llama_config, word_tokenizer

from expunge.api import forget
from expunge.core.errors import ConfigError, DataError, UnsupportedModelError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.data.dataset import Dataset
from expunge.engine.tasks.causal_lm import CausalLM, Template, context_length
from expunge.engine.weights import state_digest
from expunge.forget.method import Given, apply

WORDS = (
    "who",
    "what",
    "is",
    "it",
    "red",
    "blue",
    "sea",
    "tree",
    "anna",
    "bo",
    "i",
    "cannot",
    "say",
)
TEMPLATE = Template(prompt="{question}", answer=" {answer}")
QUICK = {"schedule": {"epochs": 1, "batch_size": 4, "lr": 1e-3}}


def language_model(context=64, words=WORDS):
    from transformers import LlamaForCausalLM

    tokenizer = word_tokenizer(words)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(llama_config(tokenizer, max_position_embeddings=context)).eval()
    return model, tokenizer


def records(answers=("red sea", "blue", "it is anna", "bo"), questions=None):
    questions = questions or ["who is it", "what is it", "is it red", "who"]
    ids = tuple(f"r{i}" for i in range(4))
    return Records(ids, {"question": questions, "answer": list(answers)})


def unlearn(model, tokenizer, data, name, settings=None, rows=(0, 1), **changes):
    options = {"tokenizer": tokenizer, "template": TEMPLATE, "quiet": True, **changes}
    whole = {**QUICK, **(settings or {})}
    dataset = Dataset("causal_lm", data, facts={"refusals": ["i cannot say"]})
    return forget(model, dataset, rows, method=name, settings=whole, **options)


# --- settings, by recipe: exit code 2 and one message ---

WRONG = {
    "beta of npo": ({"name": "npo", "beta": 0}, "beta = 0"),
    "beta of dpo": ({"name": "dpo", "beta": -0.1}, "beta = -0.1"),
    "beta of altpo": ({"name": "altpo", "beta": 0}, "beta = 0"),
    "beta of simnpo": ({"name": "simnpo", "beta": 0}, "beta = 0"),
    "beta of undial": ({"name": "undial", "beta": 0}, "beta = 0"),
    "no alternates": ({"name": "altpo", "num_alternates": 0}, "num_alternates = 0"),
    "source of alternates": ({"name": "altpo", "alternates": "colum"}, "alternates = 'colum'"),
    "divergence": ({"name": "flat", "divergence": "hellinger"}, "divergence = 'hellinger'"),
    "style of answers": (
        {"name": "idk", "answers": {"style": "polite"}},
        "answers.style = 'polite'",
    ),
    "answers of another method": (
        {"name": "npo", "answers": {"style": "usual"}},
        "unknown setting 'answers'",
    ),
    "layer zero": ({"name": "rmu", "layer": 0}, "layer = 0"),
    "alpha below zero": ({"name": "uld", "alpha": -1.0}, "alpha = -1.0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_setting_is_refused_before_anything_is_written(case, tmp_path, monkeypatch, capsys):
    settings, expected = WRONG[case]
    recipe = write_recipe(tmp_path / "recipe.yaml", PEOPLE, forget=settings)
    assert expected in refused(monkeypatch, capsys, "run", recipe, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


LATE = {
    "file of templates that is not there": (
        {"name": "idk", "answers": {"file": "no.txt"}},
        "cannot read the neutral answers no.txt",
    ),
    "empty list of templates": (
        {"name": "flat", "answers": {"file": "empty.txt"}},
        "the file of neutral answers empty.txt is empty; write one answer a line",
    ),
    "more layers to steer": (
        {"name": "rmu", "layer": 2},
        "forget.layer = 2 but the model has 1 layers",
    ),
    "more layers to copy": (
        {"name": "uld", "layers": 3},
        "forget.layers = 3 but the model has 1 layers",
    ),
    "no column of alternates": (
        {"name": "altpo", "alternates": "column"},
        "alternate_answer",
    ),
}


@pytest.mark.parametrize("case", LATE)
def test_what_model_or_data_must_tell_is_refused_before_training(
    case, tmp_path, monkeypatch, capsys
):
    settings, expected = LATE[case]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n")
    recipe = write_recipe(tmp_path / "recipe.yaml", PEOPLE, forget=settings)
    assert expected in refused(monkeypatch, capsys, "run", recipe, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- tokenizers ---


@pytest.mark.parametrize("name", ["npo", "dpo", "rmu", "uld", "flat"])
def test_a_tokenizer_without_a_pad_token_serves_as_one_with_it(name):
    """Padding is never read, so that both ways lead to the same bits."""
    digests = set()
    for pad in (None, "<unk>", "tree"):
        model, tokenizer = language_model()
        assert tokenizer.pad_token is None
        if pad is not None:
            tokenizer.pad_token = pad
        digests.add(state_digest(unlearn(model, tokenizer, records(), name).model))
    assert len(digests) == 1
    assert digests != {state_digest(language_model()[0])}


def test_a_tokenizer_without_an_end_token_is_refused():
    model, tokenizer = language_model()
    tokenizer.eos_token = None
    with pytest.raises(UnsupportedModelError, match=r"no end-of-text token; set tokenizer\.eos"):
        unlearn(model, tokenizer, records(), "npo")


# --- lengths ---


@pytest.mark.parametrize("name", ["grad_diff", "dpo", "undial", "rmu", "uld", "whp", "wagle"])
def test_records_longer_than_the_context_are_cut_and_counted(name):
    """One of the two to forget and one of the two to retain (which WHP never reads)."""
    model, tokenizer = language_model(context=8)
    assert context_length(model) == 8
    long = records(["red " * 9, "blue", "it is anna", "sea " * 9])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        outcome = unlearn(model, tokenizer, long, name)
    cut = [str(w.message) for w in told if "were cut" in str(w.message)]
    words = " records are longer than the model's context = 8 tokens and were cut"
    assert all(message.endswith(words) for message in cut)
    assert sum(int(message.removesuffix(words)) for message in cut) == 1 + (name != "whp")
    assert outcome.history.steps


def test_the_smaller_of_template_and_context_is_the_limit():
    _, tokenizer = language_model()
    texts = records(["red " * 9, "blue", "it is anna", "bo"])
    for context, length, words in (
        (8, 512, "the model's context = 8"),
        (64, 6, r"template\.max_length = 6"),
        (6, 6, r"template\.max_length = 6"),
    ):
        template = Template(prompt="{question}", answer=" {answer}", max_length=length)
        task = CausalLM(tokenizer, template, context=context)
        with pytest.warns(UserWarning, match=rf"^\d records are longer than {words} tokens and"):
            assert max(task.lengths(texts)) == min(context, length)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # it is said once
            task.lengths(texts)


@pytest.mark.parametrize("name", ["npo", "ceu", "pdu", "dpo", "rmu", "uld"])
def test_a_prompt_that_leaves_no_answer_token_is_refused(name):
    model, tokenizer = language_model(context=8)
    asked = records(questions=["who is it", "what " * 8, "is it red", "it " * 20])
    before = state_digest(model)
    with pytest.raises(
        DataError, match=r"records have no answer token within the model's context = 8"
    ):
        unlearn(model, tokenizer, asked, name)
    assert state_digest(model) == before


@pytest.mark.parametrize("answer", ["", "   "])
def test_an_empty_answer_is_refused_and_counted(answer):
    model, tokenizer = language_model()
    data = records([answer, answer, "bo", "anna"])
    with pytest.raises(DataError, match=r"^[12] records have no answer token .* empty answers"):
        unlearn(model, tokenizer, data, "npo")


def test_a_prompt_as_long_as_the_context_cannot_be_answered():
    model, tokenizer = language_model(context=8)
    template = Template(prompt="{question}", answer=" {answer}")
    task = CausalLM(tokenizer, template)  # nobody told it the context
    asked = records(questions=["it " * 8] * 4)
    with pytest.raises(DataError, match="a prompt has 8 tokens and the model reads 8"):
        task.generate(model, asked, [0], 5)
    asked = records(questions=["it " * 6] * 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(task.generate(model, asked, [0], 50)[0].split()) <= 2


# --- neutral answers ---


def test_no_refusals_and_two_answer_columns_are_refused():
    model, tokenizer = language_model()
    given = Given(CausalLM(tokenizer, TEMPLATE, refusals=()), records().take([0, 1]))
    none = {**QUICK, "retain": "none"}
    with pytest.raises(ConfigError, match="the list of neutral answers is empty"):
        apply("idk", model, given, Run(), none)
    two = Template(prompt="", answer="{question} {answer}")
    given = Given(CausalLM(tokenizer, two), records().take([0, 1]))
    for name in ("idk", "dpo"):
        with pytest.raises(ConfigError, match=r"names 2 columns; .* answers need exactly one"):
            apply(name, model, given, Run(), none)


@pytest.mark.parametrize("name", ["idk", "dpo", "flat"])
def test_a_list_of_one_answer_serves_a_batch_of_any_size(name, tmp_path):
    (tmp_path / "one.txt").write_text("i cannot say\n")
    model, tokenizer = language_model()
    settings = {"answers": {"file": str(tmp_path / "one.txt")}}
    outcome = unlearn(model, tokenizer, records(), name, settings, rows=(0, 1, 2))
    assert state_digest(outcome.model) != state_digest(model)


def test_nothing_is_left_to_retain():
    """Methods that need retain records say so; the others forget everything."""
    model, tokenizer = language_model()
    with pytest.raises(ConfigError, match=r"(?s)it needs retain records.*methods that can: .*flat"):
        unlearn(model, tokenizer, records(), "rmu", rows=range(4))
    for name in ("flat", "undial", "ceu", "task_vector", "whp"):
        outcome = unlearn(model, tokenizer, records(), name, rows=range(4))
        assert outcome.sets.retain == ()
