"""``expunge request``: find the records that a request may name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Find the records that a request may name.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@app.callback()
def request() -> None:
    """Find the records that a request may name."""


@app.command()
def like(
    recipe: Annotated[Path, typer.Argument(help="Recipe file (YAML): data, model, training.")],
    id_: Annotated[
        list[str] | None, typer.Option("--id", help="Training record as example (may repeat).")
    ] = None,
    examples: Annotated[
        Path | None, typer.Option(help="File of examples: a table of texts, a picture, or .npy.")
    ] = None,
    count: Annotated[int | None, typer.Option(help="How many records; 20 by default.")] = None,
    radius: Annotated[
        float | None, typer.Option(help="Largest cosine distance, in place of --count.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting (may be repeated).")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the page and the ids.")] = None,
) -> None:
    """Show the training records most like an example; forget nothing."""
    from expunge.pipeline.like import find_like
    from expunge.pipeline.recipe import read_recipe
    from expunge.report.neighbours import IDS

    parsed = read_recipe(recipe, set_ or [])
    page = find_like(
        parsed,
        out or Path("runs") / f"{parsed.name}-like",
        ids=id_ or [],
        examples=examples,
        count=count,
        radius=radius,
    )
    typer.echo(f"look at {page}, which holds personal data; nothing was forgotten")
    typer.echo(f"to forget them: request: {{file: {page.with_name(IDS)}}}")
