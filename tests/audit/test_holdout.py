"""Thresholdout: its two branches, its noise, its ledger, and what it must never tell."""

import errno
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from expunge.audit.holdout import (
    Answer,
    Exhausted,
    HoldoutConfig,
    Noise,
    Thresholdout,
    decide,
    reusable,
)
from expunge.audit.holdout_ledger import Ledger
from expunge.core import files
from expunge.core.digest import digest_json
from expunge.core.errors import ConfigError, DataError, IntegrityError, StorageError
from expunge.core.finding import Finding, Interval, Reference
from expunge.core.records import Records

SCRIPTED = Noise(threshold=0.005, comparison=0.01, answer=0.02)
unit = st.floats(0, 1)


def sample(name, n=1000, columns=()):
    return Records(tuple(f"{name}-{row}" for row in range(n)), {c: list(range(n)) for c in columns})


def mechanism(ledger=None, *, n=1000, seed=0, asker="audit", **settings):
    ledger = Ledger(None) if ledger is None else ledger
    config = HoldoutConfig(**settings)
    return Thresholdout(sample("t", n), sample("h", n), ledger, seed, config, asker=asker)


def on_disk(path, **settings):
    return mechanism(Ledger(path), **settings)


def agree(asked, a_train=0.5):
    return asked.ask_values(a_train, a_train)


def disagree(asked):
    """Ask what differs so much that noise cannot hide it, with the settings of ``SURE``."""
    return asked.ask_values(0.0, 1.0)


SURE = {"threshold": 0.2, "noise": 0.001}


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
    assert (asked.noise, asked.budget) == (asked.threshold / 4, 50)
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
    far = sum(
        agree(Thresholdout(train, holdout, Ledger(None), seed)).source == "holdout"
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


# The ledger


def interview(asked, questions):
    return [asked.ask_values(a, b, question=f"{a} {b}") for a, b in questions]


@given(st.lists(st.tuples(unit, unit), max_size=12), st.integers(0, 12))
def test_stopping_and_going_on_changes_no_answer(tmp_path_factory, questions, stop):
    folder = tmp_path_factory.mktemp("ledger")
    whole = interview(on_disk(folder / "whole", budget=99), questions)
    parts = interview(on_disk(folder / "parts", budget=99), questions[:stop])
    parts += interview(on_disk(folder / "parts"), questions[stop:])
    assert parts == whole == interview(mechanism(budget=99), questions)
    assert (folder / "parts").read_bytes() == (folder / "whole").read_bytes()


@pytest.fixture
def written(tmp_path):
    """A ledger of an opening and four answers."""
    path = tmp_path / "ledger.jsonl"
    asked = on_disk(path, **SURE, budget=5)
    for question in (agree, disagree, agree, disagree):
        question(asked)
    return path


def test_each_entry_holds_the_digest_of_the_one_before(written):
    entries = files.read_json_lines(written)
    assert [e["previous"] for e in entries] == ["0" * 64, *(e["digest"] for e in entries[:-1])]
    assert [e.get("remaining") for e in entries] == [None, 5, 4, 4, 3]
    ledger = Ledger(written)
    assert ledger.head == entries[-1]["digest"]
    assert (ledger.asked, ledger.spent, ledger.remaining) == (4, 2, 3)


def test_any_changed_byte_is_refused(written):
    whole = written.read_bytes()
    for place in range(len(whole) - 1):  # without its last line break the last line is a torn one
        changed = bytearray(whole)
        changed[place] ^= 1
        written.write_bytes(changed)
        with pytest.raises(IntegrityError, match=r"ledger\.jsonl"):
            Ledger(written)


@pytest.mark.parametrize(
    "edit",
    [
        lambda lines: lines[:1] + lines[2:],
        lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
        lambda lines: [*lines, lines[-1]],
        lambda lines: lines[1:],
        lambda lines: [lines[0], lines[0], *lines[1:]],
        lambda lines: [*lines, "[]"],
        lambda lines: [*lines, '{"kind": "answer"}'],
        lambda lines: [*lines[:-1], lines[-1].replace('"low":"0.0"', '"low":NaN')],
    ],
)
def test_lines_left_out_moved_doubled_or_invented_are_refused(written, edit):
    written.write_text("\n".join(edit(written.read_text().splitlines())) + "\n")
    with pytest.raises(IntegrityError, match="line"):
        Ledger(written)


@pytest.mark.parametrize(
    ("line", "change"),
    [
        (2, {"remaining": 5}),
        (2, {"source": "guess"}),
        (2, {"kind": "open"}),
        (0, {"kind": "answer"}),
        (0, {"format": 2}),
    ],
)
def test_entries_that_make_no_sense_are_refused_even_with_a_right_digest(written, line, change):
    entries = files.read_json_lines(written)[: line + 1]
    last = {**entries[-1], **change}
    del last["digest"]
    entries[-1] = {**last, "digest": digest_json(last)}
    written.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    with pytest.raises(IntegrityError, match=f"line {line + 1}"):
        Ledger(written)


def test_an_answer_beyond_the_budget_is_refused(tmp_path):
    path = tmp_path / "ledger"
    disagree(on_disk(path, **SURE, budget=1))
    ledger = Ledger(path)
    entry = {k: v for k, v in files.read_json_lines(path)[1].items() if k not in ("previous",)}
    del entry["digest"]
    with pytest.raises(IntegrityError, match="line 3"):
        ledger.append({**entry, "remaining": -1})
    with pytest.raises(IntegrityError, match="line 3"):
        Ledger(path)


def test_a_ledger_that_was_cut_back_is_found_by_an_anchor(written):
    head = Ledger(written).head
    assert Ledger(written, anchor=head).asked == 4
    lines = written.read_text().splitlines(keepends=True)
    written.write_text("".join(lines[:-1]))
    assert Ledger(written).asked == 3  # the chain alone cannot tell
    with pytest.raises(IntegrityError, match="cut back or replaced"):
        Ledger(written, anchor=head)
    written.unlink()
    with pytest.raises(IntegrityError, match="cut back or replaced"):
        Ledger(written, anchor=head)


@pytest.mark.parametrize("kept", [None, 0, 2])
def test_a_ledger_that_shrinks_while_it_is_used_is_refused(written, kept):
    asked = on_disk(written, **SURE)
    lines = written.read_text().splitlines(keepends=True)
    if kept is None:
        written.unlink()
    else:
        written.write_text("".join(lines[:kept]))
    for _ in range(2):
        with pytest.raises(IntegrityError, match="cut back or replaced"):
            agree(asked)
    written.write_text("".join(lines))
    assert agree(asked).remaining == 3


def test_a_torn_last_line_was_never_answered_and_is_answered_alike(written):
    whole = written.read_bytes()
    lines = whole.splitlines(keepends=True)
    last = json.loads(lines[-1])
    written.write_bytes(b"".join(lines[:-1]) + lines[-1][:40])
    assert disagree(on_disk(written, **SURE)).value == float(last["value"])
    assert written.read_bytes() == whole


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_what_cannot_be_written_is_not_answered(written, monkeypatch, code):
    asked = on_disk(written, **SURE)
    before = written.read_bytes()

    def fail(operation, path):
        raise OSError(code, os.strerror(code), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(files, "fault_hook", fail)
        with pytest.raises(StorageError, match="cannot append"):
            disagree(asked)
    assert written.read_bytes() == before
    assert (asked.ledger.asked, asked.remaining) == (4, 3)
    assert disagree(asked).remaining == 2


def test_a_ledger_in_a_place_that_is_no_folder_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        on_disk(tmp_path / "file" / "ledger")
    with pytest.raises(StorageError, match="cannot read"):
        Ledger(tmp_path)


# What belongs together


def test_a_ledger_serves_one_holdout(written):
    with pytest.raises(IntegrityError, match="another holdout"):
        on_disk(written, n=999)
    renamed = Records(sample("h").ids[::-1], {})
    other = Thresholdout(sample("u"), renamed, Ledger(written), 0)
    assert other.remaining == 3  # the same records in another order, another training sample


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"seed": 1}, "another seed"),
        ({"noise": 0.002}, "noise = 0.002, but it was opened with 0.001"),
        ({"budget": 6}, "budget = 6, but it was opened with 5"),
        ({"mode": "science_demo"}, "mode = 'science_demo'"),
    ],
)
def test_a_ledger_keeps_its_settings(written, given, told):
    before = written.read_bytes()
    with pytest.raises(ConfigError, match=told):
        on_disk(written, **given)
    assert written.read_bytes() == before


def test_the_ledger_does_not_hold_the_seed(tmp_path):
    on_disk(tmp_path / "ledger", seed=918273645546372819)
    assert "918273645546372819" not in (tmp_path / "ledger").read_text()


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


# Findings


def finding(value, n=1000, **changes):
    told = {"interval": Interval(low=0.1, high=0.9), "verdict": "fail", "note": f"saw {value}"}
    common = {"title": "Accuracy", "subject": "after", "direction": "higher", **told, **changes}
    return Finding(audit="recall", metric="accuracy", value=value, n=n, **common)


def test_a_finding_is_answered_and_tells_the_budget():
    asked = mechanism(**SURE, budget=7)
    near = reusable(finding(0.5), finding(0.51, threshold=0.9, record_set="holdout"), asked)
    assert (near.value, near.record_set, near.verdict) == (0.5, "holdout", "fail")
    assert near.interval is None
    assert near.note == (
        "Reusable holdout, training value: 7 of 7 disagreements left, epsilon 2 each, "
        "not a certificate."
    )
    far = reusable(finding(0.9), finding(0.1), asked)
    assert far.value == pytest.approx(0.1, abs=0.02)
    assert far.verdict == "not_applicable"
    assert "held-out value with noise: 6 of 7 disagreements left" in far.note


def test_a_finding_on_agreement_tells_nothing_of_the_holdout():
    found = [
        reusable(
            finding(0.5),
            finding(value, reference=Reference(values=(value,), gap=value, noise_floor=None)),
            mechanism(**SURE),
        )
        for value in (0.512345, 0.487654)
    ]
    assert found[0] == found[1]


def test_a_verdict_within_a_threshold_of_the_bound_is_inconclusive():
    for bound, verdict in ((0.29, "pass"), (0.31, "inconclusive"), (0.69, "inconclusive")):
        held_out = finding(0.5, threshold=bound)
        assert reusable(finding(0.5), held_out, mechanism(**SURE)).verdict == verdict
    held_out = finding(0.5, threshold=0.71)
    assert reusable(finding(0.5), held_out, mechanism(**SURE)).verdict == "fail"


def test_an_answer_as_a_finding_stays_in_its_range():
    asked = mechanism(threshold=0.2, noise=0.03)
    values = [reusable(finding(0.0), finding(1.0), asked).value for _ in range(20)]
    assert max(values) == 1.0
    percent = mechanism(**SURE)
    found = reusable(finding(90.0), finding(10.0), percent, low=0.0, high=100.0)
    assert found.value == pytest.approx(10, abs=2)


def test_an_exhausted_holdout_leaves_a_finding_without_a_number():
    asked = mechanism(**SURE, budget=0)
    found = reusable(finding(0.5), finding(0.5, threshold=0.1), asked)
    assert (found.value, found.interval, found.verdict) == (None, None, "inconclusive")
    assert "exhausted: 0 of 0 disagreements left" in found.note


def test_the_demonstration_is_marked_in_the_finding():
    found = reusable(finding(0.5), finding(0.5), mechanism(mode="science_demo", **SURE))
    assert "without a guarantee" in found.note
    assert "epsilon" not in found.note


@pytest.mark.parametrize(("on_train", "on_holdout"), [(None, 0.5), (0.5, None)])
def test_a_number_that_is_missing_is_not_asked(on_train, on_holdout):
    asked = mechanism(**SURE)
    found = reusable(finding(on_train), finding(on_holdout), asked)
    assert (found.value, found.interval, asked.ledger.asked) == (None, None, 0)
    assert "no number to ask" in found.note


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        (finding(0.5), finding(0.5, subject="before"), "differ in subject"),
        (finding(0.5, model="a"), finding(0.5, model="b"), "differ in model"),
        (finding(0.5), finding(0.5, n=999), "rests on 1000 and 999 records"),
        (finding(0.5), finding(1.5), "the holdout mean is NaN or outside"),
    ],
)
def test_findings_that_do_not_match_are_refused(one, other, told):
    asked = mechanism(**SURE)
    with pytest.raises(DataError, match=told) as caught:
        reusable(one, other, asked)
    assert asked.ledger.asked == 0
    assert "1.5" not in str(caught.value)
