"""Layers at any depth are drawn anew, and what no layer can reset is an error."""

import copy

import numpy as np
import pytest
import torch
from tiny_llama import llama_config, word_tokenizer
from torch import nn
from transformers import LlamaForCausalLM, ViTConfig, ViTForImageClassification

from expunge.core.errors import UnsupportedModelError
from expunge.engine.reset import redrawn
from expunge.engine.weights import state_digest


class Residual(nn.Module):
    """A block inside a block, so that no layer with weights is a direct child of the model."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4)))
        self.free = nn.BatchNorm1d(4, affine=False)
        self.head = nn.Linear(4, 2)


class Raw(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.head = nn.Linear(3, 2)


def filled(model, value=7.0):
    """Return the model with one number in every parameter and buffer of floating point."""
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.fill_(value)
    return model


def holds(model, value=7.0):
    return {n for n, v in model.state_dict().items() if bool((v == value).any())}


def test_every_layer_at_any_depth_is_drawn_anew_and_statistics_too():
    model = filled(Residual())
    assert len(holds(model)) == 10
    made = redrawn(model, 0)
    assert holds(made) == set()
    assert len(holds(model)) == 10  # the model given stays as it is
    assert float(made.inner[0].weight.detach().abs().max()) <= 27**-0.5  # torch's own bound
    assert made.inner[1][0].running_var.tolist() == made.free.running_var.tolist() == [1.0] * 4


def test_the_seed_alone_decides_and_global_random_state_is_restored():
    model = Residual()
    state = torch.get_rng_state()
    one = state_digest(redrawn(model, 3))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert state_digest(redrawn(filled(copy.deepcopy(model)), 3)) == one
    assert state_digest(redrawn(model, 4)) != one


def test_only_named_parameters_change_and_all_else_keeps_its_bits():
    made = redrawn(filled(Residual()), 0, ["head.bias", "inner.1.0.weight"])
    kept = {"inner.0.weight", "inner.0.bias", "inner.1.0.bias", "head.weight"}
    kept |= {"free.running_mean", "free.running_var"}
    assert holds(made) == kept
    # Statistics of a norm that is drawn anew start anew with it.
    assert made.inner[1][0].running_mean.tolist() == [0.0] * 4


def test_a_parameter_that_no_layer_resets_is_refused_by_name():
    with pytest.raises(UnsupportedModelError, match=r"1 parameters .* \(scale\); give the layer"):
        redrawn(Raw(), 0)
    assert holds(redrawn(filled(Raw()), 0, ["head.weight"])) == {"scale", "head.bias"}


def test_a_parametrised_weight_is_refused():
    """A reset of the layer would write to a weight that is computed, and change nothing."""
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)))
    with pytest.raises(UnsupportedModelError, match="original"):
        redrawn(model, 0)


def test_attention_of_torch_is_drawn_anew():
    assert holds(redrawn(filled(nn.MultiheadAttention(4, 2)), 0)) == set()


@pytest.mark.parametrize("wrapped", [False, True])
def test_models_of_transformers_start_as_they_do_themselves(wrapped):
    settings = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    vit = ViTForImageClassification(
        ViTConfig(image_size=8, patch_size=4, intermediate_size=8, num_labels=3, **settings)
    )
    made = redrawn(filled(nn.Sequential(vit) if wrapped else vit), 0)
    assert holds(made) == set()
    weights = torch.cat([p.detach().flatten() for n, p in made.named_parameters() if "proj" in n])
    assert np.isclose(float(weights.std()), 0.02, rtol=0.3)  # initializer_range


def test_tied_weights_stay_tied():
    config = llama_config(word_tokenizer(["a", "b", "c"]))
    config.tie_word_embeddings = True
    made = redrawn(filled(LlamaForCausalLM(config)), 0)
    assert made.lm_head.weight is made.model.embed_tokens.weight
    assert not any(bool((p == 7.0).any()) for p in made.parameters())


def test_modes_and_gradient_flags_are_those_of_the_model():
    model = Residual().eval()
    model.head.bias.requires_grad_(False)
    made = redrawn(model, 0)
    assert not any(module.training for module in made.modules())
    assert [n for n, p in made.named_parameters() if not p.requires_grad] == ["head.bias"]
