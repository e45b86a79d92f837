"""Which entries a mask selects: golden values, ties, and a numpy oracle of saliency."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from expunge.core.errors import ConfigError, DataError, NumericalError
from expunge.core.files import read_json_lines
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.masks.attribution import attribution
from expunge.engine.masks.mask import Mask, WeightMask, make_mask, masks, top_entries
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


def test_the_rank_among_zeros_is_that_of_the_index():
    mask = top_entries({"w": torch.tensor([0.0, 0.0, 1.0, 0.0])}, 0.5)
    assert mask.tensors["w"].tolist() == [True, False, True, False]


def test_the_density_of_each_tensor_and_its_share_of_zeros_are_recorded(digits_world, tmp_path):
    run = Run(events=tmp_path / "events.jsonl")
    sources = {"forget": digits_world.forget, "retain": digits_world.retain}
    settings = Mask(by="attribution", fraction=0.25)
    mask = make_mask(settings, digits_world.model, digits_world.task, sources, run)
    told = {e["parameter"]: e for e in read_json_lines(run.events) if e["event"] == "mask"}
    assert told.keys() == mask.tensors.keys()
    for name, moves in mask.tensors.items():
        assert told[name]["density"] == pytest.approx(float(moves.double().mean()))
    assert told["0.weight"]["zeros"] > 0.1  # some pixels are black in every picture


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


def test_saliency_of_what_is_known_by_heart_is_warned_of():
    """Sharp enough, every gradient is zero, and the rank is that of the index."""
    model, sets = linear_sets()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1e6
    sources = {"forget": known(model, sets["forget"])}
    with pytest.warns(UserWarning, match=r"100\.0% of the saliency scores are zero"):
        mask = make_mask(Mask(fraction=0.25), model, Classifier(4), sources, Run())
    assert mask.tensors["weight"].flatten().tolist() == [True] * 4 + [False] * 8
    wrong = {"forget": sets["forget"].replace(y=(np.asarray(sources["forget"]["y"]) + 1) % 4)}
    make_mask(Mask(fraction=0.25), model, Classifier(4), wrong, Run())  # no warning


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


# --- attribution ---


def linear_sets():
    draw = np.random.default_rng(4)
    model = nn.Linear(3, 4).double()
    parts = {}
    for name, count in (("forget", 5), ("retain", 7)):
        x, y = draw.normal(size=(count, 3)), draw.integers(4, size=count)
        parts[name] = Records(tuple(f"{name}-{i}" for i in range(count)), {"x": x, "y": y})
    return model, parts


def gradient_of(model, records):
    w, b = model.weight.detach().numpy(), model.bias.detach().numpy()
    return softmax_gradient(w, b, records["x"], np.asarray(records["y"]))


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("curvature", [1e-6, 0.5, "auto", "infinite"])
def test_attribution_equals_numpy_whatever_the_batch(curvature, batch_size):
    model, sets = linear_sets()
    settings = Mask(by="attribution", curvature=curvature, batch_size=batch_size)
    found = attribution(model, Classifier(4), sets, settings, Run())
    forget, retain = gradient_of(model, sets["forget"]), gradient_of(model, sets["retain"])
    everything = np.concatenate([g.ravel() for g in retain])
    kappa = {"auto": np.mean(everything**2), "infinite": np.inf}.get(curvature, curvature)
    for place, name in enumerate(("weight", "bias")):
        theta = getattr(model, name).detach().numpy()
        expected = np.abs((theta - retain[place] / kappa) * forget[place])
        np.testing.assert_allclose(found[name].numpy(), expected, rtol=1e-9, atol=1e-14)
    assert model.weight.grad is None


def test_attribution_counts_targets_not_records(questions_world):
    """Long answers weigh more, as in the loss; the model comes back as it was."""
    world = questions_world
    model = copy.deepcopy(world.model).double()
    model.train()
    settings = Mask(by="attribution", curvature="infinite", batch_size=4)
    found = attribution(model, world.task, {"forget": world.forget}, settings, Run())
    assert model.training
    batch = world.task.batch(world.forget, range(len(world.forget)))
    loss = world.task.predict(model, batch).nll_B().sum() / batch.targets_N.numel()
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters)
    for name, theta, gradient in zip(names, parameters, gradients, strict=True):
        expected = (theta * gradient).abs().detach()
        # The norms of a Llama compute in single precision, whatever the weights.
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-9)


def test_a_curvature_without_end_needs_no_retain_records():
    model, sets = linear_sets()
    alone = {"forget": sets["forget"]}
    settings = Mask(by="attribution", curvature="infinite")
    snip = attribution(model, Classifier(4), alone, settings, Run())
    huge = attribution(model, Classifier(4), sets, Mask(curvature=1e12), Run())
    np.testing.assert_allclose(snip["weight"].numpy(), huge["weight"].numpy(), atol=1e-10)
    with pytest.raises(ConfigError, match=r"scores retain records, but .* reads only \['forget'\]"):
        make_mask(Mask(by="attribution"), model, Classifier(4), alone, Run())


def test_neutral_answers_stand_in_where_forgotten_ones_are_not_read():
    model, sets = linear_sets()
    settings = Mask(by="attribution")
    named = {"neutral": sets["forget"], "retain": sets["retain"]}
    one, other = (attribution(model, Classifier(4), s, settings, Run()) for s in (named, sets))
    assert all(torch.equal(one[name], other[name]) for name in one)
    both = {**sets, "neutral": sets["retain"]}
    third = attribution(model, Classifier(4), both, settings, Run())
    assert all(torch.equal(third[name], other[name]) for name in other)
    with pytest.raises(ConfigError, match="scores forget records"):
        attribution(model, Classifier(4), {"retain": sets["retain"]}, settings, Run())


def test_attribution_leaves_frozen_parameters_out(digits_world):
    model = copy.deepcopy(digits_world.model)
    model[0].requires_grad_(False)
    sources = {"forget": digits_world.forget, "retain": digits_world.retain}
    for by in ("attribution", "magnitude", "random"):
        scored = masks.get(by)(model, digits_world.task, sources, Mask(by=by), Run())
        assert set(scored) == {"2.weight", "2.bias"}, by


def known(model, records):
    """The records under the labels that the model gives them."""
    labels = model(torch.from_numpy(records["x"])).argmax(1).numpy()
    return records.replace(y=labels)


def test_a_set_without_gradient_is_refused():
    """Sharp enough, the loss on what is known is zero in every bit."""
    model, sets = linear_sets()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1e6
    forget, retain = known(model, sets["forget"]), known(model, sets["retain"])
    settings = Mask(by="attribution", curvature="auto")
    with pytest.raises(NumericalError, match="no forget signal"):
        attribution(model, Classifier(4), {**sets, "forget": forget}, settings, Run())
    wrong = sets["forget"].replace(y=(np.asarray(forget["y"]) + 1) % 4)
    with pytest.raises(NumericalError, match="the retain gradient is zero; give a number"):
        attribution(model, Classifier(4), {"forget": wrong, "retain": retain}, settings, Run())


# --- magnitude and random ---


def test_magnitude_is_the_size_of_a_weight_and_reads_no_data():
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, -4.0], [0.0, 1.0]]))
        model.bias.copy_(torch.tensor([-2.0, 0.5]))
    mask = make_mask(Mask(by="magnitude", fraction=0.5), model, Classifier(2), {}, Run())
    assert mask.tensors["weight"].tolist() == [[True, True], [False, False]]
    assert mask.tensors["bias"].tolist() == [True, False]


def test_random_follows_the_seed_and_nothing_else(digits_world):
    """Neither data nor weights; every parameter has a stream of its own."""
    settings = Mask(by="random", fraction=0.3)

    def draw(model, seed=0):
        return make_mask(settings, model, Classifier(10), {}, Run(seed)).tensors

    first, again = draw(digits_world.model), draw(digits_world.fresh())
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = draw(digits_world.model, seed=1)
    assert not torch.equal(first["0.weight"], other["0.weight"])
    twins = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
    drawn = draw(twins)
    assert not torch.equal(drawn["0.weight"], drawn["1.weight"])


def test_random_scores_are_uniform():
    scores = masks.get("random")(nn.Linear(200, 100), Classifier(2), {}, Mask(), Run())["weight"]
    assert 0 <= scores.min() < 1e-3
    assert 1 - 1e-3 < scores.max() < 1
    # Standard deviation of a mean of 20,000 uniform draws is 0.002.
    assert abs(scores.mean() - 0.5) < 0.008


def test_global_random_state_does_not_matter():
    settings, model = Mask(by="random", fraction=0.5), nn.Linear(5, 5)
    drawn = []
    for seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            drawn.append(make_mask(settings, model, Classifier(5), {}, Run()).tensors["weight"])
    assert torch.equal(*drawn)
