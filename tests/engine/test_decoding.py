"""Caches of prompts: the same numbers and texts as without them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    MptForCausalLM,
)

from expunge.audit.scores import score, score_together
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.decoding import apart, by_length, greedy, keeps_cache
from expunge.engine.tasks.causal_lm import CausalLM, Template


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def world(request, questions_world):
    """A model of each position encoding, on the questions of the toy world."""
    if request.param == "llama":
        return questions_world.model.eval(), questions_world
    config = GPT2Config(
        vocab_size=len(questions_world.task.tokenizer), n_embd=32, n_layer=2, n_head=2
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPT2LMHeadModel(config).eval(), questions_world


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
    longer = toy.task.with_template(
        Template(prompt="which city leads {question}", answer=" {answer}")
    )
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
        lambda module, args, kwargs: sizes.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    try:
        task.generate(model, questions_world.retain, range(len(questions_world.retain)), 30)
    finally:
        handle.remove()
    steps = [rows for rows, length in sizes if length == 1]
    assert steps == sorted(steps, reverse=True)
    assert steps[-1] < steps[0]
    assert len(steps) < 30


def test_rows_have_limits_of_their_own(questions_world):
    model = questions_world.model.eval()
    prompts = [[5, 6, 7, 8, 11, 12], [5, 6], [9], [5, 6]]
    together = greedy(model, prompts, [5, 2, 4, 5], end=-1, pad=0)
    alone = [greedy(model, [prompt], [5], end=-1, pad=0)[0] for prompt in prompts]
    assert together == [alone[0], alone[1][:2], alone[2][:4], alone[3]]


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
    local = GPTNeoForCausalLM(
        GPTNeoConfig(
            vocab_size=40,
            hidden_size=16,
            num_layers=2,
            num_heads=2,
            attention_types=[[["global", "local"], 1]],
            window_size=4,
        )
    )
    assert not keeps_cache(local)
    places = MptForCausalLM(MptConfig(vocab_size=40, d_model=16, n_heads=2, n_layers=1))
    assert not keeps_cache(places)  # it counts the cache's places, padding included
    assert not keeps_cache(torch.nn.Linear(2, 2))


def test_blocks_and_the_rest_hold_each_record_once():
    encoded = [([1, 2, 3, 4, 5, 6, row], 6) for row in range(9)]
    encoded += [([9, 8, 7, row], 3) for row in range(3)]
    encoded += [([7, 7, 7, 7, 7, 7, 7, row], 7) for row in range(2)]
    encoded += [([4, 4, 4, 4, 4, 4], 5)]
    blocks, alone = apart(encoded, share=True)
    assert blocks == [[*range(9), 12, 13]]
    assert alone == [9, 10, 11, 14]
    assert apart(encoded, share=False) == ([], list(range(15)))


@given(st.lists(st.integers(1, 9), max_size=30), st.integers(1, 7))
def test_batches_by_length_hold_each_row_once(lengths, size):
    batches = by_length(range(len(lengths)), lengths, size)
    rows = [row for batch in batches for row in batch]
    assert sorted(rows) == list(range(len(lengths)))
    assert [lengths[row] for row in rows] == sorted(lengths)
    assert all(len(batch) <= size for batch in batches)


def test_what_is_known_of_an_answer_is_not_written_again(world, views):
    """The scores tell how far the true answer is what the model writes."""
    model, toy = world
    for records in views[:2]:
        known = score(model, toy.task, records, Run()).leading_R.tolist()
        rows = list(range(len(records)))
        for longest in (1, 2, 7):
            plain = toy.task.generate(model, records, rows, longest)
            assert toy.task.generate(model, records, rows, longest, known=known) == plain


def test_nothing_is_run_for_answers_that_are_known_whole(questions_world):
    model, task, records = questions_world.model, questions_world.task, questions_world.retain
    known = score(model, task, records, Run()).leading_R
    whole = np.flatnonzero(known == task.num_targets(records)).tolist()
    assert len(whole) > 5

    def never(*arguments, **named):
        raise AssertionError("the model was run")

    handle = model.register_forward_pre_hook(never)
    try:
        texts = task.generate(model, records, whole, 30, known=known[whole].tolist())
    finally:
        handle.remove()
    assert texts == [records["answer"][row] for row in whole]


def test_documents_without_a_prompt_are_read_whole(questions_world):
    task = CausalLM(questions_world.task.tokenizer, Template(prompt="", answer="{question}"))
    records = Records(("a", "b"), {"question": ["what is the capital of peru"] * 2})
    scores = score(questions_world.model, task, records, Run())
    assert scores.logprob_N[: scores.offsets[1]] == pytest.approx(
        scores.logprob_N[scores.offsets[1] :], abs=1e-6
    )
