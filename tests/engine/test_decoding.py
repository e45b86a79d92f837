"""Caches of prompts: the same numbers and texts as without them."""

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

from expunge.audit.scores import score, score_together
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.decoding import batches_of, greedy, keeps_cache
from expunge.engine.tasks.causal_lm import CausalLM, Template


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def world(request, questions_world):
    """A model of each position encoding, on the questions of the toy world."""
    if request.param == "llama":
        return questions_world.model, questions_world
    config = GPT2Config(
        vocab_size=len(questions_world.task.tokenizer), n_embd=32, n_layer=2, n_head=2
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPT2LMHeadModel(config), questions_world


@pytest.fixture(scope="module")
def views(questions_world):
    """One question under several answers, as an audit reads them."""
    records = questions_world.retain
    rolled = [list(np.roll(records["answer"], k)) for k in range(4)]
    return [records.replace(answer=answers) for answers in rolled]


def assert_same(one, other):
    assert one.ids == other.ids
    np.testing.assert_array_equal(one.offsets, other.offsets)
    for name in ("logprob_N", "mean_N", "variance_N"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-5)
    np.testing.assert_array_equal(one.rank_N, other.rank_N)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_shared_prompts_change_no_number(world, views, batch_size, monkeypatch):
    model, toy = world
    parts = [(toy.task, records) for records in views]
    with Run(quiet=True).progress("x", 1) as bar:
        together = score_together(model, parts, Run(), bar=bar, batch_size=batch_size)
    monkeypatch.setattr("expunge.audit.scores.keeps_cache", lambda model: False)
    for scores, records in zip(together, views, strict=True):
        assert_same(scores, score(model, toy.task, records, Run(), batch_size=5))


def test_each_prompt_is_read_once(world, views, monkeypatch):
    model, toy = world
    read = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(int(kwargs["input_ids"].numel())),
        with_kwargs=True,
    )
    wordy = "what is the capital of " * 4 + "{question}"
    task = toy.task.with_template(Template(prompt=wordy, answer=" {answer}"))
    parts = [(task, records) for records in views]
    try:
        with Run(quiet=True).progress("x", 1) as bar:
            score_together(model, parts, Run(), bar=bar, batch_size=400)
        together = sum(read)
        read.clear()
        monkeypatch.setattr("expunge.audit.scores.keeps_cache", lambda model: False)
        for task, records in parts:
            score(model, task, records, Run(), batch_size=400)
    finally:
        handle.remove()
    assert together < 0.5 * sum(read)


def test_scores_of_a_view_are_those_of_its_own_task(world, views):
    """Tasks under other templates share a pass."""
    model, toy = world
    longer = toy.task.with_template(Template(prompt="which city leads {question}", answer=" {answer}"))
    parts = [(toy.task, views[0]), (longer, views[1])]
    with Run(quiet=True).progress("x", 1) as bar:
        found = score_together(model, parts, Run(), bar=bar)
    for (task, records), scores in zip(parts, found, strict=True):
        assert_same(scores, score(model, task, records, Run()))


def public_answers(model, task, records, rows, count):
    """Return what the library's own generation writes."""
    encoded = task.encoded(records)
    found = []
    for row in rows:
        tokens, start = encoded[row]
        ids = torch.tensor([tokens[:start]])
        settings = {"max_new_tokens": count, "do_sample": False, "num_beams": 1}
        end = task.tokenizer.eos_token_id
        whole = model.generate(ids, **settings, eos_token_id=end, pad_token_id=end)
        found.append(task.tokenizer.decode(whole[0, start:], skip_special_tokens=True).strip())
    return found


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_greedy_answers_are_those_of_the_library(world, views, chunk):
    model, toy = world
    records = views[0]
    rows = list(range(len(records)))
    found = [
        text
        for at in range(0, len(rows), chunk)
        for text in toy.task.generate(model.eval(), records, rows[at : at + chunk], 7)
    ]
    assert found == public_answers(model, toy.task, records, rows, 7)


def test_a_finished_answer_leaves_the_batch(questions_world):
    model, task = questions_world.model.eval(), questions_world.task
    sizes = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    try:
        task.generate(model, questions_world.retain, range(len(questions_world.retain)), 30)
    finally:
        handle.remove()
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0]
    assert len(sizes) < 30


def test_what_all_prompts_begin_with_is_read_once(questions_world):
    model = questions_world.model.eval()
    start = [5, 6, 7, 8, 9, 10]
    prompts = [[*start, 11, 12], [*start, 13], [*start, 14, 15, 16]]
    read = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    try:
        together = greedy(model, prompts, 5, end=-1, pad=0)
    finally:
        handle.remove()
    assert read[:2] == [(1, 6), (3, 3)]
    assert together == [greedy(model, [prompt], 5, end=-1, pad=0)[0] for prompt in prompts]


def test_models_whose_cache_cannot_be_cut_go_without(questions_world):
    assert keeps_cache(questions_world.model)
    windowed = MistralForCausalLM(
        MistralConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            sliding_window=4,
        )
    )
    assert not keeps_cache(windowed)
    assert not keeps_cache(torch.nn.Linear(2, 2))


def test_batches_hold_each_record_once_and_keep_their_bound():
    encoded = [([1, 2, 3, 4, 5, 6, row], 6) for row in range(9)]
    encoded += [([9, 8, 7, row], 2) for row in range(3)]
    encoded += [([7, 7, 7, 7, 7, 7, 7, row], 7) for row in range(2)]
    for size in (1, 2, 4, 50):
        batches = batches_of(encoded, size, share=True)
        assert sorted(row for rows, _ in batches for row in rows) == list(range(14))
        assert max(len(rows) for rows, _ in batches) <= size
    shared = {row for rows, is_shared in batches if is_shared for row in rows}
    assert shared == {*range(9), 12, 13}
    assert not any(is_shared for _, is_shared in batches_of(encoded, 4, share=False))


def test_documents_without_a_prompt_are_read_whole(questions_world):
    task = CausalLM(questions_world.task.tokenizer, Template(prompt="", answer="{question}"))
    records = Records(("a", "b"), {"question": ["what is the capital of peru"] * 2})
    scores = score(questions_world.model, task, records, Run())
    assert scores.logprob_N[: scores.offsets[1]] == pytest.approx(
        scores.logprob_N[scores.offsets[1] :], abs=1e-6
    )
