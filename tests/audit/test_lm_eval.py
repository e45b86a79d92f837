"""The bridge to lm-evaluation-harness against log-likelihoods computed here."""

import copy
import math
import os
import random
import socket
import sys
from functools import partial

import numpy as np
import pytest
import torch
import yaml
from harness_tasks import DOCUMENTS, hits, log_likelihood, write_task
from tiny_llama import llama_config
from torch import nn
from transformers import LlamaForCausalLM

from expunge.audit.evidence import Subject
from expunge.audit.lm_eval import (
    AUDIT,
    TaskNumber,
    direction,
    evaluate_tasks,
    lm_eval_findings,
    measurement,
    to_findings,
)
from expunge.core.errors import (
    ConfigError,
    DataError,
    NumericalError,
    StorageError,
    UnsupportedModelError,
)
from expunge.core.finding import Reference
from expunge.engine.weights import state_digest

LIKELIHOOD = {
    "output_type": "loglikelihood",
    "doc_to_choice": None,
    "doc_to_text": "{{question}}",
    "doc_to_target": " {{choices[label]}}",
    "metric_list": [
        {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}
    ],
}


@pytest.fixture
def harness(tmp_path, monkeypatch):
    """A function that writes a task on DOCUMENTS from its name and settings."""
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return partial(write_task, tmp_path / "tasks")


@pytest.fixture
def pair(language_model):
    """A model and tokenizer of one's own."""
    model, task = language_model
    return copy.deepcopy(model), copy.deepcopy(task.tokenizer)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_accuracy_is_that_of_likelihoods_computed_one_by_one(harness, pair, batch_size):
    numbers = evaluate_tasks(*pair, ["books"], include_path=harness(), batch_size=batch_size)
    right = hits(*pair)
    share, n = np.mean(right), len(right)
    assert numbers == {
        "books.acc": TaskNumber(
            value=pytest.approx(share),
            stderr=pytest.approx(math.sqrt(share * (1 - share) / (n - 1))),
            n=n,
            higher_is_better=True,
            version="1.5",
            num_fewshot=0,
        )
    }


def test_the_limit_takes_the_first_documents(harness, pair):
    number = evaluate_tasks(*pair, ["books"], include_path=harness(), limit=2)["books.acc"]
    assert number.n == 2
    assert number.value == np.mean(hits(*pair)[:2])


def test_a_bootstrapped_error_is_the_same_each_time(harness, pair, capfd):
    folder = harness("text", **LIKELIHOOD)
    numbers = evaluate_tasks(*pair, ["text"], include_path=folder)
    likelihoods = [
        log_likelihood(*pair, d["question"], d["choices"][d["label"]]) for d in DOCUMENTS
    ]
    found = numbers["text.perplexity"]
    assert found.value == pytest.approx(math.exp(-np.mean(likelihoods)), rel=1e-5)
    draws = np.random.default_rng(0).choice(likelihoods, (100_000, len(likelihoods)))
    assert found.stderr == pytest.approx(np.exp(-draws.mean(1)).std(), rel=0.1)
    assert direction(found) == "lower"
    assert evaluate_tasks(*pair, ["text"], include_path=folder) == numbers
    assert capfd.readouterr() == ("", "")


def test_a_named_filter_is_in_the_name_of_its_number(harness, pair):
    generated = {
        "output_type": "generate_until",
        "doc_to_choice": None,
        "doc_to_target": "{{choices[label]}}",
        "generation_kwargs": {"until": ["the"], "max_gen_toks": 4},
        "filter_list": [{"name": "first", "filter": [{"function": "take_first"}]}],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    numbers = evaluate_tasks(*pair, ["say"], include_path=harness("say", **generated))
    assert list(numbers) == ["say.exact_match.first"]
    assert numbers["say.exact_match.first"].n == len(DOCUMENTS)


def test_a_group_has_the_number_of_its_tasks_together(harness, pair):
    harness("one")
    folder = harness("two", doc_to_target="{{1 - label}}")
    group = {
        "group": "both",
        "task": ["one", "two"],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
        "metadata": {"version": 3},
    }
    (folder / "both.yaml").write_text(yaml.safe_dump(group))
    numbers = evaluate_tasks(*pair, ["both"], include_path=folder)
    assert list(numbers) == ["one.acc", "two.acc", "both.acc"]
    both = numbers["both.acc"]
    assert both.value == pytest.approx((numbers["one.acc"].value + numbers["two.acc"].value) / 2)
    assert (both.n, both.version, both.higher_is_better) == (2 * len(DOCUMENTS), "3", True)


def test_examples_are_chosen_by_the_seed(harness, pair):
    folder = harness("text", fewshot_split="test", **LIKELIHOOD)
    found = [
        evaluate_tasks(*pair, ["text"], include_path=folder, num_fewshot=2, seed=seed)
        for seed in (0, 0, 1)
    ]
    none = evaluate_tasks(*pair, ["text"], include_path=folder)
    assert found[0] == found[1]
    assert found[0] != found[2]
    assert none not in found


def test_a_task_that_fixes_no_examples_says_so(harness, pair):
    folder = harness("books", num_fewshot=0, fewshot_split="test")
    plain = evaluate_tasks(*pair, ["books"], include_path=folder)
    with pytest.warns(UserWarning, match=r"num_fewshot = 2 is not used .* \(books\)"):
        told = evaluate_tasks(*pair, ["books"], include_path=folder, num_fewshot=2)
    assert told == plain


def test_everything_is_left_as_it_was(harness, pair, monkeypatch):
    import datasets.config
    from huggingface_hub import constants

    folder = harness()
    model, tokenizer = pair
    model.train()
    model.config.tie_word_embeddings = True  # and yet its weights are not tied
    before, chat = state_digest(model), copy.deepcopy(tokenizer.special_tokens_map)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.delenv("DISABLE_MULTIPROC", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    environment = dict(os.environ)
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    expected = random.random(), np.random.random(), torch.rand(1)
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    evaluate_tasks(model, tokenizer, ["books"], include_path=folder, seed=7)
    assert (random.random(), np.random.random(), torch.rand(1)) == expected
    assert state_digest(model) == before
    assert model.training
    assert "tie_weights" not in vars(model)
    assert tokenizer.special_tokens_map == chat
    assert dict(os.environ) == environment
    assert not constants.HF_HUB_OFFLINE
    assert not datasets.config.HF_HUB_OFFLINE


class Listener(LlamaForCausalLM):
    """A model that reads which of its tokens were asked, as some composites do."""

    reads_prompt = True

    def forward(self, input_ids, prompt_mask=None, **options):
        self.heard.append((input_ids.tolist(), prompt_mask.tolist()))
        return super().forward(input_ids, **options)


@pytest.mark.parametrize(("context", "kept"), [(64, 4), (5, 3)])
def test_a_model_that_reads_the_prompt_hears_it_and_no_answer(harness, pair, context, kept):
    plain, tokenizer = pair
    config = llama_config(tokenizer, max_position_embeddings=context)
    model = Listener(config)
    model.load_state_dict(plain.state_dict())
    model.heard = []
    folder = harness("text", **{**LIKELIHOOD, "doc_to_text": "who wrote the book"})
    numbers = evaluate_tasks(model, tokenizer, ["text"], include_path=folder)
    asked = tokenizer("who wrote the book")["input_ids"]
    assert len(model.heard) == len({d["choices"][d["label"]] for d in DOCUMENTS})
    for tokens, mask in model.heard:
        assert len(tokens) == len(mask) == 1
        place = len(mask[0])
        assert all(mask[0])
        assert tokens[0][:place] == asked[-place:]
        assert len(tokens[0]) <= context
    # The longest answer has 3 tokens, the last of which is no input.
    assert min(len(mask[0]) for _, mask in model.heard) == kept
    plain.config.max_position_embeddings = context
    expected = evaluate_tasks(plain, tokenizer, ["text"], include_path=folder)
    assert numbers["text.perplexity"].value == pytest.approx(expected["text.perplexity"].value)


def test_unknown_tasks_are_named_with_near_ones(harness, pair):
    with pytest.raises(ConfigError, match="no task 'boks'; did you mean 'books'"):
        evaluate_tasks(*pair, ["boks"], include_path=harness())
    with pytest.raises(ConfigError, match=r"'qqzzqq'; none of the \d+ known has a name like it"):
        evaluate_tasks(*pair, ["qqzzqq"], include_path=harness())


def test_a_task_without_its_data_never_asks_the_network(harness, pair, monkeypatch):
    import datasets.config
    from huggingface_hub import constants

    asked = []

    def look_up(host, *_, **__):
        asked.append(host)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    folder = harness(dataset_path="nobody/nothing", dataset_kwargs={})
    with pytest.raises(DataError, match=r"data of 'books' are not on this machine"):
        evaluate_tasks(*pair, ["books"], include_path=folder)
    assert asked == []


def test_a_task_that_cannot_be_built_is_refused(harness, pair):
    folder = harness(output_type="dance")
    with pytest.raises(ConfigError, match=r"'books' cannot be built: .*dance"):
        evaluate_tasks(*pair, ["books"], include_path=folder)


def test_code_that_a_model_writes_is_never_run(harness, pair):
    with pytest.raises(ConfigError, match="books would run code that the model writes"):
        evaluate_tasks(*pair, ["books"], include_path=harness(unsafe_code=True))


def test_a_missing_extra_is_named(pair, monkeypatch):
    for name in ("lm_eval", "lm_eval.tasks"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"lm_eval.*pip install 'expunge\[lm-eval\]'"):
        evaluate_tasks(*pair, ["books"])


@pytest.mark.parametrize(
    ("tasks", "settings", "said"),
    [
        ([], {}, r"tasks = \[\]"),
        ("books", {}, "tasks = 'books'"),
        (["books"], {"limit": 0}, "limit = 0"),
        (["books"], {"batch_size": 0, "num_fewshot": -1}, "(?s)batch_size = 0.*num_fewshot = -1"),
    ],
)
def test_settings_out_of_range_are_refused(pair, tasks, settings, said):
    with pytest.raises(ConfigError, match=said):
        evaluate_tasks(*pair, tasks, **settings)


def test_a_folder_that_is_none_is_refused(pair, tmp_path):
    with pytest.raises(StorageError, match="include_path"):
        evaluate_tasks(*pair, ["books"], include_path=tmp_path / "absent")


def test_other_models_are_refused():
    with pytest.raises(UnsupportedModelError, match="Linear"):
        evaluate_tasks(nn.Linear(2, 2), None, ["books"])


def test_broken_weights_are_refused(pair):
    model, tokenizer = pair
    model.lm_head.weight.data[0, 0] = math.nan
    with pytest.raises(NumericalError):
        evaluate_tasks(model, tokenizer, ["books"])


def number(**changed):
    whole = {"value": 0.5, "stderr": 0.1, "n": 9, "higher_is_better": True}
    return TaskNumber(**{**whole, "version": "1.5", "num_fewshot": None, **changed})


def test_an_interval_is_1_96_standard_errors_each_way():
    interval = measurement(number()).interval
    assert interval.low == pytest.approx(0.5 - 0.196, abs=1e-5)
    assert interval.high == pytest.approx(0.5 + 0.196, abs=1e-5)


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"value": None}, "no finite number"), ({"stderr": 0.0}, "alike"), ({"stderr": None}, "")],
)
def test_no_interval_is_made_up(changed, said):
    found = measurement(number(**changed))
    assert found.interval is None
    assert said in found.note
    assert bool(said) == bool(found.note)


@pytest.mark.parametrize(
    ("better", "expected"), [(True, "higher"), (False, "lower"), (None, "none")]
)
def test_numbers_become_findings(better, expected):
    numbers = {"arc_easy.acc": number(higher_is_better=better, num_fewshot=1)}
    (found,) = to_findings({Subject("after", "digest", {}): numbers})
    assert (found.audit, found.metric, found.value, found.n) == (AUDIT, "arc_easy.acc", 0.5, 9)
    assert (found.subject, found.model, found.reference) == ("after", "digest", None)
    assert found.direction == expected
    assert found.title.endswith("(task version 1.5, 1 example)")


def test_references_give_the_gap_and_the_noise_floor():
    values = {"before": (0.9,), "after": (0.5,), "reference": (0.25, 0.5, None)}
    numbers = {
        Subject(role, role, {}, seed): {"t.m": number(value=value)}
        for role, all_values in values.items()
        for seed, value in enumerate(all_values)
    }
    found = to_findings(numbers)
    assert [one.subject for one in found] == ["before", "after", *["reference"] * 3]
    standard = {"values": (0.25, 0.5), "noise_floor": 0.25}
    assert found[0].reference == Reference(gap=pytest.approx(0.525), **standard)
    assert found[1].reference == Reference(gap=pytest.approx(0.125), **standard)
    assert [one.reference for one in found[2:]] == [None] * 3
    assert found[4].value is None


def test_a_number_that_one_model_lacks_is_said_to_be_missing():
    before, after = Subject("before", "b", {}), Subject("after", "a", {})
    first, second = to_findings({before: {}, after: {"t.m": number()}})
    assert (first.value, first.n) == (None, 0)
    assert "no such number" in first.note
    assert second.value == 0.5


@pytest.mark.parametrize("roles", [(), ("before",), ("after", "after"), ("after", "part")])
def test_other_sets_of_models_are_refused(roles):
    with pytest.raises(ConfigError, match="one 'after'"):
        to_findings({Subject(role, role, {}): {"t.m": number()} for role in roles})


def test_every_model_is_run_on_the_same_tasks(harness, pair):
    model, tokenizer = pair
    folder = harness("text", fewshot_split="test", **LIKELIHOOD)
    models = {"after": model, "before": copy.deepcopy(model), "reference": copy.deepcopy(model)}
    for place, changed in enumerate((models["before"], models["reference"])):
        changed.lm_head.weight.data *= 2 + place
    loads = {role: [partial(lambda kept: (kept, tokenizer), one)] for role, one in models.items()}
    settings = {"include_path": folder, "num_fewshot": 1, "limit": 4}
    findings = lm_eval_findings(loads, ["text"], **settings)
    alone = {
        role: evaluate_tasks(one, tokenizer, ["text"], **settings)["text.perplexity"]
        for role, one in models.items()
    }
    assert [one.subject for one in findings] == ["before", "after", "reference"]
    assert len({one.value for one in findings}) == 3
    for one in findings:
        expected = measurement(alone[one.subject])
        assert (one.value, one.n, one.interval) == (expected.value, 4, expected.interval)
        assert one.model == state_digest(models[one.subject])
        assert one.direction == "lower"
        assert one.title.endswith("1 example)")
    assert findings[1].reference.gap == findings[1].value - findings[2].value


def test_a_model_that_cannot_be_loaded_is_told_before_any_is_run(harness, pair):
    def broken():
        raise StorageError("no such folder")

    model, tokenizer = pair
    forwards = []
    model.register_forward_hook(lambda *_: forwards.append(1))
    models = {"after": [lambda: (model, tokenizer)], "reference": [broken]}
    with pytest.raises(StorageError, match="no such folder"):
        lm_eval_findings(models, ["books"], include_path=harness())
    assert forwards == []


def test_a_second_model_after_forgetting_is_refused():
    with pytest.raises(ConfigError, match=r"'after': 2.*one 'after'"):
        lm_eval_findings({"after": [None, None]}, ["books"])
