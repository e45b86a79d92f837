import copy
import warnings

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch import nn

from expunge.core.digest import digest_json
from expunge.core.errors import ConfigError, DataError, UnsupportedModelError
from expunge.core.records import Records
from expunge.engine.task import Task, tasks
from expunge.engine.tasks.causal_lm import REFUSALS, CausalLM, Template

ROWS = range(4)


def documents(*texts):
    return Records(tuple(f"d{i}" for i in range(len(texts))), {"text": list(texts)})


def plain(tokenizer, **settings):
    """Return a task that scores whole documents."""
    return CausalLM(tokenizer, Template(prompt="", answer="{text}", **settings))


def nll(task, model, records, rows):
    with torch.no_grad():
        return task.predict(model, task.batch(records, rows)).nll_B()


def answer_logits(model, tokenizer, prompt, answer):
    """Oracle: full logits of one unpadded record, then the rows before each answer token."""
    head = tokenizer(prompt)["input_ids"]
    tail = [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]
    with torch.no_grad():
        logits_TV = model(torch.tensor([head + tail])).logits[0].numpy()
    return logits_TV[len(head) - 1 : -1], np.array(tail)


def test_registered_and_satisfies_the_contract(tokenizer):
    made = tasks.get("causal_lm").make(tokenizer)
    assert isinstance(made, CausalLM)
    assert isinstance(made, Task)


def test_packed_predictions_equal_full_logits(model, tokenizer, records):
    task = CausalLM(tokenizer)
    batch = task.batch(records, ROWS)
    with torch.no_grad():
        predictions = task.predict(model, batch)
    nll_B = predictions.nll_B().numpy()
    for row in ROWS:
        prompt = f"Question: {records['question'][row]}\nAnswer:"
        answer = f" {records['answer'][row]}"
        logits_NV, targets_N = answer_logits(model, tokenizer, prompt, answer)
        mine = (batch.rows_N == row).numpy()
        np.testing.assert_allclose(predictions.logits_NV.numpy()[mine], logits_NV, atol=1e-10)
        np.testing.assert_array_equal(batch.targets_N.numpy()[mine], targets_N)
        picked_N = logits_NV[np.arange(len(targets_N)), targets_N]
        oracle = (np.log(np.exp(logits_NV).sum(1)) - picked_N).sum()
        assert nll_B[row] == pytest.approx(oracle, abs=1e-9)


def test_a_record_scores_the_same_in_any_batch(model, tokenizer, records):
    task = CausalLM(tokenizer)
    together = nll(task, model, records, ROWS)
    alone = torch.cat([nll(task, model, records, [row]) for row in ROWS])
    turned = nll(task, model, records, [2, 0, 3, 1])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-9)
    torch.testing.assert_close(turned, together[[2, 0, 3, 1]], rtol=0, atol=1e-9)


def test_padding_token_does_not_matter(model, tokenizer, records):
    task, other = CausalLM(tokenizer), CausalLM(tokenizer)
    other._pad = lambda: 7
    batches = task.batch(records, ROWS), other.batch(records, ROWS)
    assert not torch.equal(batches[0].inputs["input_ids"], batches[1].inputs["input_ids"])
    torch.testing.assert_close(
        nll(task, model, records, ROWS), nll(other, model, records, ROWS), rtol=0, atol=0
    )


def test_gradients_equal_those_of_full_logits(model, tokenizer, records):
    task = CausalLM(tokenizer)
    batch = task.batch(records, ROWS)
    parameters = list(model.parameters())
    packed = torch.autograd.grad(task.predict(model, batch).nll_B().sum(), parameters)
    logits_BTV = model(**batch.inputs).logits
    loss = nn.functional.cross_entropy(
        logits_BTV[batch.positions], batch.targets_N, reduction="sum"
    )
    for one, other in zip(packed, torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_counts_and_lengths_need_no_model(tokenizer, records):
    task = CausalLM(tokenizer)
    batch = task.batch(records, ROWS)
    assert task.num_targets(records) == batch.counts_B.tolist() == [5, 18, 3, 9]
    assert task.lengths(records) == batch.inputs["attention_mask"].sum(1).tolist()
    assert batch.ids == records.ids


def test_without_prompt_every_token_but_the_first_is_scored(model, tokenizer):
    task = plain(tokenizer)
    batch = task.batch(documents("abc"), [0])
    tokens = [*tokenizer("abc")["input_ids"], tokenizer.eos_token_id]
    assert batch.inputs["input_ids"].tolist() == [tokens]
    assert batch.targets_N.tolist() == tokens[1:]
    with torch.no_grad():
        logprobs_TV = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    oracle = -sum(logprobs_TV[i, tokens[i + 1]] for i in range(3))
    torch.testing.assert_close(nll(task, model, documents("abc"), [0])[0], oracle)


@pytest.fixture
def starting(tokenizer):
    """A tokenizer that puts a start token first and an end token last, as some do."""
    copied = copy.deepcopy(tokenizer)
    copied.add_special_tokens({"bos_token": "<bos>"})
    ends = [("<bos>", copied.bos_token_id), ("<eos>", copied.eos_token_id)]
    copied.backend_tokenizer.post_processor = TemplateProcessing("<bos> $A <eos>", None, ends)
    return copied


def test_start_token_lets_the_first_token_be_scored(starting):
    batch = plain(starting).batch(documents("abc"), [0])
    tokens = batch.inputs["input_ids"][0].tolist()
    assert (tokens[0], tokens[-1]) == (starting.bos_token_id, starting.eos_token_id)
    assert batch.targets_N.tolist() == tokens[1:]
    assert tokens.count(starting.eos_token_id) == 1


def test_end_token_of_the_prompt_is_dropped(starting, records):
    for tokens in CausalLM(starting).batch(records, [0]).inputs["input_ids"].tolist():
        assert tokens.count(starting.eos_token_id) == 1
        assert tokens[-1] == starting.eos_token_id


def test_records_that_are_too_long_are_cut_and_counted_once(tokenizer):
    task = plain(tokenizer, max_length=4)
    texts = documents("abc", "abcd", "abcdef")
    with pytest.warns(UserWarning, match=r"2 records are longer than .* = 4 tokens and were cut"):
        assert task.lengths(texts) == [4, 4, 4]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = task.batch(texts, range(3))
    assert batch.inputs["input_ids"][1].tolist() == tokenizer("abcd")["input_ids"]
    assert batch.inputs["input_ids"][0, -1] == tokenizer.eos_token_id


@pytest.mark.parametrize("row", [1, 2])
def test_records_without_an_answer_token_are_refused(tokenizer, row):
    records = Records(
        tuple("abc"),
        {"question": ["q", "q", "q" * 40], "answer": ["yes", "", "no"]},
    )
    task = CausalLM(tokenizer, Template(prompt="{question}", answer="{answer}", max_length=20))
    with pytest.raises(DataError, match=r"1 records have no answer token .* = 20"):
        task.batch(records, [0, row])
    with pytest.raises(DataError):  # and again: nothing half-made is kept
        task.lengths(records.take([row]))


def test_tokenizer_needs_an_end_token(tokenizer):
    endless = copy.deepcopy(tokenizer)
    endless.eos_token = None
    with pytest.raises(UnsupportedModelError, match=r"set tokenizer\.eos_token"):
        CausalLM(endless)


def test_model_needs_an_output_head(tokenizer, records):
    task = CausalLM(tokenizer)
    with pytest.raises(UnsupportedModelError, match=r"Linear has no output head"):
        task.predict(nn.Linear(2, 2), task.batch(records, [0]))


def test_model_keeps_no_hook(model, tokenizer, records):
    task = CausalLM(tokenizer)
    head = model.get_output_embeddings()
    task.predict(model, task.batch(records, [0]))
    broken = task.batch(records, [0])
    broken.inputs["input_ids"][0, 0] = 10**6
    with pytest.raises(IndexError):
        task.predict(model, broken)
    assert not head._forward_pre_hooks


def test_template_fills_columns_but_not_braces_inside_texts(tokenizer):
    records = Records(("a",), {"question": ["{answer} or {x}?"], "answer": ["secret"]})
    prompt, answer = CausalLM(tokenizer)._texts(records, [0])[0]
    assert prompt == "Question: {answer} or {x}?\nAnswer:"
    assert answer == " secret"


def test_template_with_an_unknown_column_is_refused(tokenizer, records):
    task = CausalLM(tokenizer, Template(prompt="{qestion}"))
    with pytest.raises(DataError, match="no column 'qestion'; they have question, answer"):
        task.batch(records, [0])


def test_chat_template_wraps_the_prompt(tokenizer, records):
    chatty = copy.deepcopy(tokenizer)
    chatty.chat_template = (
        "{% for m in messages %}[{{ m.role }}|{{ m.content }}]{% endfor %}"
        "{% if add_generation_prompt %}[assistant|{% endif %}"
    )
    template = Template(prompt="{question}", answer="{answer}", chat=True, system="Be brief.")
    batch = CausalLM(chatty, template).batch(records, [0])
    read = chatty.decode(batch.inputs["input_ids"][0])
    assert read == "[system|Be brief.][user|Who?][assistant|Ada<eos>"
    assert chatty.decode(batch.targets_N) == "Ada<eos>"


def greedy(model, tokenizer, prompt, max_new_tokens):
    """Oracle: one unpadded prompt, the argmax appended step by step."""
    tokens = tokenizer(prompt)["input_ids"]
    start = len(tokens)
    for _ in range(max_new_tokens):
        with torch.no_grad():
            best = int(model(torch.tensor([tokens])).logits[0, -1].argmax())
        if best == tokenizer.eos_token_id:
            break
        tokens.append(best)
    return tokenizer.decode(tokens[start:]).strip()


def test_generation_is_the_argmax_step_by_step(model, tokenizer, records):
    task = CausalLM(tokenizer)
    expected = [
        greedy(model, tokenizer, f"Question: {question}\nAnswer:", 12)
        for question in records["question"]
    ]
    assert len(set(expected)) == 4
    assert task.generate(model, records, ROWS, 12) == expected
    assert task.generate(model, records, [3, 1], 12) == [expected[3], expected[1]]


def test_generation_stops_each_answer_at_its_end_token(model, tokenizer, records):
    prompt = tokenizer(f"Question: {records['question'][0]}\nAnswer:", return_tensors="pt")
    ending = copy.deepcopy(model)
    with torch.no_grad():  # the first token that is said to one prompt becomes the end of text
        first = int(ending(**prompt).logits[0, -1].argmax())
        weight = ending.get_output_embeddings().weight
        weight[[first, tokenizer.eos_token_id]] = weight[[tokenizer.eos_token_id, first]]
    expected = [
        greedy(ending, tokenizer, f"Question: {question}\nAnswer:", 12)
        for question in records["question"]
    ]
    assert expected[0] == ""
    assert any(expected)
    assert CausalLM(tokenizer).generate(ending, records, ROWS, 12) == expected


def test_generation_ignores_the_settings_that_came_with_the_model(model, tokenizer, records):
    task = CausalLM(tokenizer)
    expected = task.generate(model, records, ROWS, 12)
    changed = copy.deepcopy(model)
    own = changed.generation_config
    own.update(do_sample=True, repetition_penalty=3.0, no_repeat_ngram_size=1)
    before = own.to_dict()
    assert task.generate(changed, records, ROWS, 12) == expected
    assert changed.generation_config is own
    assert own.to_dict() == before


def test_neutral_answers_are_refusals_by_record_and_epoch(tokenizer, records):
    task = CausalLM(tokenizer)
    many = Records(tuple(map(str, range(60))), {"question": ["q"] * 60, "answer": ["a"] * 60})
    drawn = task.neutral(many, seed=0, epoch=0)
    assert set(drawn["answer"]) == set(REFUSALS)
    assert drawn["question"] == many["question"]
    again = task.neutral(many.take(range(59, -1, -1)), seed=0, epoch=0)
    assert list(again["answer"]) == list(drawn["answer"])[::-1]
    assert list(task.neutral(many, seed=0, epoch=1)["answer"]) != list(drawn["answer"])
    assert list(task.neutral(many, seed=1, epoch=0)["answer"]) != list(drawn["answer"])


def test_neutral_answers_go_where_the_template_reads_them(tokenizer):
    task = CausalLM(tokenizer, Template(prompt="{text}", answer="{reply}"), refusals=("No.",))
    records = Records(("a",), {"text": ["t"], "reply": ["r"]})
    assert list(task.neutral(records, 0, 0)["reply"]) == ["No."]
    with pytest.raises(ConfigError, match="names 2 columns; neutral answers need exactly one"):
        CausalLM(tokenizer, Template(answer="{a} {b}")).neutral(records, 0, 0)


def test_fingerprint_changes_with_what_decides_a_batch(tokenizer, starting):
    chatty = copy.deepcopy(tokenizer)
    chatty.chat_template = "{{ messages }}"
    ended = copy.deepcopy(tokenizer)
    ended.eos_token = "a"
    made = [
        CausalLM(tokenizer),
        CausalLM(starting),
        CausalLM(ended),
        CausalLM(tokenizer, Template(prompt="{question}")),
        CausalLM(tokenizer, Template(max_length=9)),
        CausalLM(tokenizer, Template(chat=True)),
        CausalLM(chatty, Template(chat=True)),
    ]
    assert len({digest_json(task.fingerprint()) for task in made}) == len(made)


def test_fingerprint_does_not_change_with_use(tokenizer, records):
    used = copy.deepcopy(tokenizer)
    used.pad_token = "<eos>"
    before = CausalLM(used).fingerprint()
    used(["a", "bcd"], padding=True, truncation=True, max_length=2)
    assert CausalLM(used).fingerprint() == before


def test_a_model_with_a_short_context_is_told_and_never_overrun(model, tokenizer, records):
    task = CausalLM(tokenizer)
    short = copy.deepcopy(model)
    prompt = task.lengths(records)[0] - task.num_targets(records)[0]
    short.config.max_position_embeddings = prompt + 1
    with pytest.raises(DataError, match=r"template\.max_length"):
        task.predict(short, task.batch(records, [0]))
    whole = task.generate(model, records, [0], 1)
    assert task.generate(short, records, [0], 50) == whole
    short.config.max_position_embeddings = prompt
    with pytest.raises(DataError, match="longer context"):
        task.generate(short, records, [0], 5)
