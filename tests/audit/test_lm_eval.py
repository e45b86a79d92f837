"""The bridge to lm-evaluation-harness against log-likelihoods computed here, and its export."""

import copy
import dataclasses
import json
import math
import os
import random
import socket
import sys

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tiny_llama import llama_config
from torch import nn
from transformers import LlamaForCausalLM

from expunge.audit.lm_eval import (
    AUDIT,
    TaskNumber,
    direction,
    evaluate_tasks,
    measurement,
    to_findings,
    to_lm_eval,
)
from expunge.core.errors import (
    ConfigError,
    DataError,
    NumericalError,
    StorageError,
    UnsupportedModelError,
)
from expunge.core.files import read_json, write_json
from expunge.core.finding import Finding, Interval
from expunge.engine.weights import state_digest

DOCUMENTS = [
    {"question": "who wrote the red book", "choices": ["anna", "bo", "the sea"], "label": 0},
    {"question": "who wrote it", "choices": ["carl", "the blue tree", "a book"], "label": 1},
    {"question": "was it the blue tree", "choices": ["it was", "is it by the sea"], "label": 0},
    {"question": "is it in the sea", "choices": ["it is", "carl wrote it"], "label": 1},
    {"question": "the sea", "choices": ["is blue", "is red"], "label": 0},
]
CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "label",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
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
    """Write tasks on DOCUMENTS; returns a function of a task's name and settings."""
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is the extra 'lm-eval'")
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data, folder = tmp_path / "documents.json", tmp_path / "tasks"
    data.write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    folder.mkdir()

    def write(name="books", **settings):
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "metadata": {"version": 1.5},
            **CHOICE,
            **settings,
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
        return folder

    return write


@pytest.fixture
def pair(language_model):
    """A model and tokenizer of one's own."""
    model, task = language_model
    return copy.deepcopy(model), copy.deepcopy(task.tokenizer)


def log_likelihood(model, tokenizer, question, answer):
    """Sum of the answer's token log-probabilities, one record at a time."""
    asked = tokenizer(question)["input_ids"]
    tokens = torch.tensor([asked + tokenizer(answer)["input_ids"]])
    with torch.no_grad():
        scores = model.eval()(tokens).logits[0].log_softmax(-1)
    return sum(scores[i - 1, tokens[0, i]].item() for i in range(len(asked), tokens.shape[1]))


def hits(model, tokenizer):
    """Whether the most likely choice of each document is the right one."""
    found = []
    for document in DOCUMENTS:
        scores = [
            log_likelihood(model, tokenizer, document["question"], choice)
            for choice in document["choices"]
        ]
        found.append(int(np.argmax(scores)) == document["label"])
    return found


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


def test_the_harness_prints_a_table_of_findings(harness):
    pytest.importorskip("pytablewriter", reason="the harness's tables need it")
    from lm_eval.utils import make_table

    found = finding(value=0.25, interval=Interval(low=0.15, high=0.35, method="normal"))
    missing = finding(metric="f1", value=None, direction="none", note="Too few records.")
    table = make_table(to_lm_eval([found, missing]))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert rows[2][:4] == ["expunge_mia_forget_after", "2", "none", "0"]
    assert rows[2][4:] == ["auc", "↓", "0.25", "±", "0.051"]
    assert rows[3][4:] == ["f1", "", "N/A", "±", "N/A"]


def test_a_missing_extra_is_named(pair, monkeypatch):
    for name in ("lm_eval", "lm_eval.evaluator"):
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
    whole = {"value": 0.5, "stderr": 0.1, "n": 9, "higher_is_better": True, "version": "1.5"}
    return TaskNumber(**{**whole, **changed})


def finding(**changed):
    whole = {
        "audit": "mia",
        "metric": "auc",
        "title": "AUC",
        "subject": "after",
        "value": 0.5,
        "n": 7,
        "direction": "lower",
        "record_set": "forget",
        "version": 2,
    }
    return Finding(**{**whole, **changed})


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
    numbers = {"arc_easy.acc": number(higher_is_better=better)}
    (found,) = to_findings(numbers, subject="reference", seed=3, model="digest")
    assert (found.audit, found.metric, found.value, found.n) == (AUDIT, "arc_easy.acc", 0.5, 9)
    assert (found.subject, found.seed, found.model) == ("reference", 3, "digest")
    assert found.direction == expected
    assert "1.5" in found.title


@given(st.floats(1e-3, 10), st.floats(-100, 100))
def test_a_standard_error_survives_the_way_there_and_back(stderr, value):
    found = to_findings({"t.m": number(stderr=stderr, value=value)}, subject="after")
    row = to_lm_eval(found)["results"]["expunge_lm_eval_after"]
    assert row["t.m,none"] == value
    assert row["t.m_stderr,none"] == pytest.approx(stderr, rel=1e-6)


def test_the_export_has_a_task_for_each_audit_model_and_record_set(tmp_path):
    exact = Interval(low=0.2, high=0.9, method="clopper-pearson")
    findings = [
        finding(interval=exact),
        finding(metric="tpr", n=5, direction="reference"),
        finding(subject="reference", seed=1),
        finding(subject="part", part="target", direction="higher"),
    ]
    write_json(tmp_path / "results.json", to_lm_eval(findings))
    read = read_json(tmp_path / "results.json")
    names = [
        "expunge_mia_forget_after",
        "expunge_mia_forget_part_target",
        "expunge_mia_forget_reference_seed1",
    ]
    for key in ("results", "configs", "versions", "n-samples", "n-shot", "higher_is_better"):
        assert sorted(read[key]) == names, key
    assert read["results"][names[0]] == {
        "name": names[0],
        "alias": names[0],
        "sample_len": 7,
        "auc,none": 0.5,
        "auc_stderr,none": "N/A",  # an exact interval has no standard error
        "tpr,none": 0.5,
        "tpr_stderr,none": "N/A",
    }
    assert read["versions"][names[0]] == 2
    assert read["n-samples"][names[0]] == {"original": 7, "effective": 7}
    assert read["higher_is_better"][names[0]] == {"auc": False, "tpr": None}
    assert read["higher_is_better"][names[1]] == {"auc": True}
    kept = read["configs"][names[0]]["metadata"]["findings"]
    assert [Finding.from_json(value) for value in kept] == findings[:2]


def test_the_same_number_twice_is_refused():
    with pytest.raises(DataError, match=r"expunge_mia_forget_after\.auc"):
        to_lm_eval([finding(), dataclasses.replace(finding(), value=0.1)])


def test_no_findings_make_no_tasks():
    assert to_lm_eval([])["results"] == {}
