import dataclasses

import pytest

from expunge.report.comparison import comparisons
from expunge.report.facts import Stop, read_facts
from expunge.report.narrative import (
    guard_sentence,
    headlines,
    limits,
    notes,
    outcome,
    summary,
    verdict_line,
)


@pytest.fixture
def facts(language_run):
    return read_facts(language_run)


def told(facts):
    return summary(facts, comparisons(facts.findings))


def changed_method(facts, **changes):
    method = dataclasses.replace(facts.plan.method, **changes)
    return dataclasses.replace(facts, plan=dataclasses.replace(facts.plan, method=method))


def test_the_summary_tells_the_story_in_at_most_eight_sentences(facts):
    sentences = told(facts)
    assert 5 <= len(sentences) <= 8
    text = " ".join(sentences)
    assert "remove the influence of 15 records and keep that of 45 in a language model" in text
    assert "npo changed the model for 60 steps, and 2 models retrained" in text
    assert "1.2e-07 before, 0.390 after, 0.990 for retrained models" in text
    assert "98 % of the value before" in text
    assert "0.560 after, 0.525 for retrained models; closer to retraining than before" in text
    assert "Bounds fixed before forgetting: 2 met." in text


def test_a_classifier_is_told_by_its_own_numbers(classifier_run):
    facts = read_facts(classifier_run)
    compared = comparisons(facts.findings)
    assert [one.after.metric for one in headlines(compared)] == ["average_gap", "ta"]
    assert verdict_line(compared).startswith("Inconclusive")
    assert "1 undecided" in " ".join(told(facts))


def test_a_run_without_audits_claims_nothing(facts):
    bare = dataclasses.replace(facts, findings=())
    assert verdict_line([]) == "Not audited: nothing was measured"
    assert "nothing is known about the outcome" in " ".join(told(bare))


def test_an_unknown_audit_is_told_by_its_first_number(facts):
    foreign = [
        dataclasses.replace(found, audit="theirs", metric=f"{found.metric}")
        for found in facts.findings
        if found.metric == "truth_ratio"
    ]
    assert [one.after.audit for one in headlines(comparisons(foreign))] == ["theirs"]


def test_a_number_that_got_no_closer_is_said_to_be_so(facts):
    one = next(c for c in comparisons(facts.findings) if c.after.metric == "auc")
    far = dataclasses.replace(one.after, value=1.0)
    assert outcome(dataclasses.replace(one, after=far)).endswith(
        "no closer to retraining than before."
    )


def test_a_gap_within_the_noise_is_said_to_be_so(facts):
    one = next(c for c in comparisons(facts.findings) if c.after.metric == "probability")
    assert "as close to retraining as two retrained models are to each other" in outcome(one)


def test_a_missing_number_says_why(facts):
    one = comparisons(facts.findings)[0]
    gone = dataclasses.replace(one.after, value=None, note="no held-out records")
    assert outcome(dataclasses.replace(one, after=gone)).endswith("n/a (no held-out records).")


def test_what_the_guard_did(facts):
    assert "no reason to stop" in guard_sentence(facts)
    off = dataclasses.replace(facts, recipe={**facts.recipe, "guard": None})
    assert guard_sentence(off) == "The collapse guard was turned off."
    stopped = dataclasses.replace(facts.histories["forget"], stopped=Stop("loss rose by 1.2", 40))
    early = dataclasses.replace(facts, histories={"forget": stopped})
    assert "loss rose by 1.2; the model of step 40 was kept" in guard_sentence(early)
    assert "changed elsewhere" in guard_sentence(changed_method(facts, name="given"))


def test_what_a_method_notes_is_in_the_summary(facts):
    assert notes(facts) == ()
    noted = dataclasses.replace(facts.histories["forget"], notes=("Nothing was dampened.",))
    told = dataclasses.replace(facts, histories={"forget": noted})
    assert "Nothing was dampened." in summary(told, comparisons(told.findings))


def test_limits_follow_from_the_facts(facts):
    compared = comparisons(facts.findings)
    text = " ".join(limits(facts, compared))
    assert "approximate" in text
    assert "between 2 retrained models" in text
    assert "names 15 records" in text
    exact = " ".join(limits(changed_method(facts, guarantee="exact"), compared))
    assert "by construction" in exact
    assert "approximate" not in exact
    lonely = {n: m for n, m in facts.models.items() if n != "reference-1"}
    assert "one retrained model only" in " ".join(
        limits(dataclasses.replace(facts, models=lonely), compared)
    )
    assert "experimental" in " ".join(
        limits(changed_method(facts, maturity="experimental"), compared)
    )
