"""The benchmarks of an audit's speed: what is timed is the product, and unequal numbers stop it."""

import copy
import functools
import importlib
import math
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from expunge.audit import mia_scores
from expunge.core.files import read_json


@pytest.fixture
def script(monkeypatch):
    """Return a function from the name of a benchmark to its module."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    yield importlib.import_module
    for name in ("audit_pass", "tofu_suite", "small_llama", "timing", "output"):
        sys.modules.pop(name, None)


@pytest.fixture
def audit_pass(script):
    return script("audit_pass")


@pytest.fixture
def job(audit_pass, language_model, people):
    """Four records, a tiny random model, and another one for reference."""
    model, task = language_model
    reference = copy.deepcopy(model)
    with torch.no_grad():
        reference.lm_head.weight.mul_(10)
    return audit_pass.Job(copy.deepcopy(model), reference, task, people)


def run_once(audit_pass, job):
    return {arm: run() for arm, run in audit_pass.arms_of(job).items()}


def outputs_of(audit_pass, *answers):
    """Two tokens, of which the first is always right with the given probabilities."""
    longest = max(map(len, answers)) + 1  # one position of the prompt
    logits = torch.zeros(len(answers), longest, 2)
    labels = torch.full((len(answers), longest), audit_pass.IGNORED)
    for row, probabilities in enumerate(answers):
        p = torch.tensor(probabilities)
        logits[row, 1 : 1 + len(p)] = torch.stack([p, 1 - p], dim=1).log()
        labels[row, 1 : 1 + len(p)] = 0
    return audit_pass.Outputs(logits, labels, tuple("ab" * len(a) for a in answers))


def test_formulas_of_the_padded_passes_by_hand(audit_pass):
    answers = [0.9, 0.8, 0.3, 0.7, 0.6], [0.9, 0.2]
    outputs = outputs_of(audit_pass, *answers)
    found = {name: of(outputs).tolist() for name, of in audit_pass.OF_OUTPUTS.items()}
    mean = [sum(map(math.log, a)) / len(a) for a in answers]
    size = [len(zlib.compress(b"ab" * len(a))) for a in answers]

    def standardised(p):
        q = 1 - p
        centre = p * math.log(p) + q * math.log(q)
        spread = math.sqrt(p * (math.log(p) - centre) ** 2 + q * (math.log(q) - centre) ** 2)
        return (math.log(p) - centre) / spread

    lowest = sorted(map(standardised, answers[0]))[:2]
    expected = {
        "loss": mean,
        "probability": [math.exp(m) for m in mean],
        "zlib": [m / n for m, n in zip(mean, size, strict=True)],
        "min_k": [(math.log(0.3) + math.log(0.6)) / 2, math.log(0.2)],  # 40 %, rounded down
        "min_k_pp": [sum(lowest) / 2, standardised(0.2)],
        "exact_memorization": [4 / 5, 1 / 2],
        "extraction_strength": [2 / 5, 0],  # no floor of 1 / n
    }
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, abs=1e-6), name


def test_a_certain_model_has_no_spread_to_divide_by(audit_pass):
    outputs = outputs_of(audit_pass, [1.0, 1 - 2**-24])
    outputs.logits_BTV[0, 1] = torch.tensor([50.0, -50.0])
    assert torch.isfinite(audit_pass.OF_OUTPUTS["min_k_pp"](outputs)).all()


def test_all_ways_agree_and_leave_no_gradient(audit_pass, job):
    found = run_once(audit_pass, job)
    audit_pass.check(found)
    assert set(found) == {
        *((block, way) for block in audit_pass.BLOCKS for way in ("one pass", "pass per metric")),
        ("block", "shared pass"),
    }
    assert np.ptp(found["with reference", "one pass"]["reference"]) > 0.01
    assert all(weight.grad is None for weight in job.model.parameters())


def test_no_records_have_no_values(audit_pass, job):
    found = audit_pass.padded_pass(job.model, job.task, job.records.take([]), audit_pass.BLOCK)
    assert {name: values.shape for name, values in found.items()} == dict.fromkeys(
        audit_pass.BLOCK, (0,)
    )


def test_a_wrong_metric_of_the_product_is_found(audit_pass, job, monkeypatch):
    wrong = functools.partial(mia_scores.min_k, k=0.2)
    monkeypatch.setitem(audit_pass.OF_SCORES, "min_k", wrong)
    with pytest.raises(AssertionError, match="min_k, block, shared pass"):
        audit_pass.check(run_once(audit_pass, job))


@pytest.mark.parametrize(
    "metric",
    [
        "loss",
        "probability",
        "zlib",
        "min_k",
        "min_k_pp",
        "exact_memorization",
        "extraction_strength",
        "reference",
        "grad_norm",
    ],
)
def test_one_record_with_another_value_is_found(audit_pass, job, metric):
    found = run_once(audit_pass, job)
    block = next(name for name, metrics in audit_pass.BLOCKS.items() if metric in metrics)
    values = found[block, "pass per metric"][metric]
    tolerance = audit_pass.TOLERANCE.get(metric, 1e-6)
    values[1] += 3 * tolerance * (1 + abs(values[1]))
    with pytest.raises(AssertionError, match=f"{metric}, {block}, pass per metric"):
        audit_pass.check(found)


def test_turns_alternate_and_every_round_is_checked(script):
    turns, rounds = [], []

    def arm(name):
        turns.append(name)
        return len(turns)

    arms = {name: functools.partial(arm, name) for name in "ab"}
    first, timings = script("timing").alternate(arms, 2, check=rounds.append)
    assert "".join(turns) == "ababab"
    assert rounds == [{"a": 1, "b": 2}, {"a": 3, "b": 4}, {"a": 5, "b": 6}]
    assert first == rounds[0]
    assert {len(timings[name].wall) for name in "ab"} == {2}


@pytest.mark.parametrize("name", ["audit_pass", "tofu_suite"])
def test_the_protocol_is_the_default(script, name, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x"])
    options = script(name)._options()
    assert options.rounds == 5
    assert tuple(options.threads) == (1, 2)


@pytest.mark.parametrize("option", ["--rounds", "--threads"])
@pytest.mark.parametrize("value", ["0", "-1", "one"])
def test_a_count_must_be_positive(script, option, value, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x", f"{option}={value}"])
    with pytest.raises(SystemExit):
        script("audit_pass")._options()
    assert f"{option}: {value!r} is not a whole number of at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "size", "ways"),
    [
        ("audit_pass", ["--people", "2"], {"block: one pass", "block: pass per metric"}),
        ("tofu_suite", ["--records", "2", "--new-tokens", "4"], {"suite", "public way"}),
    ],
)
def test_the_scripts_write_what_they_print(script, name, size, ways, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    path = tmp_path / "numbers.json"
    quick = ["--epochs", "1", "--rounds", "1", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["x", *size, *quick])
    script(name).main()
    numbers, printed = read_json(path)["numbers"], capsys.readouterr().out
    assert asked == [1, 2]
    assert set(numbers["threads"]) == {"1", "2"}
    for measured in numbers["threads"].values():
        assert measured.keys() >= ways
        for way in measured.values():
            assert len(way["seconds"]["cpu"]) == 1
            assert f"{way['cpu']:.2f}" in printed


def test_the_suite_must_find_what_the_public_way_finds(script):
    check = script("tofu_suite").check
    values = np.array([0.5, 0.25])
    check({"suite": {"loss": values}, "public way": {"loss": values.copy()}})
    apart = {"suite": {"loss": values}, "public way": {"loss": values + 3e-6}}
    with pytest.raises(AssertionError, match="loss"):
        check(apart)
    check(apart, tolerance=1e-5)
    with pytest.raises(AssertionError, match="zlib"):
        check({"suite": {"zlib": values}, "public way": {}})


def test_tofus_values_by_hand(script):
    public = script("tofu_suite")._tofu
    losses = {
        "answer": [0.5, 1.0, 2.0],
        "paraphrase": [1.0, 3.0],  # the third record has one wording and no wrong answers
        "perturbed:0": [2.0, 1.0],
        "perturbed:1": [4.0, 2.0],
    }
    named = {f"{s} {v} loss": np.array(x) for s in ("forget", "retain") for v, x in losses.items()}
    geometric = np.exp([1 - 3, 3 - 1.5])
    arithmetic = [
        (math.exp(-2) + math.exp(-4)) / 2 / math.exp(-1),
        (math.exp(-1) + math.exp(-2)) / 2 / math.exp(-3),
    ]
    forget, retain = public("forget", named), public("retain", named)
    assert forget["forget probability"] == pytest.approx(np.exp([-0.5, -1, -2]))
    assert forget["forget truth_ratio"] == pytest.approx([geometric[0], 1 / geometric[1]])
    assert forget["forget truth_ratio_arithmetic"] == pytest.approx(
        [arithmetic[0], 1 / arithmetic[1]]
    )
    assert retain["retain truth_ratio"] == pytest.approx([1 - geometric[0], 0])
    assert retain["retain truth_ratio_arithmetic"] == pytest.approx([1 - arithmetic[0], 0])
    alone = {key: x if "answer" in key else x[:0] for key, x in named.items()}
    assert public("retain", alone).keys() == {"retain probability"}
    general = {"facts answer loss": np.array([0.5]), "facts perturbed:0 loss": np.array([1.0])}
    found = public("facts", general)
    share = math.exp(-0.5) / (math.exp(-0.5) + math.exp(-1))
    assert found["facts probability"] == pytest.approx([share])
    assert found["facts truth_ratio"] == pytest.approx([1 - math.exp(-0.5)])
