"""Rounding and pruning against numpy, which weights they reach, and what they bring back."""

import copy

import attack_worlds
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from expunge.audit.audit import audits, parse_config
from expunge.audit.quantize import pruned, rounded, weight_matrices
from expunge.audit.treatments import NotApplicable, treat
from expunge.core.errors import ConfigError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.data.dataset import Dataset
from expunge.engine.composites.logit_difference import LogitDifference
from expunge.engine.weights import state_digest


@pytest.fixture(scope="module")
def threes():
    return attack_worlds.threes()


@pytest.fixture(scope="module")
def people():
    return attack_worlds.people()


def of(findings, metric, subject="after"):
    return next(f for f in findings if f.metric == metric and f.subject == subject)


def numpy_rounded(weight, bits, axis=None):
    """An oracle that goes from row to row."""
    if axis is not None:
        rows = np.moveaxis(weight, axis, 0)
        return np.moveaxis(np.stack([numpy_rounded(row, bits) for row in rows]), 0, axis)
    scale = np.abs(weight).max() / np.float32(2 ** (bits - 1) - 1)
    return np.rint(weight / scale) * scale if scale else weight


@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 8),
    st.sampled_from([None, 0, 1]),
    st.sampled_from([(3, 5), (4, 2, 3), (1, 1)]),
)
def test_rounding_agrees_with_numpy(seed, bits, axis, shape):
    weight = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    found = rounded(torch.from_numpy(weight), bits, axis).numpy()
    np.testing.assert_allclose(found, numpy_rounded(weight, bits, axis), atol=1e-6)
    # No entry moves by more than half a step, the largest of each scale not at all.
    step = np.abs(weight).max() / (2 ** (bits - 1) - 1)
    assert np.abs(found - weight).max() <= step / 2 + 1e-6
    assert np.abs(found).max() == pytest.approx(np.abs(weight).max(), rel=1e-6)
    again = rounded(torch.from_numpy(found), bits, axis).numpy()
    np.testing.assert_allclose(again, found, atol=1e-6)


def test_rounding_by_hand():
    weight = torch.tensor([[3.0, -1.4, 0.4], [0.0, 0.0, 0.0], [-30.0, 14.0, 4.0]])
    # 3 bits: the steps of a row are a third of its largest magnitude
    assert rounded(weight, 3, 0).tolist() == [[3, -1, 0], [0, 0, 0], [-30, 10, 0]]
    assert rounded(weight, 3).tolist() == [[0, 0, 0], [0, 0, 0], [-30, 10, 0]]
    assert len(rounded(torch.linspace(-1, 1, 1001), 4).unique()) == 15
    assert rounded(weight.bfloat16(), 3, 0).dtype == torch.bfloat16


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 0.99))
def test_pruning_takes_the_smallest_entries_and_no_more(seed, share):
    weight = np.random.default_rng(seed).integers(-4, 5, size=(5, 7)).astype(np.float32)
    found = pruned(torch.from_numpy(weight), share).numpy()
    order = np.argsort(np.abs(weight).ravel(), kind="stable")[: int(share * 35)]
    wanted = weight.copy()
    wanted.ravel()[order] = 0
    assert np.array_equal(found, wanted)


def test_16_bits_change_next_to_nothing(people, threes):
    for world in (people, threes):
        for spec in ("quantize:16:channel:embeddings", "quantize:16:tensor:embeddings"):
            treated, task = treat(world.after, world.task, world.scene(), spec, Run())
            records = world.scene().records("retain")
            batch = task.batch(records, range(len(records)))
            with torch.no_grad():
                old, new = (task.predict(m, batch).logprobs_N() for m in (world.after, treated))
            assert not torch.equal(old, new)
            assert torch.allclose(old, new, atol=1e-3)


def test_treatments_leave_the_model_and_its_biases_as_they_were(threes):
    digest = state_digest(threes.after)
    for spec in ("quantize:4", "quantize:4:tensor", "prune:0.3"):
        treated, _ = treat(threes.after, threes.task, threes.scene(), spec, Run())
        for name, old in threes.after.named_parameters():
            assert torch.equal(old, treated.get_parameter(name)) == name.endswith("bias")
    assert state_digest(threes.after) == digest


def test_embeddings_and_head_are_compressed_when_asked_for(people):
    def changed(spec):
        treated, _ = treat(people.after, people.task, people.scene(), spec, Run())
        return {
            name
            for name, old in people.after.named_parameters()
            if not torch.equal(old, treated.get_parameter(name))
        }

    outer = {"model.embed_tokens.weight", "lm_head.weight"}
    within = changed("quantize:4")
    assert within
    assert not within & outer
    assert changed("quantize:4:channel:embeddings") == within | outer
    assert changed("prune:0.2:embeddings") == within | outer
    assert all(name.endswith("proj.weight") for name in within)


def test_conv1d_has_its_outputs_last(people):
    model = attack_worlds.tiny_gpt2(people.task.tokenizer)
    found = weight_matrices(model, embeddings=False)
    assert set(found) == {
        f"transformer.h.{block}.{name}.weight"
        for block in (0, 1)
        for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }
    assert {axis for _, axis in found.values()} == {1}
    treated, _ = treat(model, people.task, people.scene(), "quantize:4", Run())
    name = "transformer.h.0.attn.c_attn"
    old, new = (m.get_submodule(name).weight.detach().numpy() for m in (model, treated))
    np.testing.assert_allclose(new, numpy_rounded(old, 4, axis=1), atol=1e-6)


def test_tied_weights_are_compressed_once(people):
    model = attack_worlds.tiny_gpt2(people.task.tokenizer)
    assert model.lm_head.weight is model.transformer.wte.weight
    found = weight_matrices(model, embeddings=True)
    assert len(found) == len({id(weight) for weight, _ in found.values()}) == 8 + 2
    treated, _ = treat(model, people.task, people.scene(), "prune:0.5:embeddings", Run())
    assert treated.lm_head.weight is treated.transformer.wte.weight
    share = (treated.lm_head.weight == 0).float().mean().item()
    assert share == pytest.approx(0.5, abs=0.01)


def test_all_parts_of_a_composite_are_compressed(people):
    composite = LogitDifference(people.before, people.after, alpha=1.0)
    treated, _ = treat(composite, people.task, people.scene(), "quantize:3", Run())
    for part in ("target", "assistant"):
        name = f"{part}.model.layers.0.mlp.up_proj.weight"
        assert not torch.equal(composite.get_parameter(name), treated.get_parameter(name))


def test_a_model_without_matrices_has_nothing_to_compress(threes):
    norm = nn.LayerNorm(64)
    for spec in ("quantize:8", "prune:0.3"):
        with pytest.raises(NotApplicable, match="no weight matrix"):
            treat(norm, threes.task, threes.scene(), spec, Run())


def test_a_mask_survives_rounding_and_the_damage_stands_beside(threes):
    settings = {"bits": [8], "pruning": [0.9], "by": "exact", "max_excess": 0.1}
    findings = threes.audit("quantize", settings)
    found = of(findings, "excess")
    assert (found.value, found.n, found.verdict) == (0, 62, "pass")
    assert found.note.endswith("; not counted: 90 % of the weights pruned")
    assert abs(of(findings, "retain_drop_8_bits_per_channel").value) < 0.02
    damage = of(findings, "retain_drop_pruned_90_percent")
    assert (damage.value > 0.02, damage.n, damage.record_set) == (True, 300, "retain")
    assert of(findings, "recovery_pruned_90_percent").note.endswith("it does not count")


def test_an_attack_counts_unless_its_damage_is_sure(threes):
    """Half way up the interval of the damage is above the bound, its low end is not."""
    settings = {"bits": [8], "pruning": [0.9], "by": "exact"}
    damage = of(threes.audit("quantize", settings), "retain_drop_pruned_90_percent")
    for end, counts in ((damage.interval.low, True), (damage.interval.low - 1e-6, False)):
        assert damage.value > end
        findings = threes.audit("quantize", {**settings, "max_retain_drop": end})
        assert ("not counted" in of(findings, "excess").note) != counts


def test_what_lies_within_the_rounding_comes_back(threes):
    # Forgetting that adds an offset smaller than half a step to many weights is rounded away.
    before = copy.deepcopy(threes.before)
    with torch.no_grad():
        for layer in (before[0], before[2]):
            layer.weight.copy_(rounded(layer.weight, 4, 0))
    after = copy.deepcopy(before)
    with torch.no_grad():
        step_O1 = after[2].weight.abs().amax(1, keepdim=True) / 7
        change_O1 = torch.zeros_like(step_O1)
        change_O1[3] = -0.49 * step_O1[3]
        largest = after[2].weight.abs() == 7 * step_O1
        after[2].weight.add_(torch.where(largest, 0.0, change_O1))
    world = type(threes)(threes.task, threes.dataset, threes.sets, before, after, threes.references)
    findings = world.audit("quantize", {"bits": [4], "pruning": [], "max_excess": 0.1})
    assert of(findings, "recovery_4_bits_per_channel").value == pytest.approx(1, abs=0.02)
    assert of(findings, "excess").verdict == "fail"


def test_the_original_passed_off_as_unlearned_is_told(threes):
    settings = {"bits": [8], "pruning": [], "max_excess": 0.1}
    found = of(threes.audit("quantize", settings, after=threes.before), "excess")
    assert (found.value, found.verdict) == (None, "inconclusive")
    assert "nothing was forgotten" in found.note


def test_findings_are_a_function_of_the_seed(threes):
    first, again = (threes.audit("quantize", {"bits": [3]}) for _ in range(2))
    assert [f.digest() for f in first] == [f.digest() for f in again]


def test_the_readings_name_every_attack():
    info = audits.get("quantize")
    dataset = Dataset("classifier", Records(("a",), {"x": np.zeros((1, 3)), "y": np.array([0])}))
    settings = {"bits": [8, 8], "pruning": [0.25], "embeddings": True}
    readings = list(info.reads(parse_config(info, settings), dataset))
    assert {r.treatment for r in readings} == {
        "",
        "quantize:8:channel:embeddings",
        "quantize:8:tensor:embeddings",
        "prune:0.25:embeddings",
    }
    assert {(r.record_set, r.limit) for r in readings} == {("forget", 0), ("retain", 300)}
    for wrong in ({"bits": [1]}, {"pruning": [1.0]}, {"scales": ["row"]}):
        with pytest.raises(ConfigError):
            parse_config(info, wrong)
