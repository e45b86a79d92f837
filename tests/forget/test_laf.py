"""LAF against known values and torch's own gradients; it reads no label and keeps the head."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from expunge.core.errors import ConfigError, DataError, NumericalError, UnsupportedModelError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.tasks.classifier import Classifier
from expunge.engine.vae import squared_distance_B
from expunge.engine.weights import state_digest
from expunge.forget.laf import LAFConfig, bounded, separability, turned_B
from expunge.forget.method import Given, apply, methods

QUICK = {"epochs": 1, "batch_size": 5, "lr": 1e-2}
FAST = {"vae_epochs": 1, "schedule": QUICK}


class Untouchable(list):
    def __getitem__(self, row):
        raise AssertionError("a label was read")


def network(activation=None):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 8), activation or nn.Tanh(), nn.Linear(8, 3)
        )


def drawn(count, name, seed, **columns):
    x = np.random.default_rng(seed).normal(size=(count, 6)).astype(np.float32)
    labels = [int(row[0] > 0) for row in x]
    return Records(tuple(f"{name}{i}" for i in range(count)), {"x": x, "y": labels, **columns})


def world(**changes):
    whole = {"task": Classifier(3), "forget": drawn(10, "f", 1), "retain": drawn(30, "r", 2)}
    return Given(**{**whole, **changes})


def told(path, what):
    return [e for e in map(json.loads, path.read_text().splitlines()) if e["event"] == what]


def moved(model, result):
    after = result.state_dict()
    return {n for n, value in model.state_dict().items() if not torch.equal(value, after[n])}


# --- values ---


def test_golden_bound():
    """Card of LAF, section 10: exp(1/2) + exp(0)."""
    e, rebuilt = torch.tensor([[1.0, 2.0], [0, 1]]), torch.tensor([[1.0, 1.0], [0, 1]])
    found = bounded(squared_distance_B(rebuilt, e)).sum()
    assert float(found) == pytest.approx(2.648721, abs=1e-6)


def test_the_bound_lies_between_1_and_e():
    found = bounded(torch.tensor([0.0, 1e-3, 1.0, 1e6, 1e30]))
    assert found.min() == 1
    assert float(found.max()) <= np.e + 1e-6
    assert bool((found.diff() >= 0).all())


def test_golden_alignment():
    """Card of LAF, section 10: Σ a - 2 log Σ exp(c / τ) with τ = 2."""
    kept, kept_0 = torch.tensor([[1.0, 0], [0, 1]]), torch.tensor([[1.0, 1], [0, 1]])
    gone, gone_0 = torch.tensor([[1.0, 0], [1, 1]]), torch.tensor([[0.0, 1], [1, 1]])
    a, c = turned_B(kept, kept_0), turned_B(gone, gone_0)
    np.testing.assert_allclose(a, [1 - 1 / np.sqrt(2), 0], atol=1e-6)
    np.testing.assert_allclose(c, [1, 0], atol=1e-6)
    loss = a.sum() - 2 * torch.logsumexp(c / 2, 0)
    assert float(loss) == pytest.approx(-1.655261, abs=1e-6)


def test_a_representation_of_length_0_has_a_distance_and_a_gradient():
    e = torch.zeros(1, 3, requires_grad=True)
    distance = turned_B(e, torch.ones(1, 3))
    distance.sum().backward()
    assert float(distance.detach()) == 1
    assert bool(torch.isfinite(e.grad).all())


class Constant:
    """Stands for an autoencoder whose error is a number of each representation."""

    def __init__(self, factor):
        self.factor = factor

    def misfit_B(self, e_ND):
        return self.factor * e_ND[:, 0]


@pytest.mark.parametrize(
    ("retain", "forget", "auc"),
    [([0.0, 1.0], [2.0, 3.0], 1.0), ([2.0, 3.0], [0.0, 1.0], 0.0), ([1.0, 1.0], [1.0, 1.0], 0.5)],
)
def test_separability_is_the_share_of_pairs_in_order(retain, forget, auc):
    sets = (torch.tensor(values)[:, None] for values in (retain, forget))
    assert separability(Constant(1.0), Constant(0.0), *sets) == auc


def test_separability_by_brute_force():
    draw = torch.Generator().manual_seed(0)
    sets = [torch.randint(5, (count, 1), generator=draw).float() for count in (9, 7)]
    pairs = [(float(g > k) + float(g == k) / 2) for k in sets[0] for g in sets[1]]
    assert separability(Constant(3.0), Constant(1.0), *sets) == pytest.approx(np.mean(pairs))


# --- the loop ---


@pytest.mark.parametrize("micro_batch", [None, 1, 2])
def test_a_step_of_alignment_is_the_gradient_of_the_whole_batchs_loss(micro_batch):
    """The normaliser runs over the forget records of a step, however it is split."""
    model = network().double()
    given = world(forget=drawn(5, "f", 1), retain=drawn(1, "r", 2))
    schedule = {
        **QUICK,
        "epochs": 2,
        "optimizer": "sgd",
        "momentum": 0.0,
        "weight_decay": 0.0,
        "micro_batch": micro_batch,
    }
    options = {
        "vae_epochs": 1,
        "steps": "alignment",
        "tau": 0.5,
        "alignment_rate": 2.0,
        "schedule": schedule,
    }
    result = apply("laf", model, given, Run(), options).model

    expected = network().double()
    inputs = [torch.tensor(r["x"]).double() for r in (given.retain, given.forget)]
    originals = [expected[:4](x).detach() for x in inputs]
    for _ in range(2):
        a, c = (
            1 - F.cosine_similarity(expected[:4](x), e, dim=1)
            for x, e in zip(inputs, originals, strict=True)
        )
        # The one retain record stands beside each of the five; sums divided by five.
        loss = (5 * a.sum() - 5 * torch.logsumexp(c / 0.5, 0)) / 5
        expected.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in expected[:4].parameters():
                parameter -= 0.02 * parameter.grad
    # The first step starts where c is 0, a minimum, so that it moves nothing but rounding.
    for one, other in zip(result.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_both_steps_take_turns_and_the_head_keeps_its_bits():
    model = network()
    result = apply(
        "laf", model, world(), Run(), {"vae_epochs": 1, "schedule": {**QUICK, "epochs": 2}}
    )
    assert moved(model, result.model) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    steps = result.history.steps
    assert len(steps) == 2 * 2 * 2
    bounds, alignments = steps[0::2], steps[1::2]
    assert all(1 <= s["retain"] < np.e and -np.e < s["forget"] <= -1 for s in bounds)
    assert all(0 <= s["retain"] <= 2 and s["forget"] >= 0.99 for s in alignments)


@pytest.mark.parametrize(("steps", "count"), [("extractor", 2), ("alignment", 2), ("both", 4)])
def test_one_step_alone_is_half_of_the_passes(steps, count):
    result = apply("laf", network(), world(), Run(), {"steps": steps, **FAST})
    assert len(result.history.steps) == count


def test_codes_without_noise_give_another_result():
    digests = {
        state_digest(apply("laf", network(), world(), Run(), {**own, **FAST}).model)
        for own in (
            {"sample": False},
            {"sample": True},
            {"decoder": "linear"},
            {"h_data": "retain"},
        )
    }
    assert len(digests) == 4


def test_the_model_is_in_eval_mode_throughout():
    """Dropout would make representations differ from the original's at once."""
    model = nn.Sequential(
        nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Dropout(0.5), nn.Tanh(), nn.Linear(12, 3)
    ).train()
    options = {**FAST, "steps": "alignment", "tau": 1.0}
    result = apply("laf", model, world(), Run(), options)
    assert result.history.steps[0]["retain"] == pytest.approx(0, abs=1e-6)
    assert result.model.training
    assert not any("running" in name for name in moved(model, result.model))


def test_a_frozen_layer_keeps_its_bits():
    model = network()
    model[0].requires_grad_(False)
    result = apply("laf", model, world(), Run(), FAST)
    assert moved(model, result.model) == {"2.weight", "2.bias"}


# --- labels ---


def test_no_label_is_read():
    """A column that raises when it is read stands where labels would be."""
    assert methods.get("laf").needs(LAFConfig()) == {"forget", "retain"}
    hidden = {
        role: records.replace(y=Untouchable(records["y"]))
        for role, records in (("forget", drawn(10, "f", 1)), ("retain", drawn(30, "r", 2)))
    }
    seen, unseen = (
        apply("laf", network(), world(**sets), Run(), FAST).model for sets in ({}, hidden)
    )
    assert state_digest(seen) == state_digest(unseen)


def test_repair_needs_labels_and_moves_the_head_alone():
    config = {"repair": 3, "repair_lr": 1e-2, **FAST}
    assert "labels" in methods.get("laf").needs(LAFConfig(repair=3))
    plain = apply("laf", network(), world(), Run(), FAST)
    repaired = apply("laf", network(), world(), Run(), config)
    assert moved(plain.model, repaired.model) == {"4.weight", "4.bias"}
    assert len(repaired.history.steps) == len(plain.history.steps)
    hidden = drawn(10, "f", 1)
    hidden = hidden.replace(y=Untouchable(hidden["y"]))
    again = apply("laf", network(), world(forget=hidden), Run(), config)
    assert state_digest(again.model) == state_digest(repaired.model)


# --- what it says, and what it refuses ---


def digits(world, gone):
    """The world's records with those of some rows to be forgotten."""
    from expunge.core.records import concatenate

    whole = concatenate([world.forget, world.retain])
    kept = [row for row in range(len(whole)) if row not in gone]
    return Given(world.task, whole.take(sorted(gone)), whole.take(kept))


@pytest.mark.parametrize("what", ["class", "random"])
def test_it_says_when_nothing_is_separable(digits_world, tmp_path, what):
    whole = [*digits_world.forget["y"], *digits_world.retain["y"]]
    of_class = {row for row, label in enumerate(whole) if label == 3}
    chosen = np.random.default_rng(0).permutation(len(whole))[: len(of_class)]
    gone = of_class if what == "class" else {int(row) for row in chosen}
    run = Run(events=tmp_path / "events.jsonl")
    options = {"schedule": {"epochs": 1, "batch_size": 8}}
    result = apply("laf", digits_world.model, digits(digits_world, gone), run, options)
    [event] = told(run.events, "separability")
    assert event["separable"] == (what == "class")
    assert len(result.history.notes) == (what == "random")
    assert all("cannot be told from the rest" in note for note in result.history.notes)
    assert (event["auc"] > 0.9) == (what == "class")


def test_representations_of_length_0_are_counted(tmp_path):
    model = network(nn.ReLU())
    with torch.no_grad():
        model[2].weight.zero_()
        model[2].bias.fill_(-1)
    run = Run(events=tmp_path / "events.jsonl")
    apply("laf", model, world(), run, FAST)
    assert told(run.events, "separability")[0]["zero_vectors"] == 40


def test_one_record_is_not_enough_for_an_autoencoder():
    with pytest.raises(DataError, match="needs 2 records at least"):
        apply("laf", network(), world(forget=drawn(1, "f", 1)), Run())


@pytest.mark.parametrize(
    ("model", "head", "message"),
    [
        (nn.Sequential(nn.Linear(6, 3)), None, "its head '0' and nothing else"),
        (nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3), nn.Softmax(1)), None, "something follows"),
        (network(), "9", "head = '9' is no linear layer of the model, which has 0, 2, 4"),
    ],
)
def test_a_model_without_a_representation_is_refused(model, head, message):
    with pytest.raises(UnsupportedModelError, match=message):
        apply("laf", model, world(), Run(), {"head": head})


def test_inputs_that_yield_nan_are_refused_by_id():
    broken = drawn(30, "r", 2)
    broken["x"][7, 0] = np.nan
    with pytest.raises(NumericalError, match=r"representations of r7 hold NaN"):
        apply("laf", network(), world(retain=broken), Run(), FAST)


def test_a_code_as_wide_as_the_representation_is_warned_of():
    with pytest.warns(UserWarning, match=r"forget.z = 8 is no less than .* width 8"):
        apply("laf", network(), world(), Run(), {"z": 8, **FAST})


def test_a_model_whose_extractor_is_frozen_is_refused():
    model = network()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("4."))
    with pytest.raises(ConfigError, match="no parameter below the head"):
        apply("laf", model, world(), Run(), FAST)
