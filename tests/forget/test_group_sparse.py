"""Groups of adapters: where they sit in common architectures, their norms, and undoing them."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from expunge.core.errors import UnsupportedModelError
from expunge.core.run import Run
from expunge.engine.scope import Lora, Scope, scoped
from expunge.engine.tasks.classifier import Classifier
from expunge.forget.group_sparse import Change, find_groups, group_lasso, group_norm

A1, B1 = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0], [4.0]])
A2, B2 = torch.zeros(1, 2), torch.tensor([[0.0], [12.0]])


class Encoder(nn.Module):
    """PyTorch's own encoder layers below a head."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.body(x).mean(1))


def perceptron():
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))


def test_the_group_of_a_block_is_all_its_adapters_as_one():
    """By hand: 13 for the block, 5 + 12 = 17 by adapter, 3 + 4 + 0 + 12 = 19 by matrix."""
    assert float(group_norm([A1, B1, A2, B2])) == pytest.approx(13)
    by_adapter = float(group_norm([A1, B1]) + group_norm([A2, B2]))
    assert by_adapter == pytest.approx(17, abs=1e-5)
    by_matrix = sum(float(group_norm([t])) for t in (A1, B1, A2, B2))
    assert by_matrix == pytest.approx(19, abs=1e-5)


def test_the_gradient_at_zero_is_zero_and_elsewhere_that_of_the_norm():
    zero = torch.zeros(3, requires_grad=True)
    group_norm([zero]).backward()
    assert zero.grad.tolist() == [0.0, 0.0, 0.0]
    other = torch.tensor([3.0, 4.0], requires_grad=True)
    group_norm([other]).backward()
    torch.testing.assert_close(other.grad, torch.tensor([0.6, 0.8]))


@settings(max_examples=40)
@given(st.lists(st.lists(st.floats(-50, 50), min_size=1, max_size=6), min_size=1, max_size=5))
def test_the_norm_is_that_of_the_concatenation(parts):
    flat = np.concatenate([np.array(part) for part in parts])
    found = group_norm([torch.tensor(part, dtype=torch.float64) for part in parts])
    assert float(found) == pytest.approx(float(np.sqrt((flat**2).sum() + 1e-12)), rel=1e-9)


def test_feed_forward_layers_of_transformers_are_found_and_attention_is_not():
    from transformers import BertConfig, BertForSequenceClassification, GPT2Config
    from transformers import GPT2ForSequenceClassification as Gpt

    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 9}
    bert = BertForSequenceClassification(BertConfig(hidden_size=8, intermediate_size=12, **sizes))
    assert find_groups(bert) == {
        f"bert.encoder.layer.{i}": (
            f"bert.encoder.layer.{i}.intermediate.dense",
            f"bert.encoder.layer.{i}.output.dense",
        )
        for i in range(2)
    }
    gpt = Gpt(GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=9, n_positions=8))
    assert find_groups(gpt)["transformer.h.1"] == (
        "transformer.h.1.mlp.c_fc",
        "transformer.h.1.mlp.c_proj",
    )
    assert find_groups(Encoder()) == {
        f"body.layers.{i}": (f"body.layers.{i}.linear1", f"body.layers.{i}.linear2")
        for i in range(3)
    }


def test_a_perceptron_has_a_group_for_every_layer_but_its_head():
    assert find_groups(perceptron()) == {"0": ("0",), "2": ("2",)}


def test_a_model_without_a_place_for_adapters_is_refused():
    picture = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    with pytest.raises(UnsupportedModelError, match="no place for adapters; give a transformer"):
        find_groups(picture)
    with pytest.raises(UnsupportedModelError, match="nothing else"):
        find_groups(nn.Sequential(nn.Linear(4, 3)))


def test_the_lasso_is_the_sum_over_blocks_and_reaches_every_adapter():
    model = Encoder()
    groups = find_groups(model)
    layers = tuple(layer for inside in groups.values() for layer in inside)
    scope = Scope(lora=Lora(rank=2, alpha=1.0, targets=layers))
    with scoped(model, Classifier(4), scope, {}, Run()) as selection:
        with torch.no_grad():
            for parameter in selection.parameters.values():
                parameter.uniform_(-1, 1)
        value = group_lasso(model, groups)
        value.backward()
        expected = sum(
            np.sqrt(
                sum(
                    float((p.detach().double() ** 2).sum())
                    for name, p in selection.parameters.items()
                    if name.startswith(f"{block}.")
                )
            )
            for block in groups
        )
        assert float(value.detach()) == pytest.approx(expected, rel=1e-5)
        assert all(bool((p.grad != 0).any()) for p in selection.parameters.values())
        assert len(selection.parameters) == 2 * len(layers)


def test_the_norm_of_a_merged_change_is_that_of_its_products():
    model = Encoder().double()
    groups = find_groups(model)
    change = Change(model, groups)
    layers = tuple(layer for inside in groups.values() for layer in inside)
    scope = Scope(lora=Lora(rank=2, alpha=0.5, targets=layers))
    expected = dict.fromkeys(groups, 0.0)
    with scoped(model, Classifier(4), scope, {}, Run()) as selection:
        with torch.no_grad():
            for parameter in selection.parameters.values():
                parameter.uniform_(-1, 1)
        for block, inside in groups.items():
            for layer in inside:
                a = selection.parameters[f"{layer}.lora_A.default.weight"]
                b = selection.parameters[f"{layer}.lora_B.default.weight"]
                expected[block] += float(((0.25 * b @ a).detach() ** 2).sum())
    for block, norm in change.norms(model).items():
        assert norm == pytest.approx(expected[block] ** 0.5, rel=1e-9)


def test_undone_blocks_get_their_bits_back_and_a_second_swap_undoes_that():
    model = perceptron()
    before = copy.deepcopy(model.state_dict())
    change = Change(model, find_groups(model))
    with torch.no_grad():
        model[0].weight += 0.3
        model[2].weight *= 1.7
    moved = copy.deepcopy(model.state_dict())
    change.swap(model, ["0"])
    assert torch.equal(model[0].weight, before["0.weight"])
    assert torch.equal(model[2].weight, moved["2.weight"])
    change.swap(model, ["0"])
    assert all(torch.equal(v, moved[name]) for name, v in model.state_dict().items())
