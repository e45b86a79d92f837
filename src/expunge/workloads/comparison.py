"""Methods beside retraining on fixtures, with seeds: the jobs, their numbers, and the results.

Each pair of method and seed is a process of its own, so that its peak memory is its own, and leaves
one JSON file; a comparison that was killed goes on with the pairs that are missing.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import multiprocessing
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from expunge.audit.audit import audits, parse_config, plan_readings, run_audit
from expunge.audit.collecting import collect
from expunge.audit.evidence import Evidence, Subject
from expunge.audit.score_table import read_scores, write_scores
from expunge.core.config import to_json
from expunge.core.digest import digest_json
from expunge.core.errors import ConfigError, ExpungeError, Interrupted, near_matches
from expunge.core.files import read_json, write_json
from expunge.core.run import Run
from expunge.core.sets import Sets
from expunge.data.dataset import Dataset
from expunge.engine.weights import state_digest
from expunge.forget.method import Given, apply, methods
from expunge.models.source import Loaded
from expunge.report.bench import BenchRow, write_bench
from expunge.workloads.arm import Arm
from expunge.workloads.fixture import Fixture

_PRELOAD = ["expunge.workloads.comparison", "transformers.models.gpt2.modeling_gpt2"]
_MEASURED = ("seconds", "cpu_seconds", "mebibytes", "mebibytes_over_model")


@dataclasses.dataclass(frozen=True)
class Job:
    """One method with one seed on one fixture.

    Attributes:
        name: Name of the fixture.
        fixture: What the seed is run on.
        arm: The method.
        seed: The method's seed.
        references: Number of retrained models.
    """

    name: str
    fixture: Fixture
    arm: Arm
    seed: int
    references: int

    def settings(self) -> dict[str, Any]:
        """Return the method's settings."""
        return self.arm.settings_on(self.name, self.fixture.schedule, self.fixture.scope)

    def path(self, folder: Path) -> Path:
        """Return the file of its numbers."""
        name = "-".join(self.arm.label.replace(",", "").split())
        return folder / "jobs" / self.name / f"{name}-{self.seed}.json"

    def world(self, folder: Path) -> Path:
        """Return the folder of the fixture's models."""
        return folder / _world(self.name, self.fixture)


def compare(
    title: str,
    config: Any,
    fixtures: Mapping[str, Fixture],
    arms: Sequence[Arm],
    folder: Path,
    run: Run,
    notes: Sequence[str] = (),
) -> Path:
    """Run every method on every fixture and write numbers, table and page.

    Args:
        title: Heading of the page.
        config: The bench's settings: ``seeds``, ``references`` and ``workers``.
        fixtures: What to run on, by name.
        arms: Rows of the table.
        folder: Where results go; a used one is resumed.
        run: Context.
        notes: How to read the numbers, on the page.

    Returns:
        The page.
    """
    told = [(name, arm) for name in fixtures for arm in arms if name in (arm.only or fixtures)]
    jobs = [
        Job(name, fixtures[name].at(seed), arm, seed, config.references)
        for name, arm in told
        for seed in range(config.seeds)
    ]
    worlds = {job.world(folder): job for job in jobs}
    first = [_Call(job.name, prepare, (job, str(folder))) for job in worlds.values()]
    _call_all("original and retrained models", first, len(first), config.workers, run)
    missing = [(job, key) for job in jobs if not _done(job, folder, key := _key(job, folder))]
    calls = [_Call(f"{j.name}: {j.arm.label}", work, (j, str(folder), key)) for j, key in missing]
    _call_all("bench", calls, len(jobs), config.workers, run)
    results = {
        "title": title,
        "notes": list(notes),
        "settings": to_json(config),
        "fixtures": {name: fixture.title for name, fixture in fixtures.items()},
        "columns": {
            name: [[key, c.heading, c.digits] for key, c in fixture.columns.items()]
            for name, fixture in fixtures.items()
        },
        "standards": {
            name: _standards([job for job in jobs if job.name == name], folder) for name in fixtures
        },
        "rows": [
            dataclasses.asdict(_row([j for j in jobs if j.name == name and j.arm == arm], folder))
            for name, arm in told
        ],
    }
    write_json(folder / "results.json", results)
    return write_bench(folder, results)


def prepare(job: Job, folder: str) -> None:
    """Train and score a job's original model and references, where that is not done yet.

    Args:
        job: Any job of the world.
        folder: The bench's folder.
    """
    torch.set_num_threads(1)
    fixture, world = job.fixture, job.world(Path(folder))
    run = Run(folder=Path(folder) / "checkpoints" / world.name)
    dataset = fixture.dataset()
    sets = fixture.sets(dataset, run)
    write_json(world / "sets.json", sets.to_json())
    for name in _subject_names(job.references):
        seed = 0 if name == "before" else int(name.removeprefix("reference-"))
        role: Any = "before" if name == "before" else "reference"
        loaded = (
            fixture.before(dataset, run)
            if role == "before"
            else fixture.reference(dataset, sets, seed, run)
        )
        path, key = world / f"{name}.parquet", world / f"{name}.json"
        audited = digest_json([sets.digest(), _audited(fixture)])
        same = key.exists() and read_json(key).get("audited") == audited
        if same and path.exists() and read_scores(path).model == state_digest(loaded.model):
            continue
        subject = _subject(
            fixture, dataset, sets, loaded.model, loaded.task, role, seed or None, run
        )
        write_scores(path, subject)
        write_json(key, {"audited": audited})


def work(job: Job, folder: str, key: str) -> None:
    """Carry out one job in this process and write its numbers; a refusal is a result too.

    Args:
        job: The job.
        folder: The bench's folder.
        key: Digest of everything that decides its numbers.
    """
    torch.set_num_threads(1)
    fixture, root = job.fixture, Path(folder)
    run = Run(job.seed)
    dataset = fixture.dataset()
    sets = _sets(job.world(root))
    loaded = fixture.before(dataset, run)
    given = fixture.given(dataset, sets, loaded)
    before_mebibytes = _peak_mebibytes()
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        settings, tried = _chosen(job, loaded, given, dataset, sets)
        result = apply(job.arm.method, loaded.model, given, run, settings, in_place=True)
    except ExpungeError as error:
        write_json(job.path(root), {"key": key, "refused": str(error)})
        return
    spent = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    peak = _peak_mebibytes()
    after = _subject(fixture, dataset, sets, result.model, loaded.task, "after", None, run)
    told = {
        "key": key,
        "numbers": _numbers(fixture, job.world(root), job.references, after, sets)["after"],
        "steps": len(result.history.steps),
        "settings": settings,
        "tried": tried,
        "mebibytes": peak,
        "mebibytes_over_model": peak - before_mebibytes,
        **spent,
    }
    write_json(job.path(root), told)


def _chosen(
    job: Job, loaded: Loaded, given: Given, dataset: Dataset, sets: Sets
) -> tuple[dict[str, Any], list[float | None]]:
    """Return the settings of an arm, and the merit of each that was tried; ``None`` if refused."""
    settings = job.settings()
    if not job.arm.grid:
        return settings, []
    tried: list[float | None] = []
    for own in job.arm.grid:
        run = Run(job.seed, quiet=True)
        try:
            model = apply(job.arm.method, loaded.model, given, run, {**settings, **own}).model
        except ExpungeError:
            tried.append(None)
            continue
        tried.append(job.fixture.merit(model, loaded.task, dataset, sets, run))
    known = [merit for merit in tried if merit is not None]
    if not known:
        raise ConfigError(f"{job.arm.label}: all {len(tried)} settings of the grid were refused")
    return {**settings, **job.arm.grid[tried.index(max(known))]}, tried


def known_names(wanted: Iterable[str], known: Iterable[str], setting: str) -> tuple[str, ...]:
    """Return names after checking that each is known.

    Raises:
        ConfigError: One is not; the message names near ones.
    """
    everything, names = set(known), tuple(wanted)
    for name in names:
        if name not in everything:
            raise ConfigError(f"{setting}: no {name!r}; {near_matches(name, everything)}")
    return names


def chosen_arms(wanted: Iterable[str], arms: Sequence[Arm], setting: str) -> list[Arm]:
    """Return the rows that are asked for, by label or by name of the method; all when none is.

    Raises:
        ConfigError: A name is unknown.
    """
    known = {arm.label for arm in arms} | {arm.method for arm in arms}
    names = known_names(wanted, known, setting)
    return [arm for arm in arms if not names or arm.label in names or arm.method in names]


@dataclasses.dataclass(frozen=True)
class _Call:
    """A function's call in a process of its own."""

    note: str
    function: Callable[..., None]
    arguments: tuple[Any, ...]


def _call_all(label: str, calls: Sequence[_Call], total: int, workers: int, run: Run) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    with (
        run.progress(label, total, total - len(calls)) as bar,
        concurrent.futures.ProcessPoolExecutor(
            workers, mp_context=context, max_tasks_per_child=1
        ) as pool,
    ):
        waiting = {pool.submit(call.function, *call.arguments): call for call in calls}
        try:
            for future in concurrent.futures.as_completed(waiting):
                call = waiting[future]
                try:
                    future.result()
                except concurrent.futures.BrokenExecutor as error:
                    raise Interrupted(
                        f"a process died without a word (one of those after {call.note}), as it "
                        "does when memory runs out; start the bench again with the same folder to "
                        "go on"
                    ) from error
                bar.advance(note=call.note)
                run.check()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _world(name: str, fixture: Fixture) -> str:
    return f"{name}-{fixture.draw}" if fixture.redrawn else name


def _sets(world: Path) -> Sets:
    return Sets.from_json(read_json(world / "sets.json"))


def _subject_names(references: int) -> list[str]:
    return ["before", *(f"reference-{seed}" for seed in range(1, references + 1))]


def _audits(fixture: Fixture) -> list[tuple[Any, Any]]:
    infos = {name: audits.get(name) for name in fixture.audits}
    return [(info, parse_config(info, fixture.audits[name])) for name, info in infos.items()]


def _audited(fixture: Fixture) -> list[Any]:
    return [[info.name, info.version, to_json(own)] for info, own in _audits(fixture)]


def _subject(
    fixture: Fixture,
    dataset: Dataset,
    sets: Sets,
    model: Any,
    task: Any,
    role: Any,
    seed: int | None,
    run: Run,
) -> Subject:
    readings = plan_readings(_audits(fixture), dataset)
    return collect(model, task, dataset, sets, readings, run, role=role, seed=seed, batch_size=64)


def _numbers(
    fixture: Fixture, world: Path, references: int, after: Subject, sets: Sets
) -> dict[str, dict[str, float | None]]:
    """Return the table's numbers by role: ``after``, ``before``, ``reference-1``, ..."""
    before, *others = [read_scores(world / f"{n}.parquet") for n in _subject_names(references)]
    evidence = Evidence(after, before, tuple(others), sets.digest())
    findings = [
        finding
        for info, settings in _audits(fixture)
        for finding in run_audit(info, settings, evidence, Run(fixture.draw))
    ]
    found: dict[str, dict[str, float | None]] = {}
    for finding in findings:
        subject = finding.subject
        name = f"{subject}-{finding.seed}" if subject == "reference" else subject
        for number, column in fixture.columns.items():
            wanted = (column.audit, column.metric, column.record_set)
            if (finding.audit, finding.metric, finding.record_set) == wanted:
                found.setdefault(name, {})[number] = finding.value
    return found


def _standards(jobs: Sequence[Job], folder: Path) -> dict[str, dict[str, float | None]]:
    """Return the numbers of the original models and of the references."""
    found = {}
    for world, job in {job.world(folder): job for job in jobs}.items():
        after = dataclasses.replace(read_scores(world / "before.parquet"), role="after")
        numbers = _numbers(job.fixture, world, job.references, after, _sets(world))
        draw = f" of draw {job.fixture.draw}" if job.fixture.redrawn else ""
        found.update({f"{role}{draw}": own for role, own in numbers.items() if role != "after"})
    return found


def _row(jobs: Sequence[Job], folder: Path) -> BenchRow:
    first = jobs[0]
    found = [read_json(job.path(folder)) for job in jobs]
    refused = next((one["refused"] for one in found if "refused" in one), "")
    told = [] if refused else found
    return BenchRow(
        fixture=first.name,
        label=first.arm.label,
        method=first.arm.method,
        evidence=methods.get(first.arm.method).evidence,
        numbers={n: [one["numbers"].get(n) for one in told] for n in first.fixture.columns},
        measured={name: [one[name] for one in told] for name in _MEASURED},
        steps=told[0]["steps"] if told else 0,
        refused=refused,
    )


def _key(job: Job, folder: Path) -> str:
    world = job.world(folder)
    models = [read_scores(world / f"{n}.parquet").model for n in _subject_names(job.references)]
    sets, method = _sets(world).digest(), job.arm.method
    told = {name: (c.audit, c.metric, c.record_set) for name, c in job.fixture.columns.items()}
    decisive = [models, sets, _audited(job.fixture), told, method, job.settings(), job.seed]
    return digest_json([*decisive, *map(dict, job.arm.grid)])


def _done(job: Job, folder: Path, key: str) -> bool:
    path = job.path(folder)
    return path.exists() and read_json(path).get("key") == key


def _peak_mebibytes() -> float:
    """Return the largest resident memory of this process so far, in MiB; 0 where unknown."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    return next((int(s.split()[1]) / 1024 for s in lines if s.startswith("VmHWM:")), 0.0)
