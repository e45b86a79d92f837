"""A composite scores, writes, is saved and read back like any language model."""

import json

import numpy as np
import pytest
import torch

from expunge.core.errors import ConfigError, IntegrityError, StorageError
from expunge.engine.composites.composite import composites, is_composite, part_names
from expunge.engine.composites.logit_difference import LogitDifference, combine, plausible
from expunge.engine.tasks.causal_lm import CausalLM, Template
from expunge.engine.weights import state_digest
from expunge.forget.uld import first_blocks
from expunge.models.language import read_language_model, write_language_model

TEMPLATE = Template(prompt="{question}", answer=" {answer}")


@pytest.fixture
def assistant(model):
    """The first block of the model under other weights: a cache of another depth."""
    made = first_blocks(model, 1)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.2 * torch.randn(
                parameter.shape, generator=generator, dtype=parameter.dtype
            )
    return made.eval()


@pytest.fixture
def task(tokenizer):
    return CausalLM(tokenizer, TEMPLATE)


def composed(model, assistant, **settings):
    return LogitDifference(model, assistant, **{"alpha": 0.7, **settings}).eval()


# --- scores ---


@pytest.mark.parametrize("rule", ["difference", "offset"])
def test_forward_is_the_combination_of_both(model, assistant, rule):
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    seen = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    made = composed(model, assistant, rule=rule)
    with torch.no_grad():
        z, a = (part(input_ids=ids, attention_mask=seen).logits for part in (model, assistant))
        got = made(input_ids=ids, attention_mask=seen).logits
        last = made(input_ids=ids, attention_mask=seen, logits_to_keep=1).logits
    low = a.log_softmax(-1) if rule == "difference" else torch.relu(a - z)
    torch.testing.assert_close(got, z - 0.7 * low, rtol=0, atol=1e-12)
    torch.testing.assert_close(last, got[:, -1:], rtol=0, atol=1e-6)
    assert (got - z).abs().max() > 0.1


def test_scores_are_those_of_answer_positions(model, assistant, task, records):
    """Both heads skip the prompt, and nothing of it is left behind."""
    made = composed(model, assistant)
    batch = task.batch(records, range(4))
    with torch.no_grad():
        packed = task.predict(made, batch)
        full = made(**batch.inputs).logits
    torch.testing.assert_close(packed.logits_NV, full[batch.positions], rtol=0, atol=1e-12)
    for part in (model, assistant, made):
        assert not part.get_output_embeddings()._forward_pre_hooks


def test_without_subtraction_it_is_the_target_bit_by_bit(model, assistant, task, records):
    made = composed(model, assistant, alpha=0.0)
    batch = task.batch(records, range(4))
    with torch.no_grad():
        pair = [task.predict(m, batch).logits_NV for m in (made, model)]
    assert torch.equal(*pair)
    assert task.generate(made, records, range(4), 6) == task.generate(model, records, range(4), 6)


# --- answers ---


def by_hand(model, assistant, ids, keep_ratio, min_keep, end):
    """Greedy tokens, one full pass over everything for each."""
    ids, made = list(ids), []
    for _ in range(12):
        with torch.no_grad():
            z, a = (
                part(input_ids=torch.tensor([ids])).logits[0, -1] for part in (model, assistant)
            )
        logits = combine(z, a, 3.0, "difference")
        if keep_ratio:
            allowed = plausible(z.log_softmax(-1), keep_ratio, min_keep)
            logits = logits.masked_fill(~allowed, -torch.inf)
        made.append(int(logits.argmax()))
        ids.append(made[-1])
        if made[-1] == end:
            break
    return made


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize(("keep_ratio", "min_keep"), [(0.0, 5), (0.02, 3)])
def test_writing_is_the_argmax_step_by_step(
    model, assistant, tokenizer, keep_ratio, min_keep, use_cache
):
    """With the key/value caches of both, and with a full pass for each token."""
    settings = {"alpha": 3.0, "keep_ratio": keep_ratio, "min_keep": min_keep}
    made = composed(model, assistant, **settings)
    ids, end = [5, 6, 7, 8, 9], tokenizer.eos_token_id
    expected = by_hand(model, assistant, ids, keep_ratio, min_keep, end)
    got = made.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, 5, dtype=torch.long),
        max_new_tokens=12,
        do_sample=False,
        use_cache=use_cache,
        eos_token_id=end,
        pad_token_id=end,
    )
    assert got[0, 5:].tolist() == expected
    if keep_ratio:  # the filter decides something here
        assert expected != by_hand(model, assistant, ids, 0.0, 5, end)


def test_neither_batch_nor_padding_changes_an_answer(model, assistant, task, records):
    made = composed(model, assistant, keep_ratio=0.1)
    together = task.generate(made, records, range(4), 10)
    alone = [task.generate(made, records, [row], 10)[0] for row in range(4)]
    assert together == alone
    assert len(set(together)) > 1
    assert together != task.generate(model, records, range(4), 10)


def test_two_calls_do_not_share_a_cache(model, assistant, task, records):
    made = composed(model, assistant)
    first = task.generate(made, records, [1], 8)
    task.generate(made, records, [3], 8)
    assert task.generate(made, records, [1], 8) == first


@pytest.mark.parametrize("beams", [2, 5])
def test_beam_search_moves_both_caches(model, assistant, beams):
    """A beam that is dropped or doubled takes the assistant's keys and values with it."""
    made = composed(model, assistant)
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    settings = {"num_beams": beams, "max_new_tokens": 8, "do_sample": False}
    settings |= {"attention_mask": torch.ones_like(ids), "pad_token_id": 1}
    cached, fresh = (made.generate(ids, use_cache=use, **settings) for use in (True, False))
    assert torch.equal(cached, fresh)


def test_sampling_follows_the_seed(model, assistant, task, records):
    made = composed(model, assistant)
    drawn = [
        task.generate(made, records, range(4), 8, temperature=1.0, seed=seed) for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


# --- on disk ---


@pytest.fixture
def folder(model, assistant, tokenizer, tmp_path):
    """A composite as it was saved, and the composite."""
    single = [part.float() for part in (first_blocks(model, 2), assistant)]
    made = composed(*single, alpha=0.6, keep_ratio=0.05, min_keep=3)
    write_language_model(made, tokenizer, tmp_path / "m")
    return tmp_path / "m", made


def test_what_was_saved_is_read_back(folder, task, records):
    path, made = folder
    back, tokenizer = read_language_model(str(path))
    assert isinstance(back, LogitDifference)
    assert not back.training
    assert state_digest(back) == state_digest(made)
    assert back.settings() == made.settings()
    assert back.settings() == {
        "alpha": 0.6,
        "rule": "difference",
        "keep_ratio": 0.05,
        "min_keep": 3,
    }
    again = CausalLM(tokenizer, TEMPLATE)
    assert again.fingerprint() == task.fingerprint()
    batch = task.batch(records, range(4))
    with torch.no_grad():
        pair = [task.predict(m, batch).logits_NV for m in (made, back)]
    assert torch.equal(*pair)
    assert again.generate(back, records, range(4), 6) == task.generate(made, records, range(4), 6)


def test_the_folder_says_what_it_holds(folder):
    """Each part opens by itself with transformers alone; the card tells that nothing was erased."""
    from transformers import AutoModelForCausalLM

    path, made = folder
    assert is_composite(path)
    assert not is_composite(path / "target")
    assert part_names(path) == ["assistant", "target"]
    card = json.loads((path / "composite.json").read_text())
    assert card["evidence"] == "output-suppressed"
    assert card["kind"] == "logit_difference"
    for name, part in made.parts().items():
        alone = AutoModelForCausalLM.from_pretrained(path / name)
        assert state_digest(alone) == state_digest(part)


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "logit_difference"}', ""])
def test_a_damaged_card_is_refused(folder, text):
    path, _ = folder
    (path / "composite.json").write_text(text)
    with pytest.raises(IntegrityError, match=r"composite\.json"):
        read_language_model(str(path))


def test_a_kind_that_is_not_registered_is_named(folder):
    path, _ = folder
    card = json.loads((path / "composite.json").read_text())
    (path / "composite.json").write_text(json.dumps({**card, "kind": "logit_diference"}))
    with pytest.raises(ConfigError, match="did you mean 'logit_difference'"):
        read_language_model(str(path))


def test_a_lost_or_torn_part_is_refused(folder):
    path, _ = folder
    weights = path / "assistant" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(IntegrityError, match="not whole"):
        read_language_model(str(path))
    weights.unlink()
    with pytest.raises(StorageError, match=r"no \.safetensors file"):
        read_language_model(str(path))


def test_composites_are_registered():
    assert composites.get("logit_difference") is LogitDifference


def test_it_is_one_model_to_count_and_move(model, assistant):
    made = composed(model, assistant)
    names = {name.partition(".")[0] for name, _ in made.named_parameters()}
    assert names == {"target", "assistant"}
    count = sum(p.numel() for part in (model, assistant) for p in part.parameters())
    assert sum(p.numel() for p in made.parameters()) == count
    assert made.get_input_embeddings() is model.get_input_embeddings()
    assert np.isclose(made.config.vocab_size, model.config.vocab_size)
    assert made.output_heads() == [model.get_output_embeddings(), assistant.get_output_embeddings()]


def test_the_settings_of_a_composite_are_part_of_its_digest(model, assistant):
    """Two strengths are two models, though their weights are the same."""
    one, same, other = (composed(model, assistant, alpha=alpha) for alpha in (0.1, 0.1, 3.0))
    assert state_digest(one) == state_digest(same) != state_digest(other)


def test_an_answer_near_the_end_of_the_context_is_not_cut_by_what_is_beside_it(
    model, assistant, task, records
):
    """Each record has the room that its own prompt leaves."""
    made = composed(model, assistant)
    starts = [start for _, start in task.encoded(records)]
    assert len(set(starts)) > 1
    made.config.max_position_embeddings = max(starts) + 3
    together = task.generate(made, records, range(len(records)), 10)
    alone = [task.generate(made, records, [row], 10)[0] for row in range(len(records))]
    assert together == alone
