import pytest
import torch
from torch import nn

from expunge.core.errors import ConfigError, UnsupportedModelError
from expunge.engine.taps import (
    attention_map,
    layer_names,
    require_alike,
    require_layers,
    tapped,
)

# The two activations of value 1 in section "Reference values" of card deep-regression-unlearning.
X = torch.tensor([[[[3.0, 0.0], [0.0, 4.0]]]])
Y = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])


def test_maps_of_convolutions_have_the_cards_values() -> None:
    torch.testing.assert_close(
        attention_map(X), torch.tensor([[0.49026126, 0, 0, 0.87157553]]), atol=1e-7, rtol=0
    )
    torch.testing.assert_close(
        attention_map(Y), torch.tensor([[0.70710677, 0, 0, 0.70710677]]), atol=1e-7, rtol=0
    )
    distance = ((attention_map(X) - attention_map(Y)) ** 2).mean()
    assert float(distance) == pytest.approx(0.01851799, abs=1e-7)


def test_flat_layers_and_sequences_keep_their_positions() -> None:
    flat = attention_map(torch.tensor([[1.0, 2.0]]))
    torch.testing.assert_close(flat, torch.tensor([[1.0, 4.0]]) / 17**0.5)
    sequence = attention_map(torch.tensor([[[1.0, 1.0], [0.0, 2.0], [0.0, 0.0]]]))
    torch.testing.assert_close(sequence, torch.tensor([[1.0, 2.0, 0.0]]) / 5**0.5)


def test_a_silent_layer_has_a_finite_map_and_gradient() -> None:
    silent = torch.zeros(2, 3, requires_grad=True)
    attention_map(silent).sum().backward()
    assert torch.isfinite(silent.grad).all()


def test_taps_fill_while_the_block_lasts() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    assert layer_names(model) == ["0", "2"]
    with tapped(model, ["0", "2"]) as found:
        model(torch.ones(5, 2))
    assert {name: tuple(hidden.shape) for name, hidden in found.items()} == {
        "0": (5, 3),
        "2": (5, 4),
    }
    kept = dict(found)
    model(torch.zeros(7, 2))
    assert all(found[name] is kept[name] for name in kept)


def test_recurrent_layers_give_their_sequence() -> None:
    model = nn.ModuleDict({"lstm": nn.LSTM(2, 3, batch_first=True), "head": nn.Linear(3, 1)})
    with tapped(model, ["lstm"]) as found:
        model["lstm"](torch.ones(4, 5, 2))
    assert found["lstm"].shape == (4, 5, 3)


def test_unknown_layers_and_models_without_any_are_refused() -> None:
    with pytest.raises(ConfigError, match="no layer 'blok'"):
        require_layers(nn.Sequential(nn.Linear(1, 1)), ("blok",), "forget.layers")
    with pytest.raises(UnsupportedModelError, match="no hidden"):
        require_layers(nn.Linear(1, 1), (), "forget.layers")


def test_layers_of_another_shape_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="layers a do not run"):
        require_alike({"a": torch.ones(1, 2)}, {"a": torch.ones(1, 3)}, ["a"])
