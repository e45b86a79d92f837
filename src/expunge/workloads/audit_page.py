"""The tables of ``expunge bench audits``: how often each audit flags each control."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.audit.audit import audits
from expunge.audit.stats import clopper_pearson
from expunge.core.files import write_text
from expunge.report.bench import markdown
from expunge.workloads.audit_gates import gates_of

ALPHA = 0.05
POWER = 0.95
TABLE = "table.md"
ALONE = (
    "Each bound is judged alone. A run corrects its bounds for their number (Holm), which makes "
    "some verdicts inconclusive and changes none otherwise: it raises no more false alarms than "
    "this table tells, and may see less."
)
"""How the verdicts of the tables differ from those of a run."""

CONTROLS: Mapping[str, str] = {
    "null": "null",
    "positive": "positive",
    "lookup": "1 lookup filter",
    "noise": "2 noise",
    "over_forgotten": "3 over-forgotten",
    "last_layer": "4 last layer",
    "tuned_own": "5 tuned, own seed",
    "tuned_fresh": "5 tuned, fresh seed",
}
FAKES = ("lookup", "noise", "over_forgotten", "last_layer")
# Gates of which at least one has to flag a control; of the positive one, each of them.
WATCHED: Mapping[str, tuple[str, ...]] = {
    "positive": ("mia", "lira", "tofu: forget quality", "memorization", "probe"),
    "lookup": ("paraphrase", "neighbours"),
    "noise": ("tofu: utility",),
    "over_forgotten": ("mia",),
    "last_layer": ("relearn", "probe"),
}


def bound(alpha: float, n: int) -> float:
    """Return the largest rate of false alarms that n draws allow: three deviations above alpha."""
    return alpha + 3 * math.sqrt(alpha * (1 - alpha) / n)


def summarise(
    settings: Mapping[str, Any], found: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """Return rates, intervals and what was expected of them, as plain data.

    Args:
        settings: The bench's settings.
        found: The draws of each control.
    """
    gates = [gate.name for gate in gates_of(settings["audits"])]
    rates = {
        control: {gate: _rates(draws, gate) for gate in gates} for control, draws in found.items()
    }
    return {
        "settings": dict(settings),
        "gates": gates,
        "rates": rates,
        "checks": _checks(found, rates, gates),
        "draws": {control: [dict(draw) for draw in draws] for control, draws in found.items()},
    }


def _rates(draws: Sequence[Mapping[str, Any]], gate: str) -> dict[str, Any]:
    verdicts = [draw["verdicts"][gate] for draw in draws]
    hits, n = verdicts.count("fail"), len(verdicts)
    interval = clopper_pearson(hits, n)
    return {
        "flagged": hits / n,
        "low": interval.low,
        "high": interval.high,
        "inconclusive": verdicts.count("inconclusive") / n,
        "n": n,
    }


def _checks(
    found: Mapping[str, Sequence[Mapping[str, Any]]],
    rates: Mapping[str, Mapping[str, Mapping[str, Any]]],
    gates: Sequence[str],
) -> list[dict[str, Any]]:
    """Return every expectation with what was found."""
    checks = []
    for gate in gates:
        own = rates["null"][gate]
        limit = bound(ALPHA, own["n"])
        checks.append(_check("null", gate, f"at most {limit:.3f}", own, own["flagged"] <= limit))
    for gate in WATCHED["positive"]:
        if gate in gates:
            own = rates["positive"][gate]
            fits = own["flagged"] >= POWER
            checks.append(_check("positive", gate, f"at least {POWER}", own, fits))
    for control in FAKES:
        watched = [gate for gate in WATCHED[control] if gate in gates]
        if watched:
            own = _any(found[control], watched)
            fits = own["flagged"] >= POWER
            words = " or ".join(watched)
            checks.append(_check(control, words, f"at least {POWER}", own, fits))
    for control in ("tuned_own", "tuned_fresh"):
        own = _any(found[control], gates)
        checks.append(_check(control, "any", "told", own, None))
    return checks


def _any(draws: Sequence[Mapping[str, Any]], gates: Sequence[str]) -> dict[str, Any]:
    hit = [any(draw["verdicts"][gate] == "fail" for gate in gates) for draw in draws]
    verdicts = [{"verdicts": {"": "fail" if one else "pass"}} for one in hit]
    return _rates(verdicts, "")


def _check(
    control: str, gate: str, expected: str, own: Mapping[str, Any], fits: bool | None
) -> dict[str, Any]:
    return {"control": control, "gate": gate, "expected": expected, "met": fits, **own}


def write_audits(folder: Path, results: Mapping[str, Any]) -> Path:
    """Write the tables and return their file.

    Args:
        folder: The bench's folder.
        results: As in ``results.json``.
    """
    text = "\n".join(
        [rates_table(results), checks_table(results), *(f"- {line}" for line in remarks(results))]
    )
    path = folder / TABLE
    write_text(path, text + "\n")
    return path


def rates_table(results: Mapping[str, Any]) -> str:
    """Return the share of draws that each gate flags, with its interval, by control."""
    rates, gates = results["rates"], results["gates"]
    head = ["gate", *(f"{words}, R = {rates[c][gates[0]]['n']}" for c, words in CONTROLS.items())]
    rows = [[gate, *(_cell(rates[control][gate]) for control in CONTROLS)] for gate in gates]
    return markdown(head, rows)


def checks_table(results: Mapping[str, Any]) -> str:
    """Return what was expected and what was found."""
    head = ["control", "flagged by", "expected", "found", "R", "met"]
    words = {True: "yes", False: "**no**", None: ""}
    rows = [
        [
            CONTROLS[check["control"]],
            check["gate"],
            check["expected"],
            _cell(check),
            str(check["n"]),
            words[check["met"]],
        ]
        for check in results["checks"]
    ]
    return markdown(head, rows)


def remarks(results: Mapping[str, Any]) -> list[str]:
    """Return what must be known beside the tables."""
    own = results["settings"]
    lines = [
        "A cell is the share of draws with the verdict fail and Clopper and Pearson's 95 % "
        "interval; a second number after a stroke is the share of inconclusive verdicts.",
        f"The {own['rounds']} pairings of the null control are drawn from {own['retrains']} "
        f"retrained models, the {own['positive_rounds']} of the positive control from "
        f"{own['originals']} originals, with "
        f"{own['references']} references each: they share models, so that the intervals, which "
        "take draws as independent, are too narrow.",
        ALONE,
        absent_words(own["audits"]),
        "Known epsilon: left out, since there is no differentially private training to claim one.",
    ]
    lines.append(_tuned_words(results["draws"]))
    missed = [check for check in results["checks"] if check["met"] is False]
    if missed:
        told = "; ".join(f"{c['gate']} ({CONTROLS[c['control']]})" for c in missed)
        lines.append(f"Not as expected: {told}.")
    blind = [
        gate
        for gate in results["gates"]
        if all(results["rates"][control][gate]["flagged"] == 0 for control in CONTROLS)
    ]
    if blind:
        lines.append(f"No power on any control at this size: {', '.join(blind)}.")
    return lines


def absent_words(names: Sequence[str]) -> str:
    """Say which registered audits serve no gate, so that the tables say nothing of them.

    Args:
        names: Audits that were tried.
    """
    absent = ", ".join(name for name in audits.names() if name not in names)
    return f"Not in this table, which says nothing of their false alarms and power: {absent}."


def _tuned_words(draws: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Say how many tuned fakes pass at their own seed, and what a fresh seed says of those."""

    def clean(draw: Mapping[str, Any]) -> bool:
        return "fail" not in draw["verdicts"].values()

    pairs = list(zip(draws["tuned_own"], draws["tuned_fresh"], strict=True))
    passed = [fresh for own, fresh in pairs if clean(own)]
    caught = sum(not clean(fresh) for fresh in passed)
    return (
        f"Of {len(pairs)} tuned fakes {len(passed)} fail no gate at the seed they were tuned on; "
        f"of those, a fresh seed flags {caught}."
    )


def _cell(own: Mapping[str, Any]) -> str:
    text = f"{own['flagged']:.2f} ({own['low']:.2f} to {own['high']:.2f})"
    return f"{text} / {own['inconclusive']:.2f}" if own["inconclusive"] else text
