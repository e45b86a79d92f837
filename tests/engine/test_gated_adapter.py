"""The gated adapter against merged weights, hidden states read elsewhere, and itself on disk."""

import copy
import math

import pytest
import torch
from torch import nn
from transformers import DynamicCache, OPTConfig, OPTForCausalLM
from transformers.pytorch_utils import Conv1D

from expunge.core.errors import ConfigError, DataError, UnsupportedModelError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.composites.gated_adapter import (
    GatedAdapter,
    _mean,
    _per_token,
    linear_layers,
    mapped,
    overlap,
    request_features,
)
from expunge.engine.gate import Gate, GateSettings, split
from expunge.engine.tasks.causal_lm import CausalLM, Template
from expunge.engine.weights import state_digest
from expunge.models.language import read_language_model, write_language_model

PROMPTS = [
    f"Where is the {thing} of {owner}?" for thing in ("cat", "big hat") for owner in "ABCDEF"
]


@pytest.fixture
def target(model):
    """A copy for each test: a composite's target is the model that it was given."""
    return copy.deepcopy(model)


@pytest.fixture
def task(tokenizer):
    return CausalLM(tokenizer, Template(prompt="{question}", answer=" {answer}"))


@pytest.fixture
def request_records():
    """Twelve questions and their answers."""
    ids = tuple(f"q{i}" for i in range(12))
    return Records(ids, {"question": PROMPTS, "answer": [f"at {i}" for i in range(12)]})


@pytest.fixture
def mixed():
    """Questions of the request, questions like them, and others, of different lengths."""
    questions = [
        *PROMPTS[2:4],
        PROMPTS[8],
        "Where is the dog of Z?",
        "Who?",
        "What a day it is today",
    ]
    ids = tuple(f"m{i}" for i in range(len(questions)))
    return Records(ids, {"question": questions, "answer": ["a", "a longer one"] * 3})


def adapted(model, *, rank=3, alpha=6.0, scale=0.15):
    """A composite whose adapter does something."""
    composite = GatedAdapter.new(model, rank=rank, alpha=alpha, seed=0)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for up in composite.up.values():
            up.copy_(scale * torch.randn_like(up))
    return composite


def with_request(composite, task, records, *, seed=0):
    features = request_features(composite, task, records, Run())
    used, rest = split(records.ids, seed)
    settings = GateSettings(zeta=6.0)
    composite.add_request(
        Gate.fit([f[used] for f in features], [f[rest] for f in features], settings)
    )
    return composite


@pytest.fixture
def composite(target, task, request_records):
    """A tiny model with one request of which some, and some other inputs, are well recognised."""
    return with_request(adapted(target), task, request_records).eval()


def merged(composite, weight):
    """The target with the adapter added to its weights."""
    model = copy.deepcopy(composite.target)
    factor = weight * composite.alpha / composite.rank
    with torch.no_grad():
        for key, down in composite.down.items():
            layer = model.get_submodule(key.replace("/", "."))
            change = factor * composite.up[key] @ down
            layer.weight += change.T if isinstance(layer, Conv1D) else change
    return model


def tokens(model, rows=3, length=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, model.config.vocab_size, (rows, length), generator=generator)


def hooks(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


# --- the adapter ---


def test_every_linear_layer_of_the_blocks_and_no_other(target):
    found = linear_layers(target)
    per_block = 7 if target.config.model_type == "llama" else 4
    assert len(found) == 2 * per_block
    assert not any("lm_head" in name for name in found)
    for name, (inputs, outputs) in found.items():
        x = torch.zeros(1, 1, inputs, dtype=torch.float64)
        assert target.get_submodule(name)(x).shape == (1, 1, outputs)


def test_a_new_adapter_changes_nothing(target):
    composite = GatedAdapter.new(target, rank=4, alpha=8.0, seed=0)
    assert not any(up.any() for up in composite.up.values())
    for key, down in composite.down.items():
        bound = 1 / math.sqrt(down.shape[1])
        assert 0.8 * bound < float(down.detach().abs().max()) <= bound
        assert down.shape == (4, linear_layers(target)[key.replace("/", ".")][0])
        assert down.dtype == torch.float64
    ids = tokens(target)
    with composite.forced(1.0), torch.no_grad():
        assert torch.equal(composite(ids).logits, target(ids).logits)


def test_down_projections_come_from_named_streams(target):
    one, again, other = (GatedAdapter.new(target, rank=2, alpha=2.0, seed=s) for s in (0, 0, 1))
    assert state_digest(one) == state_digest(again) != state_digest(other)
    firsts = {down[0, 0].item() for down in one.down.values()}
    assert len(firsts) == len(one.down)


def test_a_rank_above_a_layer_is_refused(target):
    with pytest.raises(ConfigError, match=r"forget.rank = 17 but layer .* at most 16"):
        GatedAdapter.new(target, rank=17, alpha=8.0, seed=0)


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(UnsupportedModelError, match="hold no linear layer"):
        linear_layers(nn.ModuleList([nn.LayerNorm(2), nn.LayerNorm(2)]))


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_a_forced_gate_is_the_adapter_merged_at_that_weight(target, weight):
    composite = adapted(target).eval()
    ids = tokens(target)
    with composite.forced(weight), torch.no_grad():
        logits = composite(ids).logits
    expected = merged(composite, weight)(ids).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
    assert float((expected - target(ids).logits).detach().abs().max()) > 0.1


def test_layers_that_get_flattened_inputs():
    """The feed-forward layers of some architectures see B * T rows."""
    settings = {"vocab_size": 40, "hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        opt = OPTForCausalLM(
            OPTConfig(**settings, num_attention_heads=2, word_embed_proj_dim=16, init_std=0.3)
        )
    composite = adapted(opt.double().eval()).eval()
    ids = tokens(opt)
    with composite.forced(0.5), torch.no_grad():
        torch.testing.assert_close(
            composite(ids).logits, merged(composite, 0.5)(ids).logits, rtol=0, atol=1e-10
        )
    scale = torch.tensor([1.0, 2.0])
    assert _per_token(scale, torch.zeros(2, 3, 4), 3, "a").flatten().tolist() == [1, 2]
    assert _per_token(scale, torch.zeros(6, 4), 3, "a").flatten().tolist() == [1, 1, 1, 2, 2, 2]
    with pytest.raises(UnsupportedModelError, match=r"layer 'a.b' gets \(5, 4\) for 2 inputs of 3"):
        _per_token(scale, torch.zeros(5, 4), 3, "a/b")


def test_each_input_has_a_weight_of_its_own(composite, monkeypatch):
    ids = tokens(composite)
    weights = torch.tensor([0.0, 0.4, 1.0]).double()
    monkeypatch.setattr(composite, "gate", lambda features: weights)
    with torch.no_grad():
        logits = composite(ids).logits
        for row, weight in enumerate(weights.tolist()):
            expected = merged(composite, weight)(ids[row : row + 1]).logits
            torch.testing.assert_close(logits[row : row + 1], expected, rtol=0, atol=1e-6)


def test_no_request_and_a_shut_gate_are_the_target_bit_by_bit(target, composite, monkeypatch):
    ids = tokens(target)
    with torch.no_grad():
        bare = target(ids).logits
        assert torch.equal(adapted(target).eval()(ids).logits, bare)
        assert not torch.equal(composite(ids).logits, bare)
        with composite.forced(0.0):
            assert torch.equal(composite(ids).logits, bare)
        assert composite.forced_gate is None
        monkeypatch.setattr(composite, "gate", lambda features: torch.zeros(3))
        assert torch.equal(composite(ids).logits, bare)


def test_only_the_adapter_gets_gradients_through_a_frozen_target(composite):
    composite.target.requires_grad_(False)
    with composite.forced(1.0):
        composite(tokens(composite)).logits.square().mean().backward()
    assert all(p.grad is not None for p in [*composite.down.values(), *composite.up.values()])
    assert all(p.grad is None for p in composite.target.parameters())


# --- snapshots ---


def test_golden_overlap():
    """Value of the authors' function."""
    earlier = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    now = torch.tensor([[0.5, 0, 1], [0, 2, 0]], requires_grad=True)
    assert float(overlap(earlier, now).detach()) == pytest.approx(4.25)
    overlap(now, now).backward()
    expected = 2 * now.detach() @ now.detach().T @ now.detach()  # half of it: one side is constant
    torch.testing.assert_close(now.grad, expected)


def test_orthogonality_sums_over_layers_and_requests(composite, task, request_records):
    with torch.no_grad():
        for down in composite.down.values():
            down.mul_(-0.5)
    with_request(composite, task, request_records, seed=1)
    with torch.no_grad():
        for down in composite.down.values():
            down.add_(0.1)
    by_hand = 0.0
    for key, down in composite.down.items():
        for snapshot in composite.snapshots:
            by_hand += float((snapshot[key.replace("/", ".")] @ down.T).detach().norm() ** 2)
    assert len(composite.snapshots) == len(composite.gates) == 2
    assert float(composite.orthogonality().detach()) == pytest.approx(by_hand / 2, rel=1e-10)


def test_without_an_earlier_request_there_is_nothing_to_be_orthogonal_to(target):
    assert float(adapted(target).orthogonality().detach()) == 0


# --- the gate ---


def test_it_reads_the_mean_hidden_state_of_what_was_asked(target, task, records):
    composite = adapted(target).eval()
    batch, before = task.batch(records, range(4)), hooks(composite)
    features = composite.prompt_features(task, batch)
    assert [f.shape for f in features] == [(4, 16), (4, 16)]
    assert hooks(composite) == before
    for row, question in enumerate(records["question"]):
        ids = torch.tensor([task.tokenizer(question)["input_ids"]])
        hidden = copy.deepcopy(target)(ids, output_hidden_states=True).hidden_states[1]
        torch.testing.assert_close(features[0][row], hidden[0].mean(0), rtol=0, atol=1e-10)


def test_at_most_twelve_blocks_are_read():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "vocab_size": 9}
    deep = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=14)).eval()
    seen = []
    for layer in deep.model.layers:
        layer.register_forward_hook(lambda *_: seen.append(1))
    features = GatedAdapter.new(deep, rank=1, alpha=1.0, seed=0).pooled(torch.ones(1, 3).long())
    assert len(features) == len(seen) == 12


def test_the_adapter_and_dropout_do_not_reach_the_gate(composite, target, request_records, task):
    batch = task.batch(request_records, range(3))
    before = composite.prompt_features(task, batch)
    composite.train()
    with torch.no_grad():
        composite.up[next(iter(composite.up))].fill_(9.0)
    after = composite.prompt_features(task, batch)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert composite.target.training


def test_batch_and_padding_do_not_change_the_gate(composite, task, mixed):
    whole = composite.gate(composite.prompt_features(task, task.batch(mixed, range(6))))
    assert float(whole.max() - whole.min()) > 0.01
    for row in range(6):
        alone = composite.gate(composite.prompt_features(task, task.batch(mixed, [row])))
        assert float(alone[0]) == pytest.approx(float(whole[row]), abs=1e-5)
    prompts = [task.tokenizer(q)["input_ids"] for q in mixed["question"]]
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    seen = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    places = (seen.cumsum(1) - 1).clamp(min=0)
    left = composite.gate(composite.pooled(ids, seen, places))
    torch.testing.assert_close(left, whole, rtol=0, atol=1e-5)


def test_a_nan_at_padding_is_never_read():
    hidden = torch.ones(1, 3, 2)
    hidden[0, 2] = torch.nan
    assert _mean(hidden, torch.tensor([[True, True, False]])).tolist() == [[1, 1]]
    assert _mean(hidden, torch.tensor([[False, False, False]])).tolist() == [[0, 0]]


def test_the_widest_gate_counts(composite, task, request_records, mixed):
    other = Records(
        tuple(f"o{i}" for i in range(12)),
        {"question": [f"{i} + {i}?!" for i in range(12)], "answer": ["x"] * 12},
    )
    first = composite.gate(composite.prompt_features(task, task.batch(request_records, range(12))))
    with_request(composite, task, other)
    for rows in (request_records, other, mixed):
        features = composite.prompt_features(task, task.batch(rows, range(len(rows))))
        each = composite.request_weights(features)
        assert each.shape == (len(rows), 2)
        assert torch.equal(composite.gate(features), each.amax(1))
    features = composite.prompt_features(task, task.batch(request_records, range(12)))
    assert torch.equal(composite.request_weights(features)[:, 0], first)


def test_the_official_map():
    weights = torch.tensor([0.1192, 0.2, 0.25, 0.3199, 0.32, 0.9])
    expected = [0, 0, 0.625, 10 * 0.3199**2, 1, 1]
    assert mapped(weights, "official").tolist() == pytest.approx(expected, abs=1e-6)
    assert torch.equal(mapped(weights, "soft"), weights)


def test_a_gate_of_another_model_is_refused(target, composite):
    gate = composite.gates[0]
    other = Gate(gate.layers[:1], gate.coef[:1], gate.numbers, gate.settings)
    with pytest.raises(DataError, match="reads 1 blocks of size 16, the model has 2 of size 16"):
        composite.add_request(other)
    with pytest.raises(DataError, match="fit it on the hidden states of this model"):
        GatedAdapter(target, rank=3, alpha=6.0, down={}, up={}, gates=[other])


# --- writing ---


def test_writing_with_and_without_a_cache_is_the_same(composite, task, mixed, tokenizer):
    """Without a cache what was written is read again, and must not open or shut the gate."""
    prompts = [task.tokenizer(q)["input_ids"] for q in mixed["question"]]
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    seen = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with_cache, without = (
        composite.generate(
            input_ids=ids,
            attention_mask=seen,
            use_cache=use_cache,
            output_logits=True,
            return_dict_in_generate=True,
            **settings,
        )
        for use_cache in (True, False)
    )
    assert torch.equal(with_cache.sequences, without.sequences)
    for one, other in zip(with_cache.logits, without.logits, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=0, atol=1e-5)
    row = composite(ids[:1], attention_mask=seen[:1]).logits[:, -1]
    if prompts[0] and int(seen[0, 0]):
        torch.testing.assert_close(with_cache.logits[0][:1].double(), row, rtol=0, atol=1e-5)


def test_written_answers_are_those_that_are_scored_best(composite, task, mixed):
    """Prompts are recognised alike when answers are scored and when they are written."""
    written = task.generate(composite, mixed, range(6), 5)
    again = [task.generate(composite, mixed, [row], 5)[0] for row in range(6)]
    assert written == again
    scored = task.predict(composite, task.batch(mixed, range(6)))
    firsts = scored.logits_NV[torch.searchsorted(scored.rows_N, torch.arange(6))]
    prompts = [task.tokenizer(q)["input_ids"] for q in mixed["question"]]
    with torch.no_grad():
        for row, prompt in enumerate(prompts):
            last = composite(torch.tensor([prompt]), use_cache=True).logits[0, -1]
            torch.testing.assert_close(last, firsts[row].detach(), rtol=0, atol=1e-5)


def test_a_generation_with_beams_and_without_a_mask(composite):
    ids = tokens(composite, rows=2)
    plain = composite.generate(
        ids, max_new_tokens=4, num_beams=2, eos_token_id=None, pad_token_id=0
    )
    masked = composite.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=4,
        num_beams=2,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert torch.equal(plain, masked)


def test_a_cache_that_another_model_began_is_refused(composite, target):
    cache = DynamicCache()
    target(tokens(target), past_key_values=cache, use_cache=True)
    with pytest.raises(DataError, match="was begun by another model; begin with an empty one"):
        composite(tokens(target, length=1), past_key_values=cache, use_cache=True)


def test_inputs_must_be_tokens(composite):
    with pytest.raises(DataError, match="pass input_ids"):
        composite(inputs_embeds=torch.zeros(1, 2, 16))


def test_gradient_checkpointing_is_refused(composite):
    ids = tokens(composite)
    for module in composite.target.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = True
    composite(ids)
    composite.train()
    with pytest.raises(UnsupportedModelError, match="gradient checkpointing turned on"):
        composite(ids)


# --- what it leaves behind ---


def test_it_leaves_no_hook_on_error(composite, task, records):
    def fail(*_):
        raise MemoryError("no room")

    layer = next(m for m in composite.target.modules() if isinstance(m, nn.Linear | Conv1D))
    for hook in (layer.register_forward_hook(fail), layer.register_forward_pre_hook(fail)):
        before = hooks(composite)
        with composite.forced(1.0), pytest.raises(MemoryError):
            composite(tokens(composite))
        with pytest.raises(MemoryError):
            composite.prompt_features(task, task.batch(records, [0]))
        assert hooks(composite) == before
        hook.remove()


def test_modes_of_the_target_are_kept(target):
    mixed = copy.deepcopy(target).train()
    mixed.get_input_embeddings().eval()
    composite = adapted(mixed)
    assert composite.training
    assert not composite.get_input_embeddings().training
    assert not adapted(copy.deepcopy(target).eval()).bank.training


def test_a_copy_is_a_whole_one(composite, task, mixed):
    batch = task.batch(mixed, range(6))
    twin = copy.deepcopy(composite)
    assert state_digest(twin) == state_digest(composite)
    with torch.no_grad():
        assert torch.equal(
            twin(batch.inputs["input_ids"]).logits, composite(batch.inputs["input_ids"]).logits
        )
    twin.load_state_dict({name: torch.zeros_like(v) for name, v in twin.state_dict().items()})
    assert not twin.gates[0].numbers.any()
    assert composite.gates[0].numbers.any()


def test_the_digest_covers_gates_and_snapshots(composite):
    names = list(composite.state_dict())
    for part in ("down.", "up.", "earlier.0/", "bank.0/numbers", "bank.0/0/bank", "target."):
        assert any(name.startswith(part) for name in names), part


def test_gates_keep_their_precision_wherever_the_model_goes(composite):
    composite.half()
    assert {p.dtype for p in composite.parameters()} == {torch.float16}
    assert composite.gates[0].numbers.dtype == torch.float64
    assert composite.bank.gates[0].layers[0].mean.dtype == torch.float32


def test_a_target_in_half_precision_gets_a_whole_adapter(target, task, request_records):
    composite = adapted(copy.deepcopy(target).to(torch.bfloat16)).eval()
    assert {p.dtype for p in composite.down.values()} == {torch.float32}
    with_request(composite, task, request_records)
    assert composite(tokens(target)).logits.dtype == torch.bfloat16


@pytest.mark.parametrize("requests", [0, 1, 2])
def test_saved_and_read_back_it_is_the_same(target, task, request_records, tmp_path, requests):
    whole = adapted(copy.deepcopy(target).float(), alpha=5.5).eval()
    whole.gate_map = "official"
    for seed in range(requests):
        with_request(whole, task, request_records, seed=seed)
        next(iter(whole.down.values())).data.mul_(1.5)
    write_language_model(whole, task.tokenizer, tmp_path / "model")
    again, _ = read_language_model(str(tmp_path / "model"))
    assert isinstance(again, GatedAdapter)
    assert state_digest(again) == state_digest(whole)
    assert again.settings() == whole.settings()
    assert again.alpha == 5.5
    assert len(again.gates) == len(again.snapshots) == requests
    ids = tokens(target)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, whole(ids).logits)
        with again.forced(1.0), whole.forced(1.0):
            assert torch.equal(again(ids).logits, whole(ids).logits)
    suffixes = {path.suffix for path in (tmp_path / "model").rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".safetensors"}
