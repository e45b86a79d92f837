"""Which modules of a network are its blocks."""

import pytest
import torch
from torch import nn

from expunge.core.errors import ConfigError
from expunge.engine.blocks import block_names, require_blocks


class Stacks(nn.Module):
    """Two stacks, of which the longer one is meant."""

    def __init__(self, short=2, long=3):
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(3, 2) for _ in range(short))
        self.body = nn.Module()
        self.body.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(long))


def test_the_stack_of_a_transformer(model):
    names = block_names(model)
    prefix = names[0].rpartition(".")[0]
    assert prefix in ("model.layers", "transformer.h")
    assert names == [f"{prefix}.0", f"{prefix}.1"]


def test_the_longest_stack_is_meant():
    assert block_names(Stacks()) == ["body.blocks.0", "body.blocks.1", "body.blocks.2"]
    assert block_names(Stacks(short=4)) == [f"embeddings.{i}" for i in range(4)]


def test_without_a_stack_every_layer_with_parameters_is_a_block():
    network = nn.Sequential(
        nn.Linear(4, 3), nn.ReLU(), nn.Sequential(nn.BatchNorm1d(3), nn.Dropout()), nn.Linear(3, 2)
    )
    assert block_names(network) == ["0", "2.0", "3"]


def test_a_single_layer_is_its_own_block():
    layer = nn.Linear(2, 2)
    assert block_names(layer) == [""]
    assert layer.get_submodule("") is layer


def test_a_model_without_parameters_has_none():
    assert block_names(nn.ReLU()) == []
    with pytest.raises(ConfigError, match="layer = 1 but the model has 0 layers"):
        require_blocks(nn.ReLU(), 1, "layer")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_enough_blocks_are_named_all(count):
    assert require_blocks(Stacks(), count, "forget.layer") == block_names(Stacks())


def test_too_few_blocks_name_the_setting():
    with pytest.raises(ConfigError, match=r"forget\.layer = 4 but the model has 3 layers"):
        require_blocks(Stacks(), 4, "forget.layer")


def test_names_lead_to_modules_in_the_order_of_the_forward_pass(model):
    seen = []
    handles = [
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: seen.append(name))
        for name in block_names(model)
    ]
    with torch.no_grad():
        model(input_ids=torch.tensor([[3, 4, 5]]))
    for handle in handles:
        handle.remove()
    assert seen == block_names(model)
