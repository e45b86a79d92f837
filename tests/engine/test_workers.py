"""Shares of a step, and what is refused before processes rely on each other.

Two real processes run in ``tests/e2e/test_accelerate.py``.
"""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.core.errors import ConfigError, Interrupted
from expunge.core.run import Budget, Run
from expunge.engine.workers import Workers, workers

ROWS = st.integers(0, 20).map(np.arange)
MICRO = st.none() | st.integers(1, 7)


@given(ROWS, st.integers(1, 5), MICRO, st.booleans())
def test_every_row_counts_once_whoever_takes_it(rows, size, micro, idle):
    team = [Workers(rank, size) for rank in range(size)]
    parts = [part for worker in team for part in worker.parts(rows, micro, idle=idle)]
    counted = [row for _, chosen, counts in parts if counts for row in chosen]
    assert sorted(counted) == rows.tolist()
    numbers = [number for number, *_ in parts]
    assert len(set(numbers)) == len(numbers)  # dropout never repeats itself
    for _, chosen, _ in parts:
        assert 1 <= len(chosen) <= (micro or 20)


@given(ROWS, st.integers(1, 5), MICRO)
def test_shares_differ_by_one_record_at_most(rows, size, micro):
    found = [Workers(rank, size).parts(rows, micro, idle=False) for rank in range(size)]
    shares = [sum(len(chosen) for _, chosen, _ in parts) for parts in found]
    assert max(shares) - min(shares) <= 1


@given(ROWS, st.integers(1, 5), MICRO)
def test_who_must_not_idle_makes_as_many_passes_as_the_others(rows, size, micro):
    found = [Workers(rank, size).parts(rows, micro, idle=True) for rank in range(size)]
    assert len({len(parts) for parts in found}) == 1


@pytest.mark.parametrize(("micro", "expected"), [(None, [[4, 2, 0]]), (2, [[4, 2], [0]])])
def test_alone_it_takes_all_in_order(micro, expected):
    parts = Workers().parts(np.array([4, 2, 0]), micro, idle=False)
    assert [chosen.tolist() for _, chosen, _ in parts] == expected
    assert [number for number, *_ in parts] == list(range(len(expected)))


def test_alone_it_talks_to_nobody():
    alone = Workers()
    assert alone.main
    assert alone.sum([0.1, 0.2]) == [0.1, 0.2]
    assert alone.any(True)
    assert not alone.any(False)
    assert alone.agreed(0.3) == 0.3
    assert alone.told(("state", {})) == ("state", {})
    alone.require_same("a", "data")
    alone.require_device("cpu")
    alone.wait()
    run = Run()
    assert alone.quieted(run) is run


def test_a_process_beside_the_main_one_is_silent(tmp_path):
    run = Run(folder=tmp_path, events=tmp_path / "events.jsonl", quiet=False, trackers=(object(),))
    quiet = Workers(1, 2).quieted(run)
    assert (quiet.quiet, quiet.events, quiet.trackers) == (True, None, ())
    assert (run.quiet, run.events) == (False, tmp_path / "events.jsonl")
    run.cancel()
    with pytest.raises(Interrupted, match="cancelled"):
        Workers().check(quiet)


def test_a_spent_budget_is_told_as_ever():
    with pytest.raises(Interrupted, match="budget of 2 steps"):
        Workers().check(Run(budget=Budget(max_steps=2)), 2)


@pytest.mark.parametrize("device", ["cuda", "cpu:0"])
def test_a_device_that_not_every_process_can_have_is_refused(device):
    with pytest.raises(ConfigError, match=rf"device = '{device}'.*2 processes.*'cpu'"):
        Workers(0, 2).require_device(device)


LAUNCHED = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}


@pytest.fixture
def launched(monkeypatch):
    def set_variables(**variables):
        for name, value in {**LAUNCHED, **variables}.items():
            monkeypatch.setenv(name, value)
        return workers.__wrapped__()

    return set_variables


@pytest.mark.parametrize("name", LAUNCHED)
def test_part_of_a_launch_is_none(launched, monkeypatch, name):
    for other, value in LAUNCHED.items():
        monkeypatch.setenv(other, value)
    monkeypatch.delenv(name)
    assert workers.__wrapped__().size == 1


def test_one_launched_process_is_alone(launched):
    assert launched(WORLD_SIZE="1").size == 1


def test_precision_is_for_the_recipe_to_decide(launched):
    with pytest.raises(ConfigError, match=r"mixed_precision = 'bf16'.*precision of the schedule"):
        launched(ACCELERATE_MIXED_PRECISION="bf16")


def test_the_first_fsdp_is_refused(launched):
    with pytest.raises(ConfigError, match="fsdp_version: 2"):
        launched(ACCELERATE_USE_FSDP="true", FSDP_VERSION="1")


def test_several_processes_need_accelerate(launched, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ConfigError, match=r"pip install 'expunge\[distributed\]'"):
        launched()


ALONE = """
import sys
import torch
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.engine.loop import Stream, fit
from expunge.engine.schedule import Schedule
from expunge.engine.tasks.classifier import Classifier
from expunge.train.supervised import likelihood

task = Classifier(2)
records = Records(("a", "b"), {"x": [[1.0], [2.0]], "y": [0, 1]})
terms = [likelihood(task, "train")]
fit(torch.nn.Linear(1, 2), task, {"train": Stream(records)}, terms, Schedule(epochs=1), Run())
assert "accelerate" not in sys.modules
"""


def test_a_process_alone_never_imports_accelerate():
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
