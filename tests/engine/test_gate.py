"""The gate against the values of the official functions, scipy and scikit-learn, and on digits."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from sklearn.svm import OneClassSVM

from expunge.core.errors import ConfigError, DataError, IntegrityError, NumericalError
from expunge.engine.gate import Gate, GateSettings, LayerScore, _vectors, split


def draws(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def bare(numbers, **settings):
    """A gate of which only the two normal distributions matter."""
    return Gate((), torch.zeros(0), torch.tensor(numbers).double(), GateSettings(**settings))


def known_layer():
    """Mean 0, precision diag(2, 1), bank (1, 0) and (1, 1) / √2."""
    zeros = torch.zeros(1, 2), torch.zeros(1)
    bank = torch.tensor([[1.0, 0.0], [0.5**0.5, 0.5**0.5]])
    return LayerScore(torch.zeros(2), *zeros, torch.tensor([2.0, 1.0]), bank)


def fitted(count=40, size=6, layers=3, **settings):
    features = [draws(count, size, seed=layer) + 3 for layer in range(layers)]
    used, rest = split([str(i) for i in range(count)], 0)
    gate = Gate.fit(
        [f[used] for f in features], [f[rest] for f in features], GateSettings(**settings)
    )
    return gate, [f[used] for f in features], [f[rest] for f in features]


# --- from score to weight ---


@pytest.mark.parametrize(
    ("t", "weight"),
    [
        (2.5, 0.99966465),
        (3.5, 0.95532297),
        (1.5, 0.95532297),
        (4.5, 0.45753286),
        (0.5, 0.45753286),
        (5.5, 0.17539571),
        (10.0, 0.1192032),
    ],
)
def test_golden_weights(t, weight):
    """Values of the authors' functions for used scores 0 to 4 and held-out scores 1 to 5.

    The last one lacks a digit: 0.11920331.
    """
    gate = bare([0, 2, 3, 2**0.5])
    assert gate.centre == 2.5
    assert float(gate.opening(torch.tensor([t]).double())) == pytest.approx(weight, abs=2e-7)


def test_the_sum_of_tails_is_the_difference_of_the_paper():
    t = np.linspace(-4, 9, 101)
    m1, m2, spread = 3.2, 1.9, 0.7
    mixture = lambda z: (norm.cdf((z - m1) / spread) + norm.cdf((z - m2) / spread)) / 2  # noqa: E731
    q = 1 - np.abs(mixture(t) - mixture(m1 + m2 - t))
    expected = 1 / (1 + np.exp(-(4 * q - 1)))
    gate = bare([0, m1, m2, spread], zeta=4.0, offset=1.0)
    np.testing.assert_allclose(gate.opening(torch.from_numpy(t)).numpy(), expected, atol=1e-12)


def test_it_opens_most_at_the_centre_and_falls_to_its_floor_on_both_sides():
    gate = bare([0, 2, 3, 2**0.5])
    t = 2.5 + torch.linspace(0, 60, 200).double()
    above, below = gate.opening(t), gate.opening(5 - t)
    torch.testing.assert_close(above, below, rtol=0, atol=1e-12)
    assert bool((above.diff() <= 0).all())
    assert float(above[-1]) == pytest.approx(1 / (1 + np.exp(2)), abs=1e-12)


def test_no_spread_opens_at_the_one_known_score_only():
    gate = bare([0, 2, 2, 0])
    weights = gate.opening(torch.tensor([2, 2.1, 1.9]).double()).tolist()
    assert weights == pytest.approx([0.99966465, 0.11920292, 0.11920292], abs=1e-8)


# --- from features to scores ---


@pytest.mark.parametrize(
    ("x", "consistent", "official"),
    [((1.0, 2.0), -942.6833, -951.6833), ((3.0, 0.0), -982.0, -1009.0)],
)
def test_golden_scores(x, consistent, official):
    """Values of the authors' functions, and with both distances pointing the same way."""
    for variant, expected in (("consistent", consistent), ("official", official)):
        features = [torch.tensor([x]).double()]
        score = _vectors([known_layer()], features, GateSettings(variant=variant))
        assert float(score) == pytest.approx(expected, abs=1e-3)
    assert float(known_layer().distance(features[0])) == pytest.approx({1: 6, 3: 18}[x[0]])


def test_many_records_give_the_mahalanobis_distance():
    used, x = draws(50, 4) @ draws(4, 4, seed=1) + 2, draws(7, 4, seed=2)
    inverse = np.linalg.inv(np.cov(used.numpy().T, bias=True))
    centred = x.numpy() - used.numpy().mean(0)
    expected = np.einsum("bi,ij,bj->b", centred, inverse, centred)
    np.testing.assert_allclose(LayerScore.fit(used).distance(x).numpy(), expected, rtol=1e-5)


def test_few_records_give_that_of_a_shrunk_covariance():
    used, x = draws(8, 20) * torch.linspace(0.2, 3, 20), draws(7, 20, seed=2)
    model = LedoitWolf().fit(used.numpy())
    expected = model.mahalanobis(x.numpy())
    np.testing.assert_allclose(LayerScore.fit(used).distance(x).numpy(), expected, rtol=1e-5)


def test_the_covariance_is_inverted_on_its_range_only():
    """A coordinate that is constant, as behind a dead unit, says nothing."""
    used = torch.cat([draws(50, 3), torch.ones(50, 1)], dim=1).double()
    layer = LayerScore.fit(used)
    assert layer.axes.shape == (3, 4)
    x = draws(2, 4)
    moved = x + torch.tensor([0, 0, 0, 5.0])
    torch.testing.assert_close(layer.distance(x), layer.distance(moved), rtol=1e-6, atol=1e-6)


def test_a_diagonal_covariance_takes_coordinates_apart():
    used, x = draws(5, 20), draws(3, 20, seed=2)
    expected = ((x - used.mean(0)) ** 2 / used.var(0, correction=0)).sum(1)
    layer = LayerScore.fit(used, diagonal=True)
    torch.testing.assert_close(layer.distance(x), expected, rtol=1e-5, atol=0)


def test_the_cosine_is_that_of_the_closest_record():
    used, x = draws(9, 5), draws(4, 5, seed=3)
    unit = lambda a: a / np.linalg.norm(a, axis=1, keepdims=True)  # noqa: E731
    expected = (unit(x.numpy()) @ unit(used.numpy()).T).max(1)
    np.testing.assert_allclose(LayerScore.fit(used).closeness(x).numpy(), expected, atol=1e-6)
    assert LayerScore.fit(used).closeness(used).tolist() == pytest.approx([1] * 9, abs=1e-6)


def test_scores_are_those_of_the_support_vector_machine():
    gate, used, rest = fitted(nu=0.1)
    vectors = _vectors(gate.layers, used, gate.settings).numpy()
    unit = np.sqrt((vectors**2).mean())
    machine = OneClassSVM(kernel="linear", nu=0.1).fit(vectors / unit)
    np.testing.assert_allclose(
        gate.score(used).numpy(), machine.decision_function(vectors / unit), atol=1e-6
    )
    t_used, t_rest = gate.score(used), gate.score(rest)
    moments = [t_used.mean(), t_rest.mean(), t_rest.std(correction=0)]
    torch.testing.assert_close(gate.numbers[1:], torch.stack(moments))


def test_fitting_leaves_global_random_state_alone():
    before = str(np.random.get_state())
    fitted()
    assert str(np.random.get_state()) == before


# --- requests of all sizes ---


def test_the_split_is_by_id_and_seed():
    ids = [f"r{i}" for i in range(50)]
    used, rest = split(ids, 0)
    assert (len(used), len(rest)) == (40, 10)
    assert sorted(used + rest) == list(range(50))
    turned = split(ids[::-1], 0)
    assert {ids[i] for i in rest} == {ids[::-1][i] for i in turned[1]}
    assert split(ids, 1) != (used, rest)
    sizes = {n: [len(part) for part in split(ids[:n], 0)] for n in (1, 2, 3, 4, 6, 10, 11, 15)}
    assert sizes == {
        1: [1, 1],
        2: [1, 1],
        3: [2, 1],
        4: [2, 2],
        6: [4, 2],
        10: [8, 2],
        11: [9, 2],
        15: [12, 3],
    }


def test_tiny_requests_are_refused():
    with pytest.raises(DataError, match=r"has 9 records .* at least 10.* gate.allow_tiny: true"):
        fitted(9)
    fitted(10)


@pytest.mark.parametrize("count", [2, 3, 5, 9])
def test_tiny_requests_may_be_allowed(count):
    gate, used, _ = fitted(count, allow_tiny=True)
    assert all(not layer.axes.any() for layer in gate.layers)
    assert float(gate.weight(used).max()) > 0.5
    far = [f + 40 * draws(*f.shape, seed=7) for f in used]
    assert float(gate.weight(far).max()) < 0.2


def test_one_record_or_equal_records_are_told():
    with pytest.warns(UserWarning, match="give more, or more varied, records"):
        gate, used, _ = fitted(1, allow_tiny=True)
    assert bool(torch.isfinite(gate.weight(used)).all())
    same = [torch.ones(10, 4).double()]
    with pytest.warns(UserWarning, match="give more, or more varied, records"):
        gate = Gate.fit(same, same, GateSettings())
    assert bool(torch.isfinite(gate.score(same)).all())


def test_records_that_stand_twice_are_taken():
    half = draws(10, 6)
    twice = [torch.cat([half, half])]
    gate = Gate.fit(twice, [draws(5, 6, seed=1)], GateSettings())
    assert bool(torch.isfinite(gate.weight(twice)).all())


def test_features_must_be_finite_and_of_the_fitted_sizes():
    gate, used, _ = fitted()
    wrong = used[0].clone()
    wrong[1, 2] = torch.nan
    with pytest.raises(NumericalError, match="hidden state of the model is NaN or infinite"):
        gate.score([wrong, *used[1:]])
    with pytest.raises(NumericalError, match="check its weights and inputs"):
        Gate.fit([wrong], [used[1]], GateSettings())
    with pytest.raises(DataError, match=r"sizes \[6, 6, 5\] .* fitted on \[6, 6, 6\]"):
        gate.score([*used[:2], used[2][:, :5]])
    with pytest.raises(DataError, match=r"sizes \[6\]"):
        gate.score(used[:1])


# --- on disk ---


@pytest.mark.parametrize("count", [6, 20, 60])
def test_tensors_and_json_make_the_same_gate(count):
    gate, used, _ = fitted(count, size=10, variant="official", nu=0.3, allow_tiny=True)
    tensors = {name: value.clone() for name, value in gate.tensors().items()}
    again = Gate.of(tensors, json.loads(json.dumps(gate.settings_json())))
    assert again.settings == gate.settings
    assert torch.equal(again.weight(used), gate.weight(used))
    assert all(isinstance(value, torch.Tensor) and value.numel() for value in tensors.values())
    del tensors["1/bank"]
    with pytest.raises(IntegrityError, match=r"'1/bank' is missing; save the model again"):
        Gate.of(tensors, gate.settings_json())
    with pytest.raises(ConfigError, match="nu = 3"):
        Gate.of(gate.tensors(), {"nu": 3})


def test_a_gate_cannot_be_changed():
    gate, _, _ = fitted()
    with pytest.raises(dataclasses.FrozenInstanceError):
        gate.coef = torch.zeros(3)


# --- what it can tell ---


@pytest.fixture(scope="module")
def digits_network():
    """Features of digits in a GELU network of 64-64-64-64-10: train, test, and the labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x, y = torch.from_numpy(data.data / 16).float(), torch.from_numpy(data.target)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        order = torch.randperm(len(x))
        x, y = x[order], y[order]
        sizes = [64, 64, 64, 64]
        layers = [torch.nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
        head = torch.nn.Linear(64, 10)

        def features(x):
            hidden = []
            for layer in layers:
                x = torch.nn.functional.gelu(layer(x))
                hidden.append(x)
            return hidden

        parameters = [p for part in (*layers, head) for p in part.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=5e-3)
        for _ in range(30):
            for rows in torch.randperm(1200).split(64):
                optimizer.zero_grad()
                logits = head(features(x[rows])[-1])
                torch.nn.functional.cross_entropy(logits, y[rows]).backward()
                optimizer.step()
    with torch.no_grad():
        return features(x[:1200]), features(x[1200:]), y[:1200], y[1200:]


def test_it_tells_digits_apart(digits_network):
    """The card's study: requests 3, 7, 5; AUROC at least 0.95 and the gate near its floor."""
    train, test, y_train, y_test = digits_network
    gates, gone = [], []
    for digit in (3, 7, 5):
        rows = torch.nonzero(y_train == digit)[:, 0]
        used, rest = split([str(int(i)) for i in rows], 0)
        gates.append(
            Gate.fit(
                [f[rows[used]] for f in train], [f[rows[rest]] for f in train], GateSettings(nu=0.1)
            )
        )
        gone.append(digit)
        weights = torch.stack([gate.weight(test) for gate in gates]).amax(0)
        forgotten = torch.isin(y_test, torch.tensor(gone))
        assert roc_auc_score(forgotten, weights) >= 0.95
        assert float(weights[~forgotten].mean()) < 0.16
        assert float(weights[forgotten].mean()) > 0.7
