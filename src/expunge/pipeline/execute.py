"""Execute a recipe: the main job, resumable step by step.

Processes that were launched together carry out the same steps. The main one owns the run folder;
the others work beside it in folders that are thrown away.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from expunge.core.digest import digest_json
from expunge.core.errors import ConfigError, IntegrityError
from expunge.core.files import (
    PARTIAL,
    PROBE,
    read_json_lines,
    remove_tree,
    require_writable,
    write_bytes,
    write_json,
)
from expunge.core.run import Run
from expunge.engine.workers import Workers, workers
from expunge.forget.method import own_answers
from expunge.pipeline import steps
from expunge.pipeline.recipe import Recipe, decisive
from expunge.pipeline.references import cache_folder
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
# What the other processes need not see of a run folder: they have no part in checkpoints.
_MAIN_ONLY = (LOCK, "*" + PARTIAL, "HEAD.json", "state-*.safetensors", "events.jsonl")


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
    team = workers()
    team.require_device(recipe.machine.device)
    if not team.main:
        with tempfile.TemporaryDirectory(prefix="expunge-") as scratch:
            _follow(recipe, folder, Path(scratch), team, watch)
        return folder
    _require_run_folder(folder)
    work = prepare(recipe, folder, quiet=quiet, watch=watch)
    base = check_models(work)
    with _locked(folder):  # nothing is written before everything has been checked
        record(work)
        outputs = _work(work, base, team)
        _close(work, outputs)
    team.wait()
    return folder


def _follow(
    recipe: Recipe,
    folder: Path,
    scratch: Path,
    team: Workers,
    watch: Callable[[Run], None] | None,
) -> None:
    """Take part in the main process's work, from a folder of links to what its folder held."""
    machine = dataclasses.replace(recipe.machine, trackers=())
    recipe, own = dataclasses.replace(recipe, machine=machine), scratch / "run"
    work = prepare(recipe, own, quiet=True, watch=watch)
    base = check_models(work)
    # All would write the same references to the same place.
    cache = os.environ.get("EXPUNGE_CACHE", "")
    _link(cache_folder(), scratch / "cache")
    os.environ["EXPUNGE_CACHE"] = str(scratch / "cache")
    try:
        _work(work, base, team, folder)
    finally:
        os.environ["EXPUNGE_CACHE"] = cache
    team.wait()


def _link(source: Path, target: Path) -> None:
    """Make links to the files of a folder that another one lacks."""

    def link(file: str, place: str) -> None:
        if not os.path.lexists(place):
            os.symlink(file, place)

    if source.exists():
        left = shutil.ignore_patterns(*_MAIN_ONLY)
        shutil.copytree(
            source.resolve(), target, copy_function=link, ignore=left, dirs_exist_ok=True
        )
    journal = target / "journal.jsonl"
    if journal.is_symlink():  # it grows in place
        text = journal.read_bytes()
        journal.unlink()
        write_bytes(journal, text)


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


def _work(
    work: Work, base: str, team: Workers, leader: Path | None = None
) -> dict[str, dict[str, Any]]:
    """Do every step; beside the main process, see at each what its folder (``leader``) holds."""

    def meet() -> None:
        team.wait()
        if leader is not None:
            _link(leader, work.folder)
        team.wait()

    def step(
        name: str, inputs: dict[str, Any], make: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        team.check(work.run)
        meet()
        return work.journal.step(name, inputs, make)

    meet()
    known = digest_json(read_json_lines(work.journal.path))
    team.require_same(known, "run folder; put --out where every process can read it")
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
        {**common, "before": before, **_answers(work)},
        partial(steps.forget, work, before)
        if work.method
        else partial(steps.given_after, work, before),
    )
    told = {**common, "outputs": {**outputs}}
    # Nobody leaves a step out, for each begins with a word among all.
    outputs["audit"] = step(
        "audit",
        told,
        lambda: steps.audit(work, count, outputs["after"]["parts"]) if team.main else {},
    )
    if work.recipe.examples:
        step("examples", told, lambda: steps.examples(work, count))
    return outputs


def _answers(work: Work) -> dict[str, Any]:
    """Return the answers of one's own that a method teaches, for they may change in their file."""
    own = own_answers(work.method[1], work.recipe.seed) if work.method else ()
    return {"answers": digest_json(own)} if own else {}


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
