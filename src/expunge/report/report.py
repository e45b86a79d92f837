"""``report.html``: one self-contained page that tells a run from its files, and its short form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from expunge.core.files import write_text
from expunge.report import narrative
from expunge.report.charts import charts
from expunge.report.comparison import Comparison, by_record_set, comparisons, folded, overall
from expunge.report.facts import EXAMPLES, REPORT, Facts, read_facts
from expunge.report.losses import losses_of, read_scored
from expunge.report.records import write_records
from expunge.report.rendering import render, require_libraries
from expunge.report.wording import count, duration, number, one_line

MAX_RECIPE_CHARACTERS = 20_000
MAX_IDS = 100
MAX_SUMMARY_NUMBERS = 5

# The numbers of the short form with their record sets, in this order.
_SUMMARY = (
    ("forget_quality", "forget"),
    ("probability", "forget"),
    ("rouge_l", "forget"),
    ("model_utility", ""),
    ("average_gap", ""),
    ("ua", "forget"),
    ("ra", "retain"),
    ("ta", "test"),
    ("auc", "forget"),
)


def write_report(folder: Path) -> Path:
    """Write ``report.html`` of a run folder and, beside it, the page of its records.

    The same files give the same bytes.

    Args:
        folder: The run folder.

    Returns:
        The report.

    Raises:
        ConfigError: A library that pages are made with is not installed.
        StorageError: The folder holds no finished run, or cannot be written.
        IntegrityError: A file is truncated, or lacks something that a run writes.
    """
    require_libraries()
    facts = read_facts(folder)
    scored = read_scored(folder, facts.models)
    compared = comparisons(facts.findings)
    first = narrative.unfolded(compared)
    records = write_records(folder, facts, scored)
    page = render(
        "report.html",
        facts=facts,
        title=f"Unlearning report: {facts.plan.name}",
        verdict=overall(compared),
        verdict_line=narrative.verdict_line(compared),
        summary=narrative.summary(facts, compared),
        guard=narrative.guard_sentence(facts),
        limits=narrative.limits(facts, compared),
        groups=by_record_set(first),
        folded=folded(compared, first),
        parts=_parts(facts, compared),
        recipe=_shortened(facts.recipe_text),
        forgotten=facts.sets.forget[:MAX_IDS],
        longest=max(facts.timing.values(), default=0.0),
        examples=EXAMPLES if facts.has_examples else None,
        records=records.name if records else None,
        **charts(facts, compared, losses_of(scored)),
    )
    path = folder / REPORT
    write_text(path, page)
    return path


def summary_lines(folder: Path) -> list[str]:
    """Return the run in about ten lines for a terminal.

    Args:
        folder: The run folder, with its report written.

    Raises:
        StorageError: The folder holds no finished run.
        IntegrityError: A file is truncated, or lacks something that a run writes.
    """
    facts = read_facts(folder)
    compared = comparisons(facts.findings)
    counts = facts.plan.data.counts
    rows = [
        (
            "forgotten",
            f"{count(counts.get('forget', 0), 'record')} of {facts.plan.data.name}, "
            f"by {facts.plan.method.name} from {facts.plan.model.name}; "
            f"{counts.get('retain', 0)} retained",
        ),
    ]
    by_name = {(one.after.metric, one.after.record_set): one for one in compared}
    listed = [by_name[name] for name in _SUMMARY if name in by_name]
    for one in (listed or compared)[:MAX_SUMMARY_NUMBERS]:
        if one.after.value is None:
            rows.append((one.label, f"{number(None)}: {one.after.note}"))
            continue
        unit = one.after.unit
        before = number(one.before.value if one.before else None, unit)
        ceiling = f" (retrained {number(one.retrained, unit)})" if one.retrained is not None else ""
        rows.append((one.label, f"{before} -> {number(one.after.value, unit)}{ceiling}"))
    rows += [
        ("guard", narrative.guard_sentence(facts)),
        *(("note", text) for text in narrative.notes(facts)),
        ("verdict", narrative.verdict_line(compared)),
        ("time", duration(sum(facts.timing.values()))),
        ("report", str(folder / REPORT)),
    ]
    lines = [(one_line(label), one_line(text)) for label, text in rows]
    width = max(len(label) for label, _ in lines)
    return [f"{label:<{width}}  {text}" for label, text in lines]


def _parts(facts: Facts, compared: list[Comparison]) -> dict[str, Any] | None:
    """Return what the parts of a composite say of the forgotten records, each alone."""
    if facts.plan.method.evidence != "output-suppressed":
        return None
    told = [one for one in compared if one.after.record_set == "forget"]
    names = [found.part for found in told[0].parts] if told else []
    return {"names": names, "rows": [(one, [f.value for f in one.parts]) for one in told]}


def _shortened(text: str) -> str:
    if len(text) <= MAX_RECIPE_CHARACTERS:
        return text
    return text[:MAX_RECIPE_CHARACTERS] + "\n[the rest is in recipe.yaml]\n"
