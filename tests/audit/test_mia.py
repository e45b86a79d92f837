"""The attacks on planted members, on strangers, and on what stands out upwards."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from expunge.audit.audit import audits, parse_config, plan_readings, run_audit
from expunge.audit.collecting import collect
from expunge.audit.evidence import Evidence, Measurement, Subject
from expunge.audit.mia import MiaConfig, distance, mia
from expunge.audit.readings import Reading
from expunge.audit.scores import Scores
from expunge.audit.stats import folded
from expunge.core.errors import ConfigError
from expunge.core.finding import Interval
from expunge.core.run import Run
from expunge.core.sets import Sets
from expunge.data.dataset import Dataset

FORGET, HOLDOUT = Reading("forget"), Reading("holdout")


@pytest.fixture
def attack(make_scores):
    rng = np.random.default_rng(0)
    holdout = make_scores(-rng.uniform(1, 3, 100), prefix="h")

    def subject(role, low, high, seed=None):
        forget = make_scores(-np.random.default_rng(seed or 9).uniform(low, high, 60))
        return Subject(role, role, {FORGET: forget, HOLDOUT: holdout}, seed)

    def run(low, high, **settings):
        evidence = Evidence(
            after=subject("after", low, high),
            before=subject("before", 0.0, 0.5),
            references=tuple(subject("reference", 1, 3, seed) for seed in (1, 2)),
            sets="digest",
        )
        found = mia(evidence, MiaConfig(**settings), Run())
        return {(f.metric, f.subject): f for f in found if f.subject != "reference"}, found

    return run


def answers(rng, prefix, count, shift, zlib=True):
    """Scores of answers of 2 to 7 tokens."""
    n_R = rng.integers(2, 8, count)
    n = n_R.sum()
    logprob_N = -rng.gamma(2.0, 0.5, n).astype(np.float32) - np.float32(shift)
    return Scores(
        ids=tuple(f"{prefix}-{row}" for row in range(count)),
        offsets=np.concatenate([[0], np.cumsum(n_R)]),
        logprob_N=logprob_N,
        rank_N=np.zeros(n, dtype=np.int32),
        mean_N=-rng.gamma(2.0, 0.6, n).astype(np.float32),
        variance_N=rng.gamma(2.0, 0.5, n).astype(np.float32),
        measured={
            "grad_norm": rng.gamma(2.0, 1.0, count),
            **({"zlib": rng.integers(20, 60, count).astype(float)} if zlib else {}),
        },
    )


def model(role, shift, seed=None, zlib=True):
    """A model whose forgotten answers are less likely by a shift."""
    rng = np.random.default_rng([7, seed or 0])
    lengths = np.random.default_rng(3)
    scores = {}
    for reading, count, moved in ((FORGET, 30, shift), (HOLDOUT, 40, 0.0)):
        # Every model sees records of the same lengths.
        draw = np.random.default_rng(lengths.integers(2**32))
        found = answers(draw, reading.record_set, count, moved, zlib)
        noise_N = rng.normal(0, 0.1, len(found.logprob_N)).astype(np.float32)
        logprob_N = np.minimum(found.logprob_N + noise_N, 0)
        scores[reading] = dataclasses.replace(found, logprob_N=logprob_N)
    return Subject(role, role, scores, seed)


def evidence(references=3, **settings):
    return Evidence(
        model("after", 0.5, **settings),
        None,
        tuple(model("reference", 0.0, seed, **settings) for seed in range(1, references + 1)),
        "sets",
    )


def test_members_have_lower_loss(attack):
    found, everything = attack(1, 3, max_auc_gap=0.2)
    assert found["auc", "before"].value == 1
    assert found["tpr", "before"].value == 1
    assert found["auc", "after"].value == pytest.approx(0.5, abs=0.15)
    assert found["auc", "after"].interval.low < 0.5 < found["auc", "after"].interval.high
    assert found["auc", "before"].reference.gap > 0.3
    assert found["auc_gap", "after"].verdict == "pass"
    assert found["auc_gap", "before"].verdict == "not_applicable"
    references = [f for f in everything if f.metric == "auc_gap" and f.subject == "reference"]
    floor = found["auc", "after"].reference.noise_floor
    assert [f.value for f in references] == pytest.approx([floor, floor])
    # Two references share that one number; its spread of nothing is no noise floor.
    assert found["auc_gap", "after"].reference.noise_floor is None


def test_pushing_losses_too_far_is_caught_as_well(attack):
    found, _ = attack(5, 9, max_auc_gap=0.2)
    assert found["auc", "after"].value == 0
    assert found["auc", "after"].reference.gap < -0.3
    assert found["auc_gap", "after"].verdict == "fail"


def test_without_strangers_there_is_no_verdict(make_scores):
    scores = {FORGET: make_scores([-1.0, -2.0]), HOLDOUT: make_scores([])}
    alone = Evidence(after=Subject("after", "a", scores), before=None, references=(), sets="s")
    found = mia(alone, MiaConfig(max_auc_gap=0.1), Run())
    assert [finding.metric for finding in found] == ["auc", "tpr", "auc_gap"]
    for finding in found:
        assert finding.value is None
        assert "no held-out records" in finding.note
    assert found[-1].verdict == "inconclusive"


def test_distance_folds_the_interval_at_zero():
    found = Measurement(0.6, 10, Interval(low=0.45, high=0.75))
    around = distance(found, [Measurement(0.5, 10), Measurement(0.6, 10)])
    assert around.value == pytest.approx(0.05)
    assert (around.interval.low, around.interval.high) == pytest.approx((0, 0.2))
    above = distance(found, [Measurement(0.9, 10)])
    assert (above.interval.low, above.interval.high) == pytest.approx((0.15, 0.45))
    assert distance(found, []).value is None


def test_a_distance_has_no_sign_with_or_without_an_interval():
    bare = distance(Measurement(0.2, 10, note="few"), [Measurement(0.5, 10)])
    assert bare == Measurement(pytest.approx(0.3), 10, None, "few")
    assert distance(Measurement(None, 3, note="none"), []) == Measurement(None, 3, note="none")


@pytest.mark.parametrize(("members", "others"), [(3, 100), (100, 3), (49, 50), (50, 50)])
def test_a_bound_on_few_records_of_either_set_is_not_judged(make_scores, members, others):
    """Wholly apart, so that any interval is far beyond the bound."""

    def subject(role, logprob, seed=None):
        scores = {
            FORGET: make_scores(np.full(members, logprob)),
            HOLDOUT: make_scores(np.full(others, -2.0), prefix="h"),
        }
        return Subject(role, role, scores, seed)

    shown = Evidence(
        subject("after", -1.0),
        None,
        (subject("reference", -3.0, 1), subject("reference", -3.0, 2)),
        "s",
    )
    settings = MiaConfig(attacks=("loss",), max_auc_gap=0.01)
    gaps = [f for f in mia(shown, settings, Run()) if f.metric == "auc_gap"]
    told = f"{members} forgotten and {others} held-out records; a bound is judged on 50 or more"
    few = min(members, others) < 50
    assert gaps[0].value == 1
    assert gaps[0].verdict == ("inconclusive" if few else "fail")
    assert (told in gaps[0].note) is few
    assert [gap.note for gap in gaps[1:]] == ["", ""]
    unbound = [f for f in mia(shown, MiaConfig(attacks=("loss",)), Run()) if f.metric == "auc_gap"]
    assert (unbound[0].verdict, unbound[0].note) == ("not_applicable", "")


def test_the_gap_is_resampled_over_records_that_all_models_share(attack):
    """By a plain loop over resamples of records, each scored by all models."""
    found, everything = attack(1.4, 3)
    rng = np.random.default_rng(5)
    sides = {}
    for name, low, high, seed in (("after", 1.4, 3, 9), (1, 1, 3, 1), (2, 1, 3, 2)):
        sides[name] = np.random.default_rng(seed).uniform(low, high, 60)
    holdout = np.random.default_rng(0).uniform(1, 3, 100)
    above = {name: side[:, None] < holdout for name, side in sides.items()}  # of losses
    gaps = []
    for _ in range(3000):
        pairs = np.ix_(rng.integers(60, size=60), rng.integers(100, size=100))
        area = {name: pairwise[pairs].mean() for name, pairwise in above.items()}
        gaps.append(area["after"] - (area[1] + area[2]) / 2)
    low, high = np.quantile(gaps, [0.025, 0.975])
    gap = found["auc_gap", "after"]
    ends = (max(low, -high, 0), max(abs(low), abs(high)))
    assert (gap.interval.low, gap.interval.high) == pytest.approx(ends, abs=0.01)
    assert gap.interval.method == "bootstrap"
    again = [f.digest() for f in attack(1.4, 3)[1]]
    assert again == [f.digest() for f in everything]


def test_a_gap_that_no_resample_changes_is_as_sure_as_its_pairs(make_scores):
    def subject(role, logprob, seed=None):
        scores = {
            FORGET: make_scores(np.full(60, logprob)),
            HOLDOUT: make_scores(np.full(100, -2.0), prefix="h"),
        }
        return Subject(role, role, scores, seed)

    references = (subject("reference", -1.0, 1), subject("reference", -1.0, 2))
    shown = Evidence(subject("after", -3.0), None, references, "s")
    gap = next(f for f in mia(shown, MiaConfig(), Run()) if f.metric == "auc_gap")
    assert gap.value == 1
    # Of 60 pairs none differs: at most 1 - 0.025^(1/60) may.
    assert gap.interval.low == pytest.approx(0.025 ** (1 / 60), abs=1e-9)


def delong(members, others):
    """An area and half of DeLong's interval, from all pairs."""
    won = (members[:, None] > others) + 0.5 * (members[:, None] == others)
    spread = sum(won.mean(axis=side).var(ddof=1) / won.shape[1 - side] for side in (0, 1))
    return won.mean(), norm.isf(0.025) * np.sqrt(spread)


def independent(areas):
    """The interval of the gap's size and of the gap, errors of all models being independent."""
    (value, own), *others = areas
    theirs = np.mean([half for _, half in others]) / len(others) ** 0.5
    gap = value - np.mean([other for other, _ in others])
    low, high = max(value - own, 0.0), min(value + own, 1.0)
    low, high = gap - np.hypot(value - low, theirs), gap + np.hypot(high - value, theirs)
    return folded(Interval(low=low, high=high)), low, high


@pytest.mark.parametrize(
    ("shift", "references"), [(0.0, 2), (1.0, 2), (3.0, 4)], ids=["same", "more", "far"]
)
def test_the_interval_of_the_gap_covers_as_it_says(make_scores, shift, references):
    """Records are hard or easy for all models alike; the true areas follow from the normal law.

    Of 40 forgotten and 60 held-out records one model is surer of the forgotten ones, by a shift.
    If errors counted as independent, the interval would be about twice as wide where models are
    alike. It would be too narrow where the first one tells nearly all records apart: then most of
    the error is the references', and their number does not lessen what they share.
    """
    sizes, own, worlds = (40, 60), 0.5, 250
    area = norm.cdf(shift / np.sqrt(2 * (1 + own**2)))
    true = abs(area - 0.5)
    covered, independent_covered, widths = 0, 0, []
    for world in range(worlds):
        rng = np.random.default_rng([world, 11])
        shared = [rng.normal(size=size) for size in sizes]
        subjects, areas = [], []
        for number in range(1 + references):
            sides = [side + own * rng.normal(size=len(side)) for side in shared]
            sides[0] += shift * (number == 0)
            areas.append(delong(*sides))
            scores = {
                reading: make_scores(side - 20, prefix=reading.record_set)
                for reading, side in zip((FORGET, HOLDOUT), sides, strict=True)
            }
            subjects.append(Subject("reference" if number else "after", "m", scores, number))
        shown = Evidence(subjects[0], None, tuple(subjects[1:]), "s")
        found = mia(shown, MiaConfig(attacks=("loss",)), Run(world))
        gap = next(f for f in found if f.metric == "auc_gap")
        covered += gap.interval.low <= true <= gap.interval.high
        plain, low, high = independent(areas)
        independent_covered += low <= area - 0.5 <= high
        widths.append([one.high - one.low for one in (gap.interval, plain)])
    assert covered / worlds >= 0.93
    paired, unpaired = np.mean(widths, axis=0)
    if shift < 2:
        assert paired < 0.7 * unpaired
    else:
        assert independent_covered / worlds < 0.9


def test_each_attack_has_three_numbers_and_the_loss_attack_keeps_its_names():
    found = mia(evidence(), MiaConfig(), Run())
    attacks = ("", "_zlib", "_min_k", "_min_k_pp", "_reference")
    expected = [f"{number}{name}" for name in attacks for number in ("auc", "tpr", "auc_gap")]
    assert list(dict.fromkeys(f.metric for f in found)) == expected
    assert all(f.value is not None for f in found)
    titles = {f.metric: f.title for f in found}
    assert titles["auc"] == "Loss attack, area under the ROC curve (0.5: cannot tell)"
    assert titles["tpr_min_k"] == "Min-K% attack, true-positive rate at 1 % false positives"


def record_loop(scores, of):
    """Apply a function to the targets of each record."""
    bounds = zip(scores.offsets[:-1], scores.offsets[1:], strict=True)
    return np.array([of(slice(a, b), row) for row, (a, b) in enumerate(bounds)])


def lowest(values, k=0.4):
    return np.sort(values)[: max(1, int(len(values) * k))].mean()


ORACLES = {
    "auc": lambda s, _: record_loop(s, lambda at, row: s.logprob_N[at].mean()),
    "auc_zlib": lambda s, _: record_loop(
        s, lambda at, row: s.logprob_N[at].mean() / s.measured["zlib"][row]
    ),
    "auc_min_k": lambda s, _: record_loop(s, lambda at, row: lowest(s.logprob_N[at])),
    "auc_min_k_pp": lambda s, _: record_loop(
        s, lambda at, row: lowest((s.logprob_N[at] - s.mean_N[at]) / s.variance_N[at] ** 0.5)
    ),
    "auc_reference": lambda s, others: record_loop(
        s,
        lambda at, row: s.logprob_N[at].mean() - np.mean([o.logprob_N[at].mean() for o in others]),
    ),
    "auc_grad_norm": lambda s, _: -s.measured["grad_norm"],
}


@pytest.mark.parametrize("metric", ORACLES)
def test_areas_are_those_of_an_independent_library(metric):
    shown = evidence()
    every = ("loss", "zlib", "min_k", "min_k_pp", "reference", "grad_norm")
    found = mia(shown, MiaConfig(attacks=every), Run())
    values = [f.value for f in found if f.metric == metric]
    for subject, value in zip(shown, values, strict=True):
        others = [r for r in shown.references if r is not subject]
        sides = [
            ORACLES[metric](subject.scores[reading], [o.scores[reading] for o in others])
            for reading in (FORGET, HOLDOUT)
        ]
        labels = np.repeat([1, 0], [len(side) for side in sides])
        assert value == pytest.approx(roc_auc_score(labels, np.concatenate(sides)), abs=1e-12)


def test_two_references_are_mirror_images_under_the_reference_attack():
    """Each is attacked with the other, so that the areas add up to 1 and show no noise floor."""
    found = [f for f in mia(evidence(2), MiaConfig(), Run()) if f.metric == "auc_reference"]
    after, first, second = found
    assert first.value + second.value == pytest.approx(1.0)
    assert after.reference.noise_floor is None
    assert after.reference.gap == pytest.approx(after.value - 0.5)


def test_one_reference_cannot_be_calibrated_itself():
    after, reference = [
        f for f in mia(evidence(1), MiaConfig(), Run()) if f.metric == "auc_reference"
    ]
    assert after.value is not None
    assert reference.value is None
    assert "no other retrained model" in reference.note


def test_attacks_that_the_evidence_rules_out_are_left_out():
    without = mia(evidence(0, zlib=False), MiaConfig(), Run())
    assert {f.metric for f in without} == {
        *("auc", "tpr", "auc_gap"),
        *("auc_min_k", "tpr_min_k", "auc_gap_min_k"),
        *("auc_min_k_pp", "tpr_min_k_pp", "auc_gap_min_k_pp"),
    }


@pytest.mark.parametrize(
    ("name", "reason"),
    [("reference", "no other retrained model"), ("zlib", "the measure 'zlib' was not taken")],
)
def test_the_only_attack_asked_for_says_why_it_cannot_be_had(name, reason):
    found = mia(evidence(0, zlib=False), MiaConfig(attacks=(name,), max_auc_gap=0.1), Run())
    assert [f.metric for f in found] == [f"auc_{name}", f"tpr_{name}", f"auc_gap_{name}"]
    assert all(f.value is None and reason in f.note for f in found)
    assert found[-1].verdict == "inconclusive"


def test_the_bound_holds_for_every_attack():
    found = mia(evidence(), MiaConfig(max_auc_gap=0.9), Run())
    judged = {f.metric for f in found if f.threshold is not None}
    assert judged == {
        f"auc_gap{name}" for name in ("", "_zlib", "_min_k", "_min_k_pp", "_reference")
    }


def test_an_attack_named_twice_runs_once():
    found = mia(evidence(0), MiaConfig(attacks=("min_k", "min_k")), Run())
    assert [f.metric for f in found] == ["auc_min_k", "tpr_min_k", "auc_gap_min_k"]


def planned(kind, people, **settings):
    info = audits.get("mia")
    data = Dataset(kind, people)
    readings = plan_readings([(info, parse_config(info, settings))], data)
    return {reading.record_set: reading.measures for reading in readings}


def test_only_what_the_attacks_need_is_measured(people):
    assert planned("causal_lm", people) == {"forget": ("zlib",), "holdout": ("zlib",)}
    assert planned("classifier", people) == {"forget": (), "holdout": ()}
    asked = planned("classifier", people, attacks=["loss", "zlib", "grad_norm"])
    assert asked == {"forget": ("grad_norm",), "holdout": ("grad_norm",)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attacks": ["zlib", "min_k"]}, "a 'classifier'; choose among loss, reference, grad_norm"),
        ({"attacks": []}, r"attacks = \[\]: none of them"),
        ({"attacks": ["min-k"]}, "'min-k': Input should be 'loss', 'zlib', 'min_k'"),
        ({"k": 0.0}, "k = 0.0: Input should be greater than 0"),
        ({"k": 1.5}, "k = 1.5: Input should be less than or equal to 1"),
    ],
)
def test_wrong_settings_are_refused(people, settings, message):
    with pytest.raises(ConfigError, match=message):
        planned("classifier", people, **settings)


def test_a_model_is_attacked_end_to_end(questions_world):
    """Answers learned by heart against questions with answers that were never seen."""
    world = questions_world
    strangers = world.forget.take([3, 4, 5])
    answered = [f"{text} by the bay" for text in strangers["answer"]]
    held = dataclasses.replace(strangers, ids=("h0", "h1", "h2")).replace(answer=answered)
    data = Dataset("causal_lm", world.forget.take([0, 1, 2]), holdout=held)
    sets = Sets(forget=data.train.ids, holdout=data.holdout.ids)
    info = audits.get("mia")
    config = parse_config(info, {"attacks": ["loss", "zlib", "min_k", "min_k_pp", "grad_norm"]})
    readings = plan_readings([(info, config)], data)
    after, small = (
        collect(world.model, world.task, data, sets, readings, Run(), role="after", batch_size=size)
        for size in (32, 1)
    )
    shown = Evidence(after, None, (), sets.digest())
    found = {f.metric: f.value for f in run_audit(info, config, shown, Run())}
    for name in ("auc", "auc_zlib", "auc_min_k", "auc_min_k_pp", "auc_grad_norm"):
        assert found[name] == 1.0, name
    norms = [one.scores[FORGET].measured["grad_norm"] for one in (after, small)]
    assert norms[0].tolist() == norms[1].tolist()
