"""The run in plain sentences, made from its facts and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from expunge.core.finding import Verdict
from expunge.report.comparison import Comparison, overall
from expunge.report.facts import Facts
from expunge.report.wording import count, kind_words, number, set_words

MAX_HEADLINES = 3
MAX_UNFOLDED = 24
"""Most numbers that a report shows without folding any."""
FEW_RECORDS = 50

# The numbers of each audit that a reader wants first; of any other audit it is the first number.
_HEADLINES = {
    "tofu": ("forget_quality", "model_utility"),
    "unlearning_gap": ("average_gap", "ta"),
    "mia": ("auc",),
}

_VERDICTS: dict[Verdict, str] = {
    "pass": "Every bound fixed beforehand was met",
    "fail": "At least one bound fixed beforehand was not met",
    "inconclusive": "Inconclusive: the data cannot decide every bound fixed beforehand",
    "not_applicable": "Measured, not judged: no bound was fixed beforehand",
}


def verdict_line(compared: Sequence[Comparison]) -> str:
    """Return the outcome over all bounds in one line."""
    if not compared:
        return "Not audited: nothing was measured"
    line = _VERDICTS[overall(compared)]
    bounds = sum(one.after.threshold is not None for one in compared)
    return f"{line} ({bounds} of {len(compared)} numbers have one)" if bounds else line


def headlines(compared: Sequence[Comparison]) -> list[Comparison]:
    """Return the few numbers that tell the outcome, at most three."""
    chosen: list[Comparison] = []
    for audit in dict.fromkeys(one.after.audit for one in compared):
        own = [one for one in compared if one.after.audit == audit]
        wanted = _HEADLINES.get(audit, (own[0].after.metric,))
        for metric in wanted:
            chosen += [one for one in own if one.after.metric == metric][:1]
    return chosen[:MAX_HEADLINES]


def unfolded(compared: Sequence[Comparison]) -> list[Comparison]:
    """Return the numbers that a report shows at once: all of them, while they are few.

    Of many it is those with a bound, those that compare an attack with the same attack on
    retrained models (named ``excess`` and so on), and those that the summary tells.
    """
    if len(compared) <= MAX_UNFOLDED:
        return list(compared)
    told = {one.key for one in headlines(compared)}
    return [
        one
        for one in compared
        if one.after.threshold is not None
        or one.after.metric.startswith("excess")
        or one.key in told
    ]


def summary(facts: Facts, compared: Sequence[Comparison]) -> list[str]:
    """Return what was asked, what was done and how it came out, in five to eight sentences."""
    return [
        _asked(facts),
        _done(facts),
        guard_sentence(facts),
        *notes(facts),
        *[outcome(one) for one in headlines(compared)],
        _judged(compared),
        "No measurement can prove that nothing is left; what these numbers do not show is said "
        "below.",
    ]


def notes(facts: Facts) -> tuple[str, ...]:
    """Return what the method wants its user to know."""
    history = facts.histories.get("forget")
    return history.notes if history is not None else ()


def guard_sentence(facts: Facts) -> str:
    """Return what the collapse guard did."""
    if facts.plan.method.name == "given":
        return "The model was changed elsewhere, so no collapse guard watched over it."
    history = facts.histories.get("forget")
    if history is not None and history.stopped is not None:
        return (
            f"The collapse guard ended the method early: {history.stopped.reason}; the model of "
            f"step {history.stopped.step} was kept."
        )
    if facts.recipe.get("guard") is None:
        return "The collapse guard was turned off."
    if not facts.plan.data.counts.get("retain"):
        return "The collapse guard had no retained records to watch."
    if history is not None and not history.guarded:
        return "This method runs without the collapse guard."
    return "The collapse guard watched the retained records and had no reason to stop the method."


def outcome(one: Comparison) -> str:
    """Return one number before, after and retrained as a sentence."""
    title = one.after.title
    if one.after.value is None:
        return f"{title}: {number(None)} ({one.after.note or 'no reason was given'})."
    unit = one.after.unit
    parts = []
    if one.before is not None and one.before.value is not None:
        parts.append(f"{number(one.before.value, unit)} before")
    parts.append(f"{number(one.after.value, unit)} after")
    if one.retrained is not None:
        parts.append(f"{number(one.retrained, unit)} for retrained models")
    return f"{title}: {', '.join(parts)}; {_reading(one)}."


def limits(facts: Facts, compared: Sequence[Comparison]) -> list[str]:
    """Return what the numbers show and what they do not, one statement each."""
    counts = facts.plan.data.counts
    told = [
        "They compare models on the audited records only. A question, a paraphrase or an attack "
        "that no audit asked may still bring something back.",
    ]
    if facts.plan.method.guarantee == "exact":
        told.append(
            "The method never reads the forgotten records while it makes the new model, so their "
            "removal holds by construction, as far as the starting point never saw them either."
        )
    elif facts.plan.method.evidence == "output-suppressed":
        told.append(
            "Nothing was erased: the weights still hold the records, and whoever has the files can "
            "take the parts apart and gets the model before forgetting back. A part that was "
            "taught the records is a leak of its own; keep it like the records."
        )
    elif facts.plan.method.evidence == "unknown":
        told.append(
            "The model was changed elsewhere; what was done to its weights is not known here."
        )
    else:
        told.append(
            "The method is approximate: it changes weights until the model behaves differently, "
            "and gives no guarantee that the influence of the records is gone from the weights."
        )
    if facts.plan.method.maturity == "experimental":
        told.append("The method is marked experimental: it is not yet proven in this tool.")
    if not facts.references:
        told.append(
            "There is no retrained model to compare with, so how the model ought to behave without "
            "the records is unknown."
        )
    elif len(facts.references) == 1:
        told.append(
            "There is one retrained model only, so it is unknown how far two retrained models lie "
            "apart by chance; a gap can't be told from noise."
        )
    else:
        told.append(
            f"The noise floor is the largest distance between {len(facts.references)} retrained "
            "models. It comes from few models and is itself uncertain; a gap within it is no "
            "evidence of a difference."
        )
    if counts.get("forget", 0) < FEW_RECORDS:
        told.append(
            f"The request names {count(counts.get('forget', 0), 'record')}; with so few, intervals "
            "are wide and a test can miss a real difference."
        )
    if any(one.after.metric == "forget_quality" for one in compared):
        told.append(
            "A high forget quality means that a test found no difference to retraining. It is not "
            "a proof that there is none."
        )
    return told


def _asked(facts: Facts) -> str:
    plan, counts = facts.plan, facts.plan.data.counts
    forget, retain = counts.get("forget", 0), counts.get("retain", 0)
    kept = f" and keep that of {retain}" if retain else ""
    return (
        f"This run was asked to remove the influence of {count(forget, 'record')}{kept} in a "
        f"{kind_words(plan.model.kind)} ({plan.model.name}, data set {plan.data.name})."
    )


def _done(facts: Facts) -> str:
    method = facts.plan.method
    if method.name == "given":
        done = "The model after forgetting was made elsewhere and is only audited here"
    else:
        history = facts.histories.get("forget")
        steps = f" for {count(len(history.steps), 'step')}" if history and history.steps else ""
        done = f"The method {method.name} changed the model{steps}"
    if not facts.references:
        return f"{done}; nothing was retrained for comparison."
    models = "model" if len(facts.references) == 1 else "models"
    return (
        f"{done}, and {len(facts.references)} {models} retrained without the records serve as the "
        "yardstick."
    )


def _judged(compared: Sequence[Comparison]) -> str:
    if not compared:
        return "No audit was asked for, so nothing is known about the outcome."
    verdicts = [one.after.verdict for one in compared if one.after.verdict != "not_applicable"]
    if not verdicts:
        return (
            "No bound was fixed before forgetting, so this report describes the outcome and does "
            "not judge it."
        )
    parts = [
        f"{verdicts.count(verdict)} {words}"
        for verdict, words in (("pass", "met"), ("fail", "not met"), ("inconclusive", "undecided"))
        if verdict in verdicts
    ]
    return f"Bounds fixed before forgetting: {', '.join(parts)}."


def _reading(one: Comparison) -> str:
    """Return how to read a comparison, by its direction."""
    if one.after.direction in ("higher", "lower"):
        return f"{one.after.direction} is better{_share(one)}"
    if one.retrained is None or one.after.value is None:
        return f"measured on {set_words(one.after.record_set)}, nothing to compare with"
    if one.within_noise:
        return "as close to retraining as two retrained models are to each other"
    if one.before is None or one.before.value is None:
        return "closer to retraining is better"
    moved = abs(one.before.value - one.retrained) - abs(one.after.value - one.retrained)
    if moved > 0:
        return "closer to retraining than before"
    return "no closer to retraining than before"


def _share(one: Comparison) -> str:
    """Return how much of a utility is left, where that is what the number is about."""
    before = one.before.value if one.before is not None else None
    if one.after.record_set == "forget" or one.after.direction != "higher" or not before:
        return ""
    assert one.after.value is not None  # the caller has written it
    return f", {100 * one.after.value / before:.0f} % of the value before"
