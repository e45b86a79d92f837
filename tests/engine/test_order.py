"""The order of records is a pure function of seed, epoch and position."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.engine.order import epoch_steps

sizes = st.integers(1, 40)
batches = st.integers(1, 12)
seeds = st.integers(0, 2**31)


def flat(steps, name):
    return [int(row) for step in steps if name in step for row in step[name]]


@pytest.mark.parametrize("order", ["paired", "sequential", "mixed"])
@given(forget=sizes, retain=sizes, batch=batches, seed=seeds, epoch=st.integers(0, 5))
def test_two_calls_give_the_same_steps(order, forget, retain, batch, seed, epoch):
    arguments = (order, {"forget": forget, "retain": retain}, batch, seed, epoch)
    once, again = epoch_steps(*arguments), epoch_steps(*arguments)
    assert [{n: r.tolist() for n, r in s.items()} for s in once] == [
        {n: r.tolist() for n, r in s.items()} for s in again
    ]


@given(forget=sizes, retain=sizes, batch=batches, seed=seeds)
def test_paired_passes_once_over_the_anchor_with_one_partner_each(forget, retain, batch, seed):
    steps = epoch_steps("paired", {"forget": forget, "retain": retain}, batch, seed, 0)
    assert sorted(flat(steps, "forget")) == list(range(forget))
    assert all(len(step["forget"]) == len(step["retain"]) for step in steps)
    assert set(flat(steps, "retain")) <= set(range(retain))
    assert [len(step["forget"]) for step in steps[:-1]] == [batch] * (len(steps) - 1)


@given(forget=sizes, retain=sizes, one=batches, other=batches, seed=seeds)
def test_paired_partners_do_not_depend_on_the_batch_size(forget, retain, one, other, seed):
    few = epoch_steps("paired", {"forget": forget, "retain": retain}, one, seed, 3)
    many = epoch_steps("paired", {"forget": forget, "retain": retain}, other, seed, 3)
    for name in ("forget", "retain"):
        assert flat(few, name) == flat(many, name)


@given(forget=sizes, retain=sizes, batch=batches, seed=seeds)
def test_sequential_ends_one_stream_before_the_next(forget, retain, batch, seed):
    steps = epoch_steps("sequential", {"forget": forget, "retain": retain}, batch, seed, 0)
    names = [next(iter(step)) for step in steps]
    assert names == sorted(names)  # "forget" before "retain", never back
    assert all(len(step) == 1 for step in steps)
    assert sorted(flat(steps, "forget")) == list(range(forget))
    assert sorted(flat(steps, "retain")) == list(range(retain))


@given(forget=sizes, retain=sizes, batch=batches, seed=seeds)
def test_mixed_passes_once_over_everything(forget, retain, batch, seed):
    steps = epoch_steps("mixed", {"forget": forget, "retain": retain}, batch, seed, 0)
    assert sorted(flat(steps, "forget")) == list(range(forget))
    assert sorted(flat(steps, "retain")) == list(range(retain))
    assert [sum(map(len, s.values())) for s in steps[:-1]] == [batch] * (len(steps) - 1)


@pytest.mark.parametrize("order", ["paired", "sequential", "mixed"])
def test_epochs_and_seeds_shuffle_anew(order):
    drawn = {
        tuple(flat(epoch_steps(order, {"forget": 30, "retain": 30}, 8, seed, epoch), "forget"))
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(drawn) == 4


def test_partners_are_drawn_uniformly_with_replacement():
    steps = epoch_steps("paired", {"forget": 20_000, "retain": 4}, 500, 0, 0)
    counts = np.bincount(flat(steps, "retain"), minlength=4)
    # Standard deviation of a count is sqrt(20000 * 1/4 * 3/4) = 61.
    assert np.abs(counts - 5000).max() < 4 * 61


@pytest.mark.parametrize("order", ["paired", "sequential", "mixed"])
@given(forget=sizes, retain=sizes, batch=batches, seed=seeds, epoch=st.integers(0, 3))
def test_a_stream_beside_another_takes_its_rows(order, forget, retain, batch, seed, epoch):
    """And the other streams are those of an epoch without it."""
    lengths = {"forget": forget, "other": forget, "retain": retain}
    steps = epoch_steps(order, lengths, batch, seed, epoch, {"other": "forget"})
    plain = epoch_steps(order, {"forget": forget, "retain": retain}, batch, seed, epoch)
    assert len(steps) == len(plain)
    for step, without in zip(steps, plain, strict=True):
        assert step.keys() - {"other"} == without.keys()
        assert ("other" in step) == ("forget" in step)
        for name, rows in without.items():
            assert step[name].tolist() == rows.tolist()
        if "other" in step:
            assert step["other"].tolist() == step["forget"].tolist()


def test_several_streams_can_lie_beside_one():
    beside = {"second": "forget", "third": "forget"}
    lengths = dict.fromkeys(("second", "forget", "third"), 7)
    for step in epoch_steps("paired", lengths, 3, 0, 0, beside):
        assert step["forget"].tolist() == step["second"].tolist() == step["third"].tolist()
