"""Execute a recipe: the main job, resumable step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from expunge.core.digest import digest_json
from expunge.core.errors import ConfigError, IntegrityError
from expunge.core.files import PARTIAL, PROBE, remove_tree, require_writable, write_json
from expunge.core.run import Run
from expunge.pipeline import steps
from expunge.pipeline.recipe import Recipe, decisive
from expunge.pipeline.work import (
    RECIPE,
    Work,
    check_models,
    num_references,
    plan,
    prepare,
    record,
)

LOCK = ".lock"


def execute(
    recipe: Recipe,
    folder: Path,
    *,
    quiet: bool = False,
    watch: Callable[[Run], None] | None = None,
) -> Path:
    """Carry out a recipe in a run folder; called again after a crash, go on where it stopped.

    Args:
        recipe: The recipe.
        folder: The run folder; made where absent.
        quiet: Show no progress.
        watch: Receives the run, so that a signal can cancel it.

    Returns:
        The run folder, with ``report.html`` in it.

    Raises:
        ExpungeError: Bad input, a spent budget, or numbers that are not finite; files written so
            far are whole, and the run can be resumed.
    """
    _require_run_folder(folder)
    work = prepare(recipe, folder, quiet=quiet, watch=watch)
    base = check_models(work)
    with _locked(folder):  # nothing is written before everything has been checked
        record(work)
        outputs = _work(work, base)
        _close(work, outputs)
    return folder


def plan_lines(recipe: Recipe, folder: Path) -> list[str]:
    """Check a recipe without doing anything and return its plan in plain words.

    Raises:
        ExpungeError: What would also end a real run before its first step.
    """
    _require_run_folder(folder)
    work = prepare(recipe, folder, quiet=True, watch=None)
    check_models(work)
    told = plan(work)
    counts = ", ".join(f"{count} {role}" for role, count in told["data"]["counts"].items())
    training = f"{recipe.train.epochs} epochs" if recipe.train else "none, the model comes trained"
    return [
        f"plan of {recipe.name!r}, to be written to {folder}",
        f"  data        {told['data']['name']}: {counts}",
        f"  model       {told['model']['name']} ({told['model']['kind']})",
        f"  train       {training}",
        f"  references  {told['references']} retrained without the forget set",
        f"  forget      {told['method']['name']} ({told['method']['source']})",
        f"  audits      {', '.join(told['audits']) or 'none'}; {len(work.readings)} scored sets",
        "nothing was changed; leave --dry-run out to carry it out",
    ]


def _work(work: Work, base: str) -> dict[str, dict[str, Any]]:
    def step(
        name: str, inputs: dict[str, Any], make: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        work.run.check()
        return work.journal.step(name, inputs, make)

    common = {
        "recipe": decisive(work.recipe),
        "data": work.dataset.digest(),
        "sets": work.sets.digest(),
        "base": base,
    }
    outputs = {"before": step("train", common, lambda: steps.train(work))}
    count = num_references(work.recipe)
    trained = count - len(work.recipe.given_references)
    for index in range(count):
        name = f"reference-{index}"
        make = (
            partial(steps.reference, work, index)
            if index < trained
            else partial(steps.given_reference, work, index - trained, name)
        )
        outputs[name] = step(name, common, make)
    before = outputs["before"]["model"]
    outputs["after"] = step(
        "forget",
        {**common, "before": before},
        partial(steps.forget, work, before) if work.method else partial(steps.given_after, work),
    )
    told = {**common, "outputs": {**outputs}}
    outputs["audit"] = step("audit", told, lambda: steps.audit(work, count))
    if work.recipe.examples:
        step("examples", told, lambda: steps.examples(work, count))
    return outputs


def _close(work: Work, outputs: dict[str, dict[str, Any]]) -> None:
    """Write what binds the run together, then report and model card."""
    from expunge.report.card import write_model_card
    from expunge.report.report import write_report

    subjects = {name: found for name, found in outputs.items() if name != "audit"}
    write_json(work.folder / "models.json", steps.model_table(work, subjects))
    write_json(work.folder / "timing.json", work.journal.seconds())
    bound = {
        "recipe": decisive(work.recipe),
        "data": work.dataset.digest(),
        "sets": work.sets.digest(),
        "outputs": outputs,
    }
    write_json(work.folder / "digest.json", {"run": digest_json(bound), "outputs": outputs})
    remove_tree(work.folder / "checkpoints")
    write_model_card(work.folder)
    write_report(work.folder)


def _require_run_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {folder} is a file; choose a folder")
    if folder.is_dir() and not (folder / RECIPE).exists():
        begun = {LOCK, PROBE, RECIPE}  # what a run may have left that was killed at its beginning
        if any(path.name.removesuffix(PARTIAL) not in begun for path in folder.iterdir()):
            raise IntegrityError(
                f"{folder} is not empty and holds no run; choose another folder with --out"
            )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    require_writable(folder)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ConfigError(
            f"another process is working in {folder}; wait for it, or choose another --out"
        ) from error
    try:
        yield
    finally:
        lock.release()
