"""SSD against known values and a whole pass in plain numpy."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from expunge.core.errors import ConfigError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.core.streams import stream
from expunge.data.dataset import number_ids
from expunge.engine.importance import Estimator, measure_importance
from expunge.engine.tasks.classifier import Classifier
from expunge.engine.weights import state_digest
from expunge.forget.method import Given, apply, methods, parse_config
from expunge.forget.ssd import SSDConfig, dampen, dampening

THETA = torch.tensor([1.0, -2.0, 3.0, 4.0, 5.0])
WHOLE = torch.tensor([0.1, 0.1, 0.1, 0.0, 0.0])
OWN = torch.tensor([2.0, 0.5, 1.0, 0.3, 0.0])


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def drawn(count, name, seed=0):
    draw = np.random.default_rng(seed)
    return Records(
        tuple(f"{name}{i}" for i in range(count)),
        {"x": draw.normal(size=(count, 4)).astype(np.float32), "y": draw.integers(3, size=count)},
    )


def world(**changes):
    whole = {"task": Classifier(3), "forget": drawn(9, "f", 1), "retain": drawn(30, "r", 2)}
    return Given(**{**whole, **changes})


def told(tmp_path, what):
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == what]


@pytest.mark.parametrize(
    ("alpha", "lambda_", "expected"),
    [(10.0, 1.0, [0.05, -2.0, 3.0, 0.0, 5.0]), (1.0, 10.0, [0.5, -2.0, 3.0, 0.0, 5.0])],
)
def test_golden_edit(alpha, lambda_, expected):
    """Card of corrective unlearning, section 10: 1 > 10 · 0.1 is false, 0 / 0 is not selected."""
    _, scale = dampening(WHOLE, OWN, alpha, lambda_)
    torch.testing.assert_close(THETA * scale, torch.tensor(expected))


VALUES = arrays(
    np.float32,
    6,
    elements=st.floats(0, 2.0**100, width=32) | st.sampled_from([0.0, 2.0**-149, 2.0**-126, 1.0]),
)


@given(whole=VALUES, own=VALUES, alpha=st.floats(0.01, 1e6), lambda_=st.floats(0, 1e3))
def test_what_is_dampened_is_scaled_by_at_most_1_and_the_rest_by_1(whole, own, alpha, lambda_):
    whole, own = torch.from_numpy(whole), torch.from_numpy(own)
    selected, scale = dampening(whole, own, alpha, lambda_)
    assert bool(torch.isfinite(scale).all())
    assert bool(((scale >= 0) & (scale <= 1)).all())
    assert bool((scale[~selected] == 1).all())
    assert bool((own[selected] > 0).all())
    normal = selected & (own >= torch.finfo(torch.float32).tiny)
    assert bool((scale[normal] <= lambda_ / alpha * (1 + 1e-5)).all())


@given(own=VALUES, alpha=st.floats(0.01, 100))
def test_equal_importances_select_nothing_from_an_alpha_of_1_on(own, alpha):
    """Below 1 everything is selected that has any importance; at 1 and above nothing is."""
    own = torch.from_numpy(own)
    selected, _ = dampening(own, own, max(alpha, 1.0), 1.0)
    assert not bool(selected.any())
    selected, _ = dampening(own, own, 0.5, 1.0)
    normal = own >= torch.finfo(torch.float32).tiny
    assert bool((selected[normal]).all())


@settings(max_examples=20)
@given(alpha=st.floats(0.1, 50), factor=st.floats(1, 10))
def test_a_higher_alpha_selects_a_part_of_what_a_lower_one_does(alpha, factor):
    draw = torch.Generator().manual_seed(0)
    whole, own = torch.rand(50, generator=draw), 20 * torch.rand(50, generator=draw)
    low, _ = dampening(whole, own, alpha, 1.0)
    high, _ = dampening(whole, own, alpha * factor, 1.0)
    assert bool((low | ~high).all())


def softmax_gradient(weight, x, y):
    logits = x @ weight.T
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    shares[np.arange(len(y)), y] -= 1
    return shares.T @ x / len(y)


@pytest.mark.parametrize("whole", ["all", "retain"])
def test_the_whole_method_in_numpy(whole):
    """Batches of the forget set's size, since it is smaller than one batch."""
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(14, 4)), draw.integers(3, size=14)
    records = Records(tuple(f"r{i}" for i in range(14)), {"x": x, "y": y})
    torch.manual_seed(0)
    model = nn.Linear(4, 3, bias=False).double()
    weight = model.weight.detach().numpy().copy()
    given = Given(Classifier(3), records.take(range(4)), records.take(range(4, 14)))
    options = {"alpha": 2.0, "lambda_": 0.5, "whole": whole, "force": True}
    result = apply("ssd", model, given, Run(seed=5), options).model

    def importance(rows):
        order = np.array(rows)[stream(5, "importance").permutation(len(rows))]
        batches = [order[start : start + 4] for start in range(0, len(order), 4)]
        squares = [len(b) * softmax_gradient(weight, x[b], y[b]) ** 2 for b in batches]
        return sum(squares) / len(order)

    all_, own = importance(range(0 if whole == "all" else 4, 14)), importance(range(4))
    chosen = own > 2 * all_
    expected = np.where(chosen, np.minimum(0.5 * all_ / own, 1) * weight, weight)
    assert 0 < chosen.sum() < chosen.size
    np.testing.assert_allclose(result.weight.detach().numpy(), expected, atol=1e-12)


def test_a_forget_set_smaller_than_a_batch_sets_the_size_for_both(tmp_path):
    run = Run(events=tmp_path / "events.jsonl")
    apply("ssd", network(), world(), run, {"alpha": 1.0, "force": True})
    events = told(tmp_path, "importance")
    assert [(e["batch_size"], e["records"]) for e in events] == [(9, 39), (9, 9)]


def test_60_000_records_cost_less_than_an_epoch():
    """Every gradient is of one record, so that records count passes; the default makes two."""
    task, seen = Classifier(2), 0
    plain = task.batch

    def counted(records, rows, **options):
        nonlocal seen
        seen += len(rows)
        return plain(records, rows, **options)

    task.batch = counted
    x = np.random.default_rng(0).normal(size=(60_000, 3)).astype(np.float32)
    whole = Records(number_ids("r", len(x)), {"x": x, "y": (x[:, 0] > 0).astype(np.int64)})
    forget, retain = whole.take(range(6_000)), whole.take(range(6_000, 60_000))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    given = Given(task, forget, retain, guard=None)
    apply("ssd", model, given, Run(), {"alpha": 1.0, "force": True})
    assert 0 < seen < len(whole)


def test_per_sample_is_a_batch_of_one():
    one, other, default = (
        state_digest(
            apply("ssd", network(), world(), Run(), {**own, "alpha": 1.0, "force": True}).model
        )
        for own in ({"per_sample": True}, {"batch_size": 1}, {})
    )
    assert one == other != default


def test_a_sample_stands_for_the_whole_set(tmp_path):
    run = Run(events=tmp_path / "events.jsonl")
    apply("ssd", network(), world(), run, {"max_records": 12, "force": True})
    assert [e["records"] for e in told(tmp_path, "importance")] == [12, 9]


def test_without_labels_none_is_needed_or_read():
    class Untouchable(list):
        def __getitem__(self, row):
            raise AssertionError("a label was read")

    info = methods.get("ssd")
    assert "labels" not in info.needs(SSDConfig(label_free=True))
    assert "labels" in info.needs(SSDConfig())
    hidden = {
        role: records.replace(y=Untouchable(records["y"]))
        for role, records in (("forget", drawn(9, "f", 1)), ("retain", drawn(30, "r", 2)))
    }
    options = {"label_free": True, "alpha": 1.0, "force": True}
    result = apply("ssd", network(), world(**hidden), Run(), options)
    seen = apply("ssd", network(), world(), Run(), options)
    assert state_digest(result.model) == state_digest(seen.model) != state_digest(network())


def test_statistics_stay_and_frozen_weights_keep_their_bits():
    model = network()
    model[3].weight.requires_grad_(False)
    result = apply("ssd", model, world(), Run(), {"alpha": 0.1, "lambda_": 0.05, "force": True})
    moved = {
        name
        for name, value in result.model.state_dict().items()
        if not torch.equal(value, model.state_dict()[name])
    }
    assert {"0.weight", "1.weight", "3.bias"} <= moved
    assert not {"1.running_mean", "1.running_var", "1.num_batches_tracked", "3.weight"} & moved


def test_too_much_of_a_layer_is_refused_and_the_model_stays():
    model = network()
    before = state_digest(model)
    with pytest.raises(ConfigError, match=r"more than 20% of .*raise forget.alpha, or set forget"):
        apply("ssd", model, world(), Run(), {"alpha": 0.1}, in_place=True)
    assert state_digest(model) == before
    forced = apply("ssd", model, world(), Run(), {"alpha": 0.1, "lambda_": 0.05, "force": True})
    assert state_digest(forced.model) != before


def test_a_layer_is_its_weights_and_biases_together():
    """One of three biases is a third of them, but one of 21 numbers of the layer."""
    model = network()
    found = [
        measure_importance(model, Classifier(3), records, Estimator(9), Run())
        for records in (drawn(30, "r", 2), drawn(9, "f", 1))
    ]

    class Fixed:
        """Importances that select the first bias of the last layer, and nothing else."""

        estimator, files = found[0].estimator, found[0].files

        def __init__(self, value):
            self.value = value

        def of(self, name, like):
            values = torch.zeros_like(like)
            if name == "3.bias":
                values[0] = self.value
            return values

    before = model[3].bias[0].item()
    dampen(model, Fixed(1.0), Fixed(20.0), SSDConfig(), Run())
    assert model[3].bias[0].item() == pytest.approx(before / 20)
    with pytest.raises(ConfigError, match=r"more than 4% of 1 layers \(3: 5%\)"):
        dampen(model, Fixed(1.0), Fixed(20.0), SSDConfig(max_dampened=0.04), Run())


def test_an_event_says_that_nothing_was_dampened(tmp_path):
    model, run = network(), Run(events=tmp_path / "events.jsonl")
    result = apply("ssd", model, world(), run, {"alpha": 1e9})
    assert result.history.notes[-1].startswith("No weight matters enough")
    assert [(e["entries"], e["no_op"]) for e in told(tmp_path, "dampening")] == [(0, 1)]
    assert state_digest(result.model) == state_digest(model)


def test_events_count_what_was_dampened_in_each_parameter(tmp_path):
    model, run = network(), Run(events=tmp_path / "events.jsonl")
    result = apply("ssd", model, world(), run, {"alpha": 2.0, "lambda_": 0.5, "force": True})
    changed = {
        name: int((value != model.state_dict()[name]).sum())
        for name, value in result.model.named_parameters()
    }
    # Where a weight was 0 (biases of batch norm begin so), a factor changes nothing.
    counts = {e["parameter"]: e["entries"] for e in told(tmp_path, "dampened")}
    assert counts["0.weight"] == changed["0.weight"] > 0
    assert sum(counts.values()) == told(tmp_path, "dampening")[0]["entries"]
    assert all(0 <= e["mean_scale"] <= 0.25 for e in told(tmp_path, "dampened"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0}, "greater than 0"),
        ({"lambda_": -1}, "greater than or equal to 0"),
        ({"batch_size": 0}, "greater than or equal to 1"),
        ({"max_dampened": 0}, "greater than 0"),
        ({"passes": 0}, "greater than or equal to 1"),
        ({"max_records": 0}, "greater than or equal to 1"),
        ({"whole": "forget"}, "'all' or 'retain'"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(methods.get("ssd"), options)
