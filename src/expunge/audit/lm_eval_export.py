"""Findings in the format of lm-evaluation-harness' results, for tools that read those.

It needs neither the harness nor torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pydantic

from expunge.core.errors import DataError, IntegrityError
from expunge.core.files import read_json
from expunge.core.finding import Finding, Interval

NORMAL = "normal"
UNNAMED = "none"  # what the harness calls a metric without a filter


def read_findings(path: Path) -> list[Finding]:
    """Read the ``findings.json`` of a run.

    Raises:
        StorageError: The file is absent or unreadable.
        IntegrityError: It holds no findings.
    """
    try:
        return pydantic.TypeAdapter(list[Finding]).validate_python(read_json(path))
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "value"
        raise IntegrityError(
            f"{path} holds no findings: {place}: {first['msg']}; name the findings.json of a run"
        ) from None


def to_lm_eval(findings: Iterable[Finding]) -> dict[str, Any]:
    """Return findings in the format of the harness's results.

    One task, ``expunge_<audit>``, stands for the findings of one audit on one model and record set,
    which follow in the name. A number that could not be computed is ``"N/A"``, and so is a standard
    error that no normal interval tells. What the format has no place for (intervals, references,
    thresholds, verdicts, notes) is in ``configs``, under ``metadata.findings``.

    Args:
        findings: Any findings; write the result with ``core.files.write_json``.

    Raises:
        DataError: Two findings are of the same number.
    """
    tasks: dict[str, dict[str, Finding]] = {}
    for finding in findings:
        metrics = tasks.setdefault(_task_name(finding), {})
        if finding.metric in metrics:
            raise DataError(
                f"two findings are {_task_name(finding)}.{finding.metric}; export those of one "
                "audit run at a time"
            )
        metrics[finding.metric] = finding
    numbers = {name: max(f.n for f in metrics.values()) for name, metrics in tasks.items()}
    return {
        "results": {name: _row(name, numbers[name], metrics) for name, metrics in tasks.items()},
        "group_subtasks": {name: [] for name in tasks},
        "configs": {name: _task_config(name, metrics) for name, metrics in tasks.items()},
        "versions": {name: _version(metrics) for name, metrics in tasks.items()},
        "n-shot": dict.fromkeys(tasks, 0),
        "higher_is_better": {
            name: {metric: _higher_is_better(f) for metric, f in metrics.items()}
            for name, metrics in tasks.items()
        },
        "n-samples": {name: {"original": n, "effective": n} for name, n in numbers.items()},
    }


def half_width(stderr: float, level: float = 0.95) -> float:
    """Return half the width of the normal interval of a standard error."""
    return stderr * _quantile(level)


def _quantile(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)


def _task_name(finding: Finding) -> str:
    seed = "" if finding.seed is None else f"seed{finding.seed}"
    words = ("expunge", finding.audit, finding.record_set, finding.subject, finding.part, seed)
    return "_".join(word for word in words if word)


def _row(name: str, n: int, metrics: Mapping[str, Finding]) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "alias": name, "sample_len": n}
    for metric, finding in metrics.items():
        value = finding.value
        row[f"{metric},{UNNAMED}"] = "N/A" if value is None else float(value)
        row[f"{metric}_stderr,{UNNAMED}"] = _stderr(finding.interval)
    return row


def _stderr(interval: Interval | None) -> float | str:
    if interval is None or interval.method != NORMAL:
        return "N/A"
    return (interval.high - interval.low) / (2 * _quantile(interval.level))


def _task_config(name: str, metrics: Mapping[str, Finding]) -> dict[str, Any]:
    findings = [finding.to_json() for finding in metrics.values()]
    return {"task": name, "metadata": {"version": _version(metrics), "findings": findings}}


def _version(metrics: Mapping[str, Finding]) -> int:
    return max(finding.version for finding in metrics.values())


def _higher_is_better(finding: Finding) -> bool | None:
    return {"higher": True, "lower": False}.get(finding.direction)
