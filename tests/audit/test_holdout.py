"""Thresholdout: its two branches, its noise, its budget, and what it must never tell."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from holdouts import SURE, agree, disagree, mechanism, on_disk, sample
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from expunge.audit.holdout import (
    PAPER_NOISE,
    Answer,
    Exhausted,
    HoldoutConfig,
    Noise,
    Thresholdout,
    decide,
)
from expunge.audit.holdout_ledger import Ledger
from expunge.core import files
from expunge.core.errors import ConfigError, DataError

SCRIPTED = Noise(threshold=0.005, comparison=0.01, answer=0.02)
unit = st.floats(0, 1)


# The step itself


def test_published_step():
    assert decide(0.70, 0.69, 0.04, SCRIPTED) == (0.70, "train")
    value, source = decide(0.80, 0.60, 0.04, SCRIPTED)
    assert (value, source) == (pytest.approx(0.62), "holdout")


@given(unit, unit, unit, st.floats(-1, 1), st.floats(-1, 1), st.floats(-1, 1))
def test_the_step_returns_the_training_value_or_the_noisy_one(
    a_train, a_holdout, threshold, gamma, eta, xi
):
    value, source = decide(a_train, a_holdout, threshold, Noise(gamma, eta, xi))
    far = abs(a_train - a_holdout) > threshold + gamma + eta
    assert (value, source) == ((a_holdout + xi, "holdout") if far else (a_train, "train"))
    mirrored = decide(-a_train, -a_holdout, threshold, Noise(gamma, eta, xi))
    assert mirrored[1] == source


def test_one_disagreement_costs_one_and_agreement_nothing():
    asked = mechanism(**SURE, budget=3)
    assert agree(asked) == Answer(0.5, "train", 3)
    answer = disagree(asked)
    assert (answer.source, answer.remaining) == ("holdout", 2)
    assert answer.value == pytest.approx(1.0, abs=0.02)
    assert answer.value != 1.0
    assert (asked.ledger.asked, asked.ledger.spent, asked.remaining) == (2, 1, 2)


# Defaults and what they cost


def test_defaults_and_theory():
    asked = mechanism(n=1000)
    assert asked.threshold == pytest.approx(0.1264911, abs=1e-7)
    assert (asked.noise, asked.budget) == (asked.threshold / 16, 50)
    assert asked.epsilon == pytest.approx(12.649, abs=1e-3)
    assert mechanism(n=90_000).threshold == 0.02
    demo = mechanism(n=1000, mode="science_demo")
    assert (demo.threshold, demo.noise) == pytest.approx((0.1264911, 0.0316228), abs=1e-7)
    assert demo.budget is demo.remaining is demo.epsilon is demo.epsilon_per_disagreement is None
    sigma = 0.1 / (96 * math.log(4 * 1000 / 0.05))  # tau 0.1, 1000 questions, beta 0.05
    assert sigma == pytest.approx(9.226632e-5, rel=1e-6)
    theory = mechanism(n=1000, threshold=0.075, noise=sigma, budget=10)
    assert theory.epsilon_per_disagreement == pytest.approx(21.676, abs=1e-3)
    assert theory.epsilon == pytest.approx(216.76, abs=1e-2)


# The noise


def test_answers_carry_laplace_noise_of_scale_sigma():
    asked = mechanism(threshold=1e-9, noise=0.01, budget=3000)
    noise = np.array([disagree(asked).value - 1 for _ in range(3000)])
    assert stats.kstest(noise, stats.laplace(scale=0.01).cdf).pvalue > 0.001
    assert noise.std() == pytest.approx(math.sqrt(2) * 0.01, rel=0.06)


def test_noise_of_the_comparison_is_the_sum_of_two_laplaces():
    # Equal values disagree when Lap(2 sigma) + Lap(4 sigma) < -T; the closed form at T = 4 sigma.
    chance = (16 * math.exp(-1) - 4 * math.exp(-2)) / 24
    trials = 2000
    train, holdout = sample("t", 30), sample("h", 30)
    quarter = HoldoutConfig(threshold=0.4, noise=0.4 * PAPER_NOISE)
    far = sum(
        agree(Thresholdout(train, holdout, Ledger(None), seed, quarter)).source == "holdout"
        for seed in range(trials)
    )
    assert far / trials == pytest.approx(chance, abs=3 * math.sqrt(chance * (1 - chance) / trials))


def test_the_noise_of_the_threshold_lasts_until_a_disagreement_and_the_rest_one_question():
    asked = mechanism(**SURE)
    seen = []
    for question in (agree, agree, disagree, agree, disagree, agree):
        seen.append(asked._draw())
        question(asked)
    gammas = [noise.threshold for noise in seen]
    assert gammas[0] == gammas[1] == gammas[2]
    assert gammas[3] == gammas[4]
    assert len({*gammas, *(asked._draw().threshold for _ in range(2))}) == 3
    assert len({noise.comparison for noise in seen}) == len({n.answer for n in seen}) == len(seen)


def test_repeating_a_question_gives_fresh_noise():
    asked = mechanism(**SURE, budget=20)
    assert len({disagree(asked).value for _ in range(20)}) == 20


def test_the_demonstration_draws_gaussian_noise_and_no_lasting_one():
    asked = mechanism(mode="science_demo", threshold=1e-9, noise=0.01)
    assert asked._draw().threshold == 0
    noise = np.array([disagree(asked).value - 1 for _ in range(2000)])
    assert stats.kstest(noise, stats.norm(scale=0.01).cdf).pvalue > 0.001
    assert not asked.exhausted


def test_seeds_and_holdouts_have_noise_of_their_own():
    values = {disagree(mechanism(**SURE, seed=seed)).value for seed in range(5)}
    values |= {disagree(mechanism(**SURE, n=n)).value for n in (100, 200)}
    assert len(values) == 7


# The budget


def test_an_exhausted_holdout_answers_nothing_more_and_says_so_after_a_restart(tmp_path):
    path = tmp_path / "ledger.jsonl"
    asked = on_disk(path, **SURE, budget=2)
    disagree(asked)
    assert not asked.exhausted
    assert disagree(asked).remaining == 0
    before = path.read_bytes()
    for again in (asked, on_disk(path, **SURE), on_disk(path, **SURE, asker="another")):
        assert again.exhausted
        with pytest.raises(Exhausted, match="all 2 disagreements"):
            agree(again)
    assert path.read_bytes() == before


def test_a_budget_of_nothing_is_spent_from_the_start():
    with pytest.raises(Exhausted):
        agree(mechanism(budget=0))


def test_mechanisms_with_one_ledger_share_its_budget(tmp_path):
    path = tmp_path / "ledger.jsonl"
    first = on_disk(path, **SURE, budget=3, asker="attack")
    second = on_disk(path, threshold=0.3, asker="utility")
    assert (second.noise, second.budget) == (0.001, 3)
    for asked, left in ((first, 2), (second, 1), (first, 0)):
        assert disagree(asked).remaining == left
    for asked in (first, second):
        with pytest.raises(Exhausted):
            disagree(asked)
    entries = files.read_json_lines(path)
    assert [entry.get("asker") for entry in entries] == [None, "attack", "utility", "attack"]
    assert [entry.get("threshold") for entry in entries[1:]] == ["0.2", "0.3", "0.2"]


def test_askers_at_the_same_time_write_one_chain(tmp_path):
    path = tmp_path / "ledger.jsonl"
    askers = [on_disk(path, **SURE, budget=30, asker=name) for name in ("one", "other")]
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(disagree, asked) for asked in askers * 15]
        left = [job.result().remaining for job in jobs]
    assert sorted(left) == list(range(30))
    assert Ledger(path).exhausted


@pytest.mark.parametrize(
    ("train", "holdout", "told"),
    [
        (sample("t", 29), sample("h", 30), "train has 29 records"),
        (sample("t", 30), sample("h", 0), "holdout has 0 records"),
        (sample("t", 30), sample("t", 40), "30 ids are in train and in holdout"),
        (sample("t", 30, ["x"]), sample("h", 30, ["x", "y"]), "samples of one kind"),
    ],
)
def test_samples_that_do_not_fit_are_refused(train, holdout, told):
    with pytest.raises(DataError, match=told):
        Thresholdout(train, holdout, Ledger(None), 0)


@pytest.mark.parametrize(
    "settings",
    [
        {"threshold": 0.0},
        {"threshold": -0.1},
        {"noise": 0.0},
        {"noise": math.nan},
        {"budget": -1},
        {"mode": "certified"},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValidationError):
        HoldoutConfig(**settings)


def test_the_demonstration_has_no_budget_to_set():
    with pytest.raises(ConfigError, match="science_demo' has none"):
        mechanism(mode="science_demo", budget=5)


# Questions


@given(st.integers(0, 10_000), st.floats(-5, 5), st.floats(0.1, 9))
def test_a_range_scales_the_answers(seed, low, width):
    rng = np.random.default_rng(seed)
    phi_train, phi_holdout = rng.random(30), rng.random(30) ** 3
    plain = mechanism(n=30, seed=seed).ask(phi_train, phi_holdout)
    scaled = mechanism(n=30, seed=seed).ask(
        np.clip(low + width * phi_train, low, low + width),
        np.clip(low + width * phi_holdout, low, low + width),
        low=low,
        high=low + width,
    )
    assert scaled.source == plain.source
    assert scaled.value == pytest.approx(low + width * plain.value, abs=1e-9)


def test_records_and_means_are_answered_alike():
    rng = np.random.default_rng(0)
    right_train, right_holdout = rng.random(1000) < 0.9, rng.random(1000) < 0.5
    answer = mechanism(**SURE).ask(right_train, right_holdout)
    assert answer == mechanism(**SURE).ask_values(right_train.mean(), right_holdout.mean())
    assert answer.source == "holdout"


@pytest.mark.parametrize("value", [0.0, 0.1, 0.7, 1.0])
def test_a_constant_question_is_answered_exactly(value):
    # A mean of equal values may round past them, even past the range.
    constant = np.full(1000, value)
    for high in (1.0, max(value, 0.1)):
        assert mechanism(**SURE).ask(constant, constant, high=high).value == pytest.approx(value)


@pytest.mark.parametrize("wrong", [math.nan, -0.01, 1.01, math.inf])
@pytest.mark.parametrize("where", ["train", "holdout"])
def test_one_value_out_of_range_is_refused_and_costs_nothing(wrong, where):
    asked = mechanism(**SURE)
    good, bad = np.full(1000, 0.5), np.full(1000, 0.5)
    bad[123] = wrong
    phi = (bad, good) if where == "train" else (good, bad)
    with pytest.raises(DataError, match=f"a {where} value is NaN or outside 0.0..1.0"):
        asked.ask(*phi)
    with pytest.raises(DataError, match=f"the {where} mean"):
        asked.ask_values(*((wrong, 0.5) if where == "train" else (0.5, wrong)))
    assert asked.ledger.asked == 0


@pytest.mark.parametrize(
    "phi", [np.zeros(999), np.zeros((1000, 1)), np.zeros(0), ["a"] * 1000, 0.5]
)
def test_values_that_are_not_one_number_per_record_are_refused(phi):
    with pytest.raises(DataError, match="holdout values"):
        mechanism().ask(np.zeros(1000), phi)


@pytest.mark.parametrize("ends", [(1, 1), (1, 0), (0, math.inf), (math.nan, 1)])
def test_a_range_that_is_none_is_refused(ends):
    with pytest.raises(DataError, match="two finite numbers"):
        mechanism().ask_values(0.5, 0.5, low=ends[0], high=ends[1])


# What must not be told


def test_agreement_tells_nothing_of_the_holdout(tmp_path):
    told = []
    for name, a_holdout in (("one", 0.5123456789), ("other", 0.4876543211)):
        asked = on_disk(tmp_path / name, **SURE)
        answers = [asked.ask_values(0.5, a_holdout) for _ in range(20)]
        assert {answer.source for answer in answers} == {"train"}
        state = {k: v for k, v in vars(asked).items() if k != "ledger"}
        told.append((answers, (tmp_path / name).read_bytes(), repr(state)))
    assert told[0] == told[1]


def test_errors_tell_nothing_of_the_holdout():
    def message(a_holdout, error, **settings):
        asked = mechanism(**settings)
        with pytest.raises(error) as caught:
            asked.ask(np.full(1000, 0.5), np.full(1000, a_holdout))
        return str(caught.value), caught.value.__cause__, caught.value.__context__

    assert message(0.123, Exhausted, budget=0) == message(0.987, Exhausted, budget=0)
    assert message(1.234, DataError) == message(5.678, DataError)
