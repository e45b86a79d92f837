"""The small reproduction of the reusable holdout: an analyst who asks one holdout 1001 times."""

import importlib
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from expunge.audit.holdout import HoldoutConfig, Thresholdout
from expunge.audit.holdout_ledger import Ledger
from expunge.core.files import read_json
from expunge.core.records import Records

N, D, K = 1000, 1000, 100
SPREAD = 0.021
"""Standard deviation of an accuracy on 1000 fresh records, and of the votes behind it."""


@pytest.fixture
def script(monkeypatch):
    """The module of the benchmark."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    yield importlib.import_module("reusable_holdout")
    for name in ("reusable_holdout", "output"):
        sys.modules.pop(name, None)


def expected_accuracy(votes):
    """Accuracy of so many votes, of which the 20 signals have mean 6 / sqrt(n)."""
    return norm.cdf(20 * 6 / math.sqrt(N) / math.sqrt(min(votes, K)))


def gaps(found):
    """What a study claims: how far apart its accuracies are, and how far from theory."""
    nothing, something = found["no signal"], found["signal"]
    plain, demo = something["plain"]["fresh"], something["science_demo"]["fresh"]
    stand_out = 2 * norm.cdf(-1)  # of the 980 others, once per sample and with one sign on both
    return {
        "deceived": nothing["plain"]["reported"] - nothing["plain"]["fresh"],
        "honest": nothing["science_demo"]["reported"] - nothing["science_demo"]["fresh"],
        "lost": plain - demo,
        "plain from theory": plain - expected_accuracy(20 + 980 * stand_out**2 / 2),
        "demo from theory": demo - expected_accuracy(20 + 980 * stand_out),
    }


def bounds(repetitions):
    """Least and largest value of each gap."""
    error = 3 * SPREAD / math.sqrt(repetitions)
    return {
        "deceived": (0.10, math.inf),
        "honest": (-math.inf, 0.03),
        "lost": (-math.inf, 0.03 + error),
        "plain from theory": (-error, error),
        "demo from theory": (-error, error),
    }


def test_a_plain_holdout_deceives_and_thresholdout_does_not(script):
    found = script.study(N, D, K, 6, ("plain", "science_demo"))
    assert found["no signal"]["science_demo"]["train"] > 0.7  # the analyst did overfit
    for name, gap in gaps(found).items():
        low, high = bounds(6)[name]
        assert low <= gap <= high, name


@pytest.mark.slow
def test_a_budget_keeps_what_it_answers_honest(script):
    found = script.study(N, D, K, 20)
    assert found["no signal"]["science_demo"]["train"] > 0.7  # the analyst did overfit
    for name, gap in gaps(found).items():
        low, high = bounds(20)[name]
        assert low <= gap <= high, name
    for world in found.values():
        assert world["paper's noise"]["reported"] is None  # its budget is spent on false alarms
        assert world["paper's noise"]["spent"] == 50
        assert world["paper's noise"]["answered"] < 400
        assert world["thresholdout"]["reported"] is not None
    default = script.study(N, D, K, 120, ("thresholdout",))["no signal"]["thresholdout"]
    assert default["reported"] - default["fresh"] <= 0.03


def test_the_script_writes_what_it_prints(script, tmp_path, monkeypatch, capsys):
    size = ["--repetitions", "2", "--n", "100", "--d", "30", "--k", "5"]
    monkeypatch.setattr(sys, "argv", ["x", *size, "--json", str(tmp_path / "numbers.json")])
    script.main()
    numbers = read_json(tmp_path / "numbers.json")["numbers"]
    printed = capsys.readouterr().out
    for kind in script.HOLDOUTS:
        assert kind in printed
        assert f"{numbers['signal'][kind]['train']:.3f}" in printed
    assert numbers["signal"]["plain"]["answered"] == 31


def test_false_alarms_are_counted_as_the_mechanism_makes_them(script):
    def asked(seed):
        settings = HoldoutConfig(threshold=0.08, noise=0.02, budget=5)
        train, holdout = (Records(tuple(f"{s}{i}" for i in range(30)), {}) for s in "th")
        mechanism = Thresholdout(train, holdout, Ledger(None), seed, settings)
        while not mechanism.exhausted:
            mechanism.ask_values(0.5, 0.5)
        return mechanism.ledger.asked

    found = np.median([asked(seed) for seed in range(300)])
    assert found == pytest.approx(script.false_alarms(4, budget=5), rel=0.15)


def test_no_votes_are_taken_where_none_are_wanted(script):
    train_d = np.array([0.3, -0.2, 0.1, 0.4])
    answer_d = np.array([0.3, -0.2, -0.1, 0.4])
    assert not script._choose(train_d, answer_d, 0, 0.05).any()
    assert script._choose(train_d, answer_d, 2, 0.05).tolist() == [1, 0, 0, 1]
    assert script._choose(train_d, answer_d, 9, 0.05).tolist() == [1, -1, 0, 1]
    assert script._choose(train_d, answer_d, 9, 0.25).tolist() == [1, 0, 0, 1]
