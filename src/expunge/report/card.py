"""``MODEL_CARD.md``: what the new model is, what was removed from it, and what is known of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from expunge.core.files import write_text
from expunge.report import narrative
from expunge.report.comparison import Comparison, comparisons
from expunge.report.facts import Facts, read_facts
from expunge.report.wording import interval, number, one_line, set_words, verdict_words

CARD = "MODEL_CARD.md"


def write_model_card(folder: Path) -> Path:
    """Write the model card of a run folder: a YAML header for programs, Markdown for people.

    Args:
        folder: The run folder.

    Returns:
        The card.

    Raises:
        StorageError: The folder holds no finished run, or cannot be written.
        IntegrityError: A file is truncated, or lacks something that a run writes.
    """
    facts = read_facts(folder)
    compared = comparisons(facts.findings)
    header = yaml.safe_dump(_header(facts, compared), sort_keys=False)
    path = folder / CARD
    write_text(path, f"---\n{header}---\n\n" + "\n".join(_body(facts, compared)))
    return path


def markdown(text: object) -> str:
    """Return text as Markdown shows it: no markup, no HTML, one line."""
    return (
        re.sub(r"([\\`*_\[\]#|~$])", r"\\\1", one_line(text))
        .replace("&", "&amp;")
        .replace("<", "&lt;")
    )


def _header(facts: Facts, compared: Sequence[Comparison]) -> dict[str, Any]:
    plan = facts.plan
    return {
        "base_model": plan.model.name,
        "datasets": [plan.data.name],
        "tags": ["machine-unlearning", "expunge"],
        "unlearning": {
            "method": plan.method.name,
            "settings": plan.method.config,
            "guarantee": plan.method.guarantee,
            "evidence": plan.method.evidence,
            "maturity": plan.method.maturity,
            "records": plan.data.counts,
            "retrained_references": len(facts.references),
        },
        "findings": [_finding(one) for one in compared],
        "limits": narrative.limits(facts, compared),
        "digests": {
            "run": facts.digest,
            "sets": facts.sets.digest(),
            "models": {name: model.digest for name, model in facts.models.items()},
        },
    }


def _finding(one: Comparison) -> dict[str, Any]:
    after = one.after
    return {
        "audit": after.audit,
        "metric": after.metric,
        "version": after.version,
        "record_set": after.record_set,
        "before": one.before.value if one.before else None,
        "after": after.value,
        "retrained": one.retrained,
        "gap": one.gap,
        "noise_floor": one.noise_floor,
        "n": after.n,
        "verdict": after.verdict,
    }


def _body(facts: Facts, compared: Sequence[Comparison]) -> Iterable[str]:
    plan = facts.plan
    yield f"# Model card: {markdown(plan.model.name)} after {markdown(plan.method.name)}"
    yield ""
    yield " ".join(markdown(sentence) for sentence in narrative.summary(facts, compared))
    yield ""
    yield "## Method"
    yield ""
    yield f"{markdown(plan.method.title)} Source: {markdown(plan.method.source or 'none given')}."
    yield ""
    yield "## Findings"
    yield ""
    if compared:
        yield "| number | records | before | after | interval | retrained | gap | verdict |"
        yield "|---|---|---|---|---|---|---|---|"
    else:
        yield "Nothing was measured."
    for one in compared:
        cells = (
            one.after.title,
            f"{set_words(one.after.record_set)}, n = {one.after.n}",
            number(one.before.value if one.before else None, one.after.unit),
            number(one.after.value, one.after.unit),
            interval(one.after.interval, one.after.unit),
            number(one.retrained, one.after.unit),
            number(one.gap, one.after.unit, signed=True),
            verdict_words(one.after.verdict),
        )
        yield "| " + " | ".join(markdown(cell) for cell in cells) + " |"
    yield ""
    yield "## What the numbers do not show"
    yield ""
    for limit in narrative.limits(facts, compared):
        yield f"- {markdown(limit)}"
    yield ""
    yield "## Reproduce"
    yield ""
    yield "    " + one_line(plan.command)
    yield ""
