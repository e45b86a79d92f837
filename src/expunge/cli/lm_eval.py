"""``expunge audit lm-eval``: tasks of lm-evaluation-harness on the models that are compared."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expunge.core.errors import ConfigError, Problems

if TYPE_CHECKING:
    from expunge.audit.lm_eval import Load
    from expunge.core.finding import Finding
    from expunge.core.finding import Subject as Role

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def audit_lm_eval(
    after: Annotated[
        str | None, typer.Option(help="Model after forgetting: folder or hub name.")
    ] = None,
    before: Annotated[str | None, typer.Option(help="Model before forgetting.")] = None,
    reference: Annotated[
        list[str] | None, typer.Option(help="Model retrained without the records (may repeat).")
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="Task, group or tag of the harness (may repeat).")
    ] = None,
    tasks_folder: Annotated[
        Path | None, typer.Option(help="Folder of YAML tasks; they go before the harness's own.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Most documents of each task, from the first.")
    ] = None,
    few_shot: Annotated[int | None, typer.Option(help="Examples before each question.")] = None,
    device: Annotated[str, typer.Option(help="Device of torch, such as cuda.")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="File for the findings (JSON).")] = None,
    export: Annotated[
        Path | None, typer.Option(help="File for the findings as the harness writes results.")
    ] = None,
    findings: Annotated[
        Path | None, typer.Option(help="Findings of a run: only export them, run no task.")
    ] = None,
) -> None:
    """Run tasks of lm-evaluation-harness, or write findings as it writes its results."""
    _check_files(out=out, export=export, findings=findings)
    if findings is not None:
        others: dict[str, Any] = {"after": after, "before": before, "reference": reference}
        others |= {"task": task, "tasks-folder": tasks_folder, "limit": limit}
        others |= {"few-shot": few_shot, "out": out}
        _export(findings, export, others)
        return
    if after is None or not task:
        raise ConfigError(
            "audit lm-eval: give --after MODEL and --task NAME, or --findings FILE and "
            "--export FILE"
        )
    from expunge.audit.lm_eval import lm_eval_findings
    from expunge.audit.lm_eval_export import to_lm_eval
    from expunge.core.files import require_writable, write_json
    from expunge.engine.device import require_device

    require_device(device)
    for path in (out, export):
        if path is not None:
            require_writable(path.parent)
    models: dict[Role, list[Load]] = {
        "before": [] if before is None else [partial(_load, before, device)],
        "after": [partial(_load, after, device)],
        "reference": [partial(_load, name, device) for name in reference or []],
    }
    found = lm_eval_findings(
        models, task, include_path=tasks_folder, limit=limit, num_fewshot=few_shot
    )
    if out is not None:
        write_json(out, [finding.to_json() for finding in found])
    if export is not None:
        write_json(export, to_lm_eval(found))
    for line in _lines(found):
        typer.echo(line)


def _check_files(**files: Path | None) -> None:
    """Refuse files that would overwrite one another."""
    problems = Problems("audit lm-eval")
    names: dict[Path, str] = {}
    for name, path in files.items():
        if path is None:
            continue
        if path.is_dir():
            problems.add(f"--{name} {path} is a folder; name a file")
        other = names.setdefault(path.resolve(), name)
        if other != name:
            problems.add(f"--{other} and --{name} are the same file {path}; name another one")
    problems.raise_if_any()


def _export(findings: Path, export: Path | None, others: dict[str, Any]) -> None:
    from expunge.audit.lm_eval_export import read_findings, to_lm_eval
    from expunge.core.files import write_json

    given = [f"--{name}" for name, value in others.items() if value not in (None, [])]
    if export is None or given:
        raise ConfigError(
            "audit lm-eval: --findings FILE goes with --export FILE alone"
            + (f"; leave out {', '.join(given)}" if given else "")
        )
    write_json(export, to_lm_eval(read_findings(findings)))
    typer.echo(str(export))


def _load(name: str, device: str) -> tuple[Any, Any]:
    from expunge.models.language import read_language_model

    model, tokenizer = read_language_model(name)
    return model.to(device), tokenizer


def _lines(findings: list[Finding]) -> list[str]:
    """Return one line per number, then what is to be said of them."""
    from expunge.report.comparison import comparisons
    from expunge.report.wording import interval, number, one_line

    rows = []
    for one in comparisons(findings):
        after = one.after
        before = "" if one.before is None else f"{number(one.before.value)} -> "
        retrained = "" if one.retrained is None else f" (retrained {number(one.retrained)})"
        row = [one_line(after.metric), f"{before}{number(after.value)}{retrained}", f"n {after.n}"]
        rows.append([*row, f"95% {interval(after.interval)}" if after.interval else ""])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    notes = dict.fromkeys(one_line(found.note) for found in findings if found.note)
    return [*lines, *(f"note: {note}" for note in notes)]
