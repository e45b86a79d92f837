"""``expunge``: the commands, thin wrappers around the pipeline."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from expunge.cli.catalogue import catalogue
from expunge.cli.lm_eval import app as lm_eval
from expunge.cli.request import app as request
from expunge.core.errors import ConfigError, ExpungeError, Interrupted

if TYPE_CHECKING:
    from expunge.core.finding import Finding
    from expunge.core.run import Run

BAD_INPUT = 2
INTERRUPTED = 3
_SIGNALS = (signal.SIGINT, signal.SIGTERM)

app = typer.Typer(
    name="expunge",
    help="Forget anything from any model, and prove it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for what in ("methods", "audits", "tasks", "sources", "models"):
    app.add_typer(catalogue(what), name=what)
app.add_typer(request, name="request")

Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a setting: --set forget.beta=0.5 (may be repeated)."),
]
Out = Annotated[Path | None, typer.Option("--out", help="Run folder; a used one is resumed.")]


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="Recipe file (YAML).")],
    set_: Sets = None,
    out: Out = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and show the plan; change nothing.")
    ] = False,
) -> None:
    """Carry out a recipe: train (optional), forget, audit, report."""
    from expunge.pipeline.execute import execute, plan_lines
    from expunge.pipeline.recipe import read_recipe

    parsed = read_recipe(recipe, set_ or [])
    folder = out or Path("runs") / parsed.name
    if dry_run:
        _say(plan_lines(parsed, folder))
        return
    _finish(execute(parsed, folder, watch=_cancel_on_signal))


@app.command()
def forget(
    model: Annotated[str, typer.Option(help="Model folder or hub name (transformers).")],
    forget: Annotated[Path, typer.Option(help="Records to forget (JSONL, CSV or Parquet).")],
    out: Annotated[Path, typer.Option(help="Run folder; the new model is in models/after.")],
    retain: Annotated[Path | None, typer.Option(help="Records that must stay.")] = None,
    method: Annotated[str, typer.Option(help="Method; see `expunge methods`.")] = "npo",
    seed: Annotated[int, typer.Option(help="Root of every random stream.")] = 0,
    set_: Sets = None,
) -> None:
    """Remove records from a language model and write the new model; no audit."""
    from expunge.pipeline.execute import execute
    from expunge.pipeline.shortcuts import forget_recipe

    recipe = forget_recipe(
        model=model, forget=forget, retain=retain, method=method, seed=seed, changes=set_ or []
    )
    _finish(execute(recipe, out, watch=_cancel_on_signal))


imports = typer.Typer(add_completion=False, rich_markup_mode=None)
_AUDITS = {"import": imports, "lm-eval": lm_eval}


class _Audit(TyperCommand):
    """``audit``, which hands ``audit import`` and ``audit lm-eval`` to commands of their own."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        if args and args[0] in _AUDITS:
            command = typer.main.get_command(_AUDITS[args[0]])
            return command.make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


@app.command(
    cls=_Audit,
    epilog="Published evaluation logs are read by: expunge audit import LOG. "
    "Tasks of lm-evaluation-harness are run by: expunge audit lm-eval",
)
def audit(
    before: Annotated[str, typer.Option(help="Model before forgetting: folder or hub name.")],
    after: Annotated[str, typer.Option(help="Model after forgetting.")],
    forget: Annotated[Path, typer.Option(help="Records that were forgotten.")],
    out: Annotated[Path, typer.Option(help="Run folder for findings and report.")],
    retain: Annotated[Path | None, typer.Option(help="Records that must stay.")] = None,
    holdout: Annotated[
        Path | None, typer.Option(help="Records like the forgotten ones, never trained on.")
    ] = None,
    reference: Annotated[
        list[str] | None, typer.Option(help="Model retrained without the records (may repeat).")
    ] = None,
    audits: Annotated[
        list[str] | None, typer.Option("--audit", help="Audit; see `expunge audits`.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Root of every random stream.")] = 0,
    set_: Sets = None,
) -> None:
    """Measure what is left in a language model that somebody changed."""
    from expunge.pipeline.execute import execute
    from expunge.pipeline.shortcuts import audit_recipe

    recipe = audit_recipe(
        before=before,
        after=after,
        references=reference or [],
        forget=forget,
        retain=retain,
        holdout=holdout,
        audits=audits or ["tofu", "mia"],
        seed=seed,
        changes=set_ or [],
    )
    _finish(execute(recipe, out, watch=_cancel_on_signal))


@imports.command()
def audit_import(
    log: Annotated[Path, typer.Argument(help="Evaluation log in TOFU's format (JSON).")],
    retrained: Annotated[
        Path | None,
        typer.Option(help="Log of a model retrained without the forgotten records."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File for the findings (JSON).")] = None,
    common_rows: Annotated[
        bool,
        typer.Option("--common-rows", help="Test the rows in both logs where they differ."),
    ] = False,
) -> None:
    """Compute TOFU's numbers from the evaluation log of somebody else's model."""
    from expunge.audit.tofu_log import read_tofu_log
    from expunge.audit.tofu_log_findings import tofu_log_findings
    from expunge.core.files import write_json

    given = [path for path in (log, retrained) if path is not None]
    if out is not None and out.resolve() in [path.resolve() for path in given]:
        raise ConfigError(f"--out {out} is a log that is read; name another file")
    own, *others = [read_tofu_log(path) for path in given]
    findings = tofu_log_findings(own, *others, common_rows=common_rows)
    if out is not None:
        write_json(out, [found.to_json() for found in findings])
    _say(_table(findings))


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help="Workload, such as lm.")],
    out: Out = None,
    set_: Sets = None,
) -> None:
    """Compare methods on a reference experiment; a bench that was stopped goes on."""
    from expunge.core.config import override
    from expunge.core.run import Run
    from expunge.workloads.workload import run_workload

    folder = out or Path("runs") / f"bench-{name}"
    run = Run(folder=folder / "checkpoints", quiet=False)
    _cancel_on_signal(run)
    _say([str(run_workload(name, override({}, set_ or []), folder, run))])


@app.command()
def report(run: Annotated[Path, typer.Argument(help="Run folder.")]) -> None:
    """Write the report of a run again from its files."""
    from expunge.report.card import write_model_card
    from expunge.report.report import write_report

    write_model_card(run)
    _say([str(write_report(run))])


@app.command()
def purge(run: Annotated[Path, typer.Argument(help="Run folder.")]) -> None:
    """Remove the page that shows records: answers of a run, or neighbours of a request."""
    from expunge.report.examples import purge as remove

    removed = remove(run)
    _say([f"removed {path}" for path in removed] or [f"{run} holds no text of records"])


def main() -> None:
    """Run the command line; a wrong input is one message and exit code 2, never a traceback."""
    for number in _SIGNALS:
        signal.signal(number, _stop)
    try:
        app(standalone_mode=True)
    except Interrupted as error:
        _fail(error, INTERRUPTED)
    except (ExpungeError, OSError) as error:
        _fail(error, BAD_INPUT)


def _fail(error: Exception, code: int) -> None:
    from expunge.report.wording import clean

    print(f"error: {clean(error)}", file=sys.stderr)  # noqa: T201
    sys.exit(code)


def _say(lines: list[str]) -> None:
    from expunge.report.wording import clean

    for line in lines:
        typer.echo(clean(line))


def _table(findings: list[Finding]) -> list[str]:
    """Return findings as aligned columns, then what is to be said of them."""
    from expunge.report.wording import one_line

    rows = [("metric", "records", "value", "n", "95% interval", "retrained")]
    for found in findings:
        ends = found.interval
        rows.append(
            (
                found.metric,
                found.record_set or "all",
                "n/a" if found.value is None else f"{found.value:.4g}",
                str(found.n),
                f"{ends.low:.4g} to {ends.high:.4g}" if ends else "",
                f"{found.reference.values[0]:.4g}" if found.reference else "",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    notes = dict.fromkeys(one_line(found.note) for found in findings if found.note)
    return [*lines, *(f"note: {note}" for note in notes)]


def _finish(folder: Path) -> None:
    from expunge.report.report import summary_lines

    _say(summary_lines(folder))


def _stop(*_: Any) -> NoReturn:
    raise Interrupted("cancelled before the work began; start again")


def _cancel_on_signal(run: Run) -> None:
    """Let Ctrl-C and SIGTERM end a run in a resumable state; a second one ends it at once."""

    def cancel(*_: Any) -> None:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        run.cancel()

    for number in _SIGNALS:
        signal.signal(number, cancel)
