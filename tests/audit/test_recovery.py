"""Recovery and excess on planted scores, against the paper card's values and a numpy oracle."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.audit.evidence import Evidence, Subject
from expunge.audit.readings import Reading
from expunge.audit.recovery import (
    Attack,
    Trial,
    no_leak_bound,
    readings_by,
    record_scores,
    recover,
    recovery,
    recovery_findings,
    scored_rows,
)
from expunge.core.errors import ConfigError
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.data.dataset import Dataset

PLAIN = Reading("forget")
ATTACKED = Reading("forget", treatment="quantize:8")
STRONGER = Reading("forget", treatment="quantize:4")
ATTACK = Attack("a", "A", (Trial(ATTACKED),))


@dataclasses.dataclass(frozen=True)
class Settings:
    by: str = "probability"
    max_excess: float | None = None


@pytest.fixture
def make_subject(make_scores):
    """A model whose records have these probabilities, plain and after attacks."""

    def make(role, plain, attacked=None, seed=None, stronger=None, name=None, absent=()):
        values = {PLAIN: plain, ATTACKED: attacked, STRONGER: stronger}
        scores = {r: make_scores(np.log(v)) for r, v in values.items() if v is not None}
        told = dict(absent)
        return Subject(role, name or f"{role}{seed}", scores, seed, absent=told)

    return make


def around(mean, n=60, spread=0.05):
    """Probabilities with exactly this mean."""
    return mean + spread * np.tile([-1.0, 1.0], n // 2)


def card_evidence(make_subject, n=60, references=(0,)):
    """The models of section 11 of the paper card."""
    return Evidence(
        after=make_subject("after", around(0.30, n), around(0.61, n)),
        before=make_subject("before", around(0.65, n)),
        references=tuple(
            make_subject("reference", around(0.28, n), around(0.40, n), seed) for seed in references
        ),
        sets="s",
    )


def by_metric(findings, subject="after"):
    return {f.metric: f for f in findings if f.subject == subject}


def findings_of(evidence, attacks=(ATTACK,), **settings):
    return recovery_findings(evidence, Settings(**settings), Run(3), attacks)


def test_the_cards_recovery():
    assert recovery(0.61, 0.30, 0.65) == pytest.approx(0.885714, abs=5e-7)
    assert recovery(0.40, 0.28, 0.65) == pytest.approx(0.324324, abs=5e-7)
    assert recovery(0.5, 0.56, 0.65) is None


def test_the_cards_bound_for_no_leak():
    for n, bound in {20: 0.139108, 50: 0.058155, 100: 0.029513, 300: 0.009936}.items():
        assert no_leak_bound(n) == pytest.approx(bound, abs=5e-7)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_recovery_is_a_share_of_the_way_back(attacked, unlearned, original):
    found = recovery(attacked, unlearned, original)
    if original - unlearned < 0.1:
        assert found is None
    else:
        assert unlearned + found * (original - unlearned) == pytest.approx(attacked, abs=1e-9)
        assert recovery(original, unlearned, original) == 1


def test_findings_have_the_cards_excess(make_subject):
    evidence = card_evidence(make_subject)
    found = by_metric(findings_of(evidence))
    assert found["score_a"].value == pytest.approx(0.61, abs=1e-6)
    assert found["recovery_a"].value == pytest.approx(0.885714, abs=1e-5)
    assert found["excess_a"].value == pytest.approx(0.561390, abs=1e-5)
    assert found["excess"].value == found["excess_a"].value
    assert found["excess"].note == "strongest: A"
    assert found["recovery_a"].reference.values == pytest.approx((0.324324,), abs=1e-5)
    assert found["score_a"].reference.gap == pytest.approx(0.21, abs=1e-6)
    assert {f.n for f in found.values()} == {60}
    before = by_metric(findings_of(evidence), "before")
    assert before["excess"].value is None


def test_the_interval_of_the_excess_is_paired_over_records(make_subject):
    rng = np.random.default_rng(0)
    own, up, base, theirs, their_up = (
        np.clip(rng.normal(mean, 0.1, 80), 0.01, 0.99) for mean in (0.3, 0.6, 0.7, 0.3, 0.4)
    )
    evidence = Evidence(
        after=make_subject("after", own, up),
        before=make_subject("before", base),
        references=(make_subject("reference", theirs, their_up, 0),),
        sets="s",
    )
    found = by_metric(findings_of(evidence))["excess"]
    draws = []
    for _ in range(4000):
        rows = rng.integers(80, size=80)
        after, reference = (
            (attacked[rows].mean() - plain[rows].mean()) / (base[rows].mean() - plain[rows].mean())
            for attacked, plain in ((up, own), (their_up, theirs))
        )
        draws.append(after - reference)
    low, high = np.quantile(draws, [0.025, 0.975])
    assert found.interval.low == pytest.approx(low, abs=0.015)
    assert found.interval.high == pytest.approx(high, abs=0.015)


def test_a_bound_judges_the_headline_alone(make_subject):
    evidence = card_evidence(make_subject)
    assert by_metric(findings_of(evidence, max_excess=0.9))["excess"].verdict == "pass"
    failed = findings_of(evidence, max_excess=0.1)
    assert by_metric(failed)["excess"].verdict == "fail"
    assert sum(f.threshold is not None for f in failed) == 1


def test_below_50_scored_records_there_is_no_verdict(make_subject):
    found = by_metric(findings_of(card_evidence(make_subject, n=48), max_excess=0.1))
    assert found["excess"].value == pytest.approx(0.561390, abs=1e-5)
    assert found["excess"].verdict == "inconclusive"
    assert "a verdict needs 50" in found["excess"].note


def test_below_20_scored_records_there_is_no_recovery(make_subject):
    found = by_metric(findings_of(card_evidence(make_subject, n=18), max_excess=0.1))
    assert found["score_a"].value == pytest.approx(0.61, abs=1e-6)
    assert found["excess"].value is None
    assert found["excess"].verdict == "inconclusive"
    assert "too few" in found["excess"].note


def test_without_references_nothing_is_judged(make_subject):
    found = by_metric(findings_of(card_evidence(make_subject, references=()), max_excess=0.1))
    assert found["recovery_a"].value == pytest.approx(0.885714, abs=1e-5)
    assert found["excess"].value is None
    assert found["excess"].verdict == "inconclusive"
    assert found["excess"].note == "no other retrained model to compare with"


def test_references_are_compared_with_each_other(make_subject):
    evidence = card_evidence(make_subject, references=(0, 1))
    found = [f for f in findings_of(evidence) if f.metric == "excess" and f.subject == "reference"]
    assert [f.value for f in found] == pytest.approx([0.0, 0.0], abs=1e-9)


def test_the_original_passed_off_as_unlearned_is_told(make_subject):
    original = make_subject("before", around(0.65), name="same")
    evidence = dataclasses.replace(
        card_evidence(make_subject),
        before=original,
        after=make_subject("after", around(0.65), around(0.66), name="same"),
    )
    found = by_metric(findings_of(evidence, max_excess=0.9))
    assert found["excess"].value is None
    assert found["excess"].verdict == "inconclusive"
    assert "nothing was forgotten" in found["excess"].note


def test_without_the_model_before_there_is_no_recovery(make_subject):
    evidence = dataclasses.replace(card_evidence(make_subject), before=None)
    found = by_metric(findings_of(evidence))
    assert found["score_a"].value == pytest.approx(0.61, abs=1e-6)
    assert found["recovery_a"].note == "there is no model before unlearning to recover"


def test_an_attack_that_cannot_be_made_leaves_its_bound_open(make_subject):
    evidence = dataclasses.replace(
        card_evidence(make_subject),
        after=make_subject("after", around(0.30), absent={ATTACKED: "no weights to round"}),
    )
    found = by_metric(findings_of(evidence, max_excess=0.1))
    assert (found["excess"].value, found["excess"].note) == (None, "no weights to round")
    assert found["excess"].verdict == "inconclusive"
    assert by_metric(findings_of(evidence))["excess"].verdict == "not_applicable"


def test_without_any_attack_the_bound_is_open(make_subject):
    (found,) = by_metric(findings_of(card_evidence(make_subject), (), max_excess=0.1)).values()
    assert (found.metric, found.value, found.verdict) == ("excess", None, "inconclusive")
    assert found.note == "no attack can be made with these data"


def test_the_strongest_attack_counts_and_pays_for_being_chosen(make_subject):
    evidence = Evidence(
        after=make_subject("after", around(0.30), around(0.40), stronger=around(0.61)),
        before=make_subject("before", around(0.65)),
        references=(make_subject("reference", around(0.28), around(0.30), 0, around(0.40)),),
        sets="s",
    )
    strong = Attack("b", "B", (Trial(STRONGER),))
    found = by_metric(findings_of(evidence, (ATTACK, strong)))
    assert found["excess"].value == found["excess_b"].value > found["excess_a"].value
    assert found["excess"].note == "strongest: B"
    assert found["excess"].interval.high >= found["excess_b"].interval.high
    useless = dataclasses.replace(strong, judged=False)
    found = by_metric(findings_of(evidence, (ATTACK, useless)))
    assert found["excess"].value == found["excess_a"].value
    assert found["excess"].note == "strongest: A; not counted: B"
    alone = by_metric(findings_of(evidence, (useless,), max_excess=0.1))["excess"]
    assert (alone.value, alone.verdict) == (None, "inconclusive")
    assert alone.note == "no attack counts; not counted: B"


def test_references_without_a_recovery_are_told(make_subject):
    """A reference that knows as much as the original has nothing to be brought back."""

    def headline(known):
        evidence = card_evidence(make_subject, references=range(3))
        knowing = [make_subject("reference", around(0.65), around(0.65), s) for s in range(known)]
        references = (*knowing, *evidence.references[known:])
        told = findings_of(dataclasses.replace(evidence, references=references), max_excess=0.9)
        return by_metric(told)["excess"], by_metric(told)["excess_a"]

    assert headline(0)[0].note == "strongest: A"
    most, alone = headline(1)
    assert (most.note, most.verdict) == ("strongest: A; on 2 of 3 references", "pass")
    assert alone.note == "on 2 of 3 references"
    few, alone = headline(2)
    assert few.value == pytest.approx(0.561390, abs=1e-5)
    assert (few.interval, alone.interval, few.verdict) == (None, None, "inconclusive")
    assert few.note == "strongest: A; on 1 of 3 references; too few for an interval"


def test_an_attack_that_failed_never_helps_to_pass(make_subject):
    evidence = card_evidence(make_subject)
    lost = dataclasses.replace(evidence.after, absent={STRONGER: "the attack diverged"})
    attacks = (ATTACK, Attack("b", "B", (Trial(STRONGER),)))
    found = findings_of(dataclasses.replace(evidence, after=lost), attacks, max_excess=0.9)
    headline = by_metric(found)["excess"]
    assert headline.verdict == "inconclusive"
    assert headline.note == "strongest: A; without B"


def test_each_record_is_scored_by_the_trials_that_did_not_see_it(make_subject):
    after = make_subject("after", [0.1] * 4, [0.2, 0.4, 0.6, 0.8], stronger=[0.4, 0.6, 0.8, 0.9])
    attack = Attack(
        "a",
        "A",
        (
            Trial(ATTACKED, frozenset({"r-0", "r-1"})),
            Trial(STRONGER, frozenset({"r-1", "r-2"})),
        ),
    )
    found = recover(after, None, attack, "probability", 0)
    # r-0: 0.4; r-1: seen by both; r-2: 0.6; r-3: the mean of 0.8 and 0.9
    assert found.score.n == 3
    assert found.score.value == pytest.approx((0.4 + 0.6 + 0.85) / 3, abs=1e-6)


def test_attacks_that_see_everything_leave_nothing_to_score(make_subject):
    after = make_subject("after", [0.1] * 2, [0.2, 0.4])
    attack = Attack("a", "A", (Trial(ATTACKED, frozenset({"r-0", "r-1"})),))
    assert recover(after, None, attack, "probability", 0).score.value is None


def test_no_leak_has_its_bound_told(make_scores):
    wrong = {PLAIN: make_scores([-1.0] * 50, wrong=range(50))}
    subject = Subject("after", "m", wrong | {ATTACKED: wrong[PLAIN]})
    score = recover(subject, None, ATTACK, "exact", 0).score
    assert score.value == 0
    assert score.note == "none of 50: at most 0.058 with 95 % confidence"
    assert score.interval.high == pytest.approx(1 - 0.025 ** (1 / 50))


def test_no_leak_leaves_an_uncertain_excess(make_scores):
    right, wrong = make_scores([-1.0] * 60), make_scores([-1.0] * 60, wrong=range(60))
    evidence = Evidence(
        after=Subject("after", "a", {PLAIN: wrong, ATTACKED: wrong}),
        before=Subject("before", "b", {PLAIN: right}),
        references=(Subject("reference", "r", {PLAIN: wrong, ATTACKED: wrong}, 0),),
        sets="s",
    )
    bound = 1 - 0.025 ** (1 / 60)  # .0596: both sides of an interval of 95 %
    found = by_metric(findings_of(evidence, by="exact", max_excess=0.055))["excess"]
    assert found.value == 0
    assert (found.interval.low, found.interval.high) == pytest.approx((-bound, bound))
    assert found.verdict == "inconclusive"
    found = by_metric(findings_of(evidence, by="exact", max_excess=0.06))["excess"]
    assert found.verdict == "pass"


def test_scores_of_records(make_scores):
    views = {
        PLAIN: make_scores([-1.0, -2.0, -3.0], wrong=[1]),
        Reading("forget", "perturbed:0"): make_scores([-2.0, -1.0, -4.0]),
        Reading("forget", "perturbed:1"): make_scores([-0.5, -3.0, -4.0]),
        Reading("forget", "context:x"): make_scores([-0.1, -0.1, -0.1]),
        ATTACKED: make_scores([-0.1, -0.1, -0.1]),
    }
    subject = Subject("after", "m", views)
    assert record_scores(subject, PLAIN, "probability") == pytest.approx(np.exp([-1, -2, -3]))
    assert record_scores(subject, PLAIN, "exact").tolist() == [1, 0, 1]
    assert record_scores(subject, PLAIN, "knowledge").tolist() == [0, 0, 1]
    rows = scored_rows(views[PLAIN], {"r-1", "unknown"})
    assert rows.tolist() == [0, 2]
    with pytest.raises(ConfigError, match="context:x"):
        record_scores(subject, Reading("forget", "context:x"), "knowledge")


def test_a_record_without_wrong_answers_is_left_out_of_knowledge(make_scores):
    views = {
        PLAIN: make_scores([-1.0, -2.0]),
        Reading("forget", "perturbed:0"): make_scores([-2.0]),
        Reading("forget", "paraphrase"): make_scores([-3.0]),
    }
    found = record_scores(Subject("after", "m", views), PLAIN, "knowledge")
    assert found[0] == 0  # in other words the true answer loses, 3 nats against 2
    assert np.isnan(found[1])


def test_knowledge_reads_wrong_answers_or_says_that_there_are_none(people):
    dataset = Dataset("causal_lm", people)
    wanted = readings_by(ATTACKED, "knowledge", dataset)
    assert {r.view for r in wanted} == {"answer", "perturbed:0", "perturbed:1", "paraphrase"}
    assert {r.treatment for r in wanted} == {"quantize:8"}
    assert readings_by(ATTACKED, "exact", dataset) == (ATTACKED,)
    plain = Records(people.ids, {n: people[n] for n in ("question", "answer")})
    with pytest.raises(ConfigError, match="perturbed_answer"):
        readings_by(PLAIN, "knowledge", Dataset("causal_lm", plain))


def test_findings_are_a_function_of_the_seed(make_subject):
    evidence = card_evidence(make_subject)
    first, again = findings_of(evidence), findings_of(evidence)
    assert [f.digest() for f in first] == [f.digest() for f in again]
