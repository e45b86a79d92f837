"""Which entries a mask selects: golden values, ties, and a numpy oracle of saliency."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from expunge.core.errors import ConfigError, DataError, NumericalError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.masks.mask import Mask, WeightMask, make_mask, top_entries
from expunge.engine.masks.saliency import saliency
from expunge.engine.tasks.classifier import Classifier


def test_global_rank_over_all_tensors():
    """Computed once by running the released selection of SalUn (Fan et al., 2024)."""
    gradients = {"w": torch.tensor([[0.1, -0.5], [0.3, 0.05]]), "b": torch.tensor([-0.4, 0.2])}
    mask = top_entries({name: g.abs() for name, g in gradients.items()}, 0.5)
    assert mask.tensors["w"].tolist() == [[False, True], [True, False]]
    assert mask.tensors["b"].tolist() == [True, False]
    assert mask.fraction == 0.5


def test_signed_accumulation_selects_other_entries_than_a_sum_of_sizes():
    """Batch gradients (1, -2, 0.5) and (-1, -1, 0.6): the released code keeps entries 1 and 2."""
    one, other = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([-1.0, -1.0, 0.6])
    signed = top_entries({"w": (one + other).abs()}, 2 / 3)
    assert signed.tensors["w"].tolist() == [False, True, True]
    sizes = top_entries({"w": one.abs() + other.abs()}, 2 / 3)
    assert sizes.tensors["w"].tolist() == [True, True, False]


def test_ties_go_to_the_lower_index():
    scores = {"w": torch.tensor([1.0, 2.0, 1.0]), "b": torch.tensor([1.0, 1.0])}
    mask = top_entries(scores, 0.6)
    assert mask.tensors["w"].tolist() == [True, True, True]
    assert mask.tensors["b"].tolist() == [False, False]


@given(
    scores=st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.0]), min_size=2, max_size=40),
    fraction=st.floats(0.5, 1.0),
)
def test_the_choice_is_that_of_a_stable_sort(scores, fraction):
    cut = len(scores) // 2
    parts = {"a": torch.tensor(scores[:cut]), "b": torch.tensor(scores[cut:])}
    mask = top_entries(parts, fraction)
    keep = int(np.floor(fraction * len(scores)))
    expected = np.zeros(len(scores), dtype=bool)
    expected[np.argsort(-np.array(scores), kind="stable")[:keep]] = True
    assert torch.cat([mask.tensors["a"], mask.tensors["b"]]).tolist() == expected.tolist()


def test_everything_may_move_at_fraction_one():
    assert top_entries({"w": torch.tensor([0.0, 0.0, 1.0])}, 1.0).fraction == 1.0


def test_a_share_below_one_entry_is_refused():
    with pytest.raises(ConfigError, match=r"fraction = 0\.1 selects none of 6 entries; raise it"):
        top_entries({"w": torch.ones(6)}, 0.1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_must_be_numbers(bad):
    with pytest.raises(NumericalError, match="NaN or infinite"):
        top_entries({"w": torch.tensor([1.0, bad])}, 0.5)


def test_arbitrary_rank_among_zeros_is_said():
    with pytest.warns(UserWarning, match="75% of the mask scores are exactly zero"):
        mask = top_entries({"w": torch.tensor([0.0, 0.0, 1.0, 0.0])}, 0.5)
    assert mask.tensors["w"].tolist() == [True, False, True, False]


def softmax_gradient(w, b, x, y):
    """Gradient of the mean cross entropy of a linear softmax model."""
    logits = x @ w.T + b
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    return p.T @ x / len(y), p.sum(0) / len(y)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_saliency_equals_numpy(batch_size):
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(5, 3)), draw.integers(4, size=5)
    model = nn.Linear(3, 4).double()
    records = Records(tuple("abcde"), {"x": x, "y": y})
    scores = saliency(model, Classifier(4), {"forget": records}, Mask(batch_size=batch_size), Run())
    w, b = model.weight.detach().numpy(), model.bias.detach().numpy()
    parts = [slice(i, i + batch_size) for i in range(0, 5, batch_size)]
    gradients = [softmax_gradient(w, b, x[part], y[part]) for part in parts]
    assert np.allclose(scores["weight"], np.abs(sum(g for g, _ in gradients)), atol=1e-14)
    assert np.allclose(scores["bias"], np.abs(sum(g for _, g in gradients)), atol=1e-14)


def test_saliency_leaves_no_gradient_and_skips_frozen_parameters(digits_world):
    model = copy.deepcopy(digits_world.model)
    model[0].requires_grad_(False)
    scores = saliency(model, digits_world.task, {"forget": digits_world.forget}, Mask(), Run())
    assert set(scores) == {"2.weight", "2.bias"}
    assert all(p.grad is None for p in model.parameters())


def test_saliency_without_forget_records_is_refused_with_a_remedy(digits_world):
    sources = {"retain": digits_world.retain}
    with pytest.raises(ConfigError, match=r"reads only \['retain'\]; leave scope.mask out"):
        make_mask(Mask(), digits_world.model, digits_world.task, sources, Run())


def test_an_unknown_rule_is_refused_with_near_matches(digits_world):
    with pytest.raises(ConfigError, match="did you mean 'saliency'"):
        make_mask(Mask(by="salience"), digits_world.model, digits_world.task, {}, Run())


def test_a_mask_that_does_not_fit_is_refused_with_every_reason():
    model = nn.Linear(2, 3)
    mask = WeightMask({"weight": torch.ones(2, 3, dtype=torch.bool), "module.bias": torch.ones(3)})
    with pytest.raises(DataError, match="3 problems") as caught:
        mask.check(dict(model.named_parameters()))
    for said in ("'bias' is only in the model's scope", "'module.bias' is only in the mask"):
        assert said in str(caught.value)
    assert "weight has shape (2, 3), the parameter (3, 2)" in str(caught.value)


def test_an_empty_mask_is_refused():
    with pytest.raises(DataError, match="only in the model's scope"):
        WeightMask({}).check(dict(nn.Linear(2, 3).named_parameters()))
