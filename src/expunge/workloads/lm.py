"""``expunge bench lm``: every language-model method beside retraining, on two fixtures, with seeds.

Each pair of method and seed is a process of its own, so that its peak memory is its own, and leaves
one JSON file; a bench that was killed goes on with the pairs that are missing.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import multiprocessing
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from expunge.audit.audit import audits, parse_config, plan_readings, run_audit
from expunge.audit.collecting import collect
from expunge.audit.evidence import Evidence, Subject
from expunge.audit.score_table import read_scores, write_scores
from expunge.core.config import config, to_json
from expunge.core.digest import digest_json
from expunge.core.errors import ConfigError, ExpungeError, near_matches
from expunge.core.files import read_json, write_json
from expunge.core.run import Run
from expunge.engine.weights import state_digest
from expunge.forget.method import apply, methods
from expunge.report.bench import BenchRow, write_bench
from expunge.workloads.lm_arms import ARMS, Arm
from expunge.workloads.lm_fixtures import FIXTURES, Fixture
from expunge.workloads.workload import workload

_PRELOAD = ["expunge.workloads.lm", "transformers.models.gpt2.modeling_gpt2"]
# Numbers of the table: name -> (audit, metric, record set); None stands for the fixture's held set.
_NUMBERS: Mapping[str, tuple[str, str, str | None]] = {
    "forget_quality_log10": ("tofu", "forget_quality_log10", "forget"),
    "truth_ratio": ("tofu", "truth_ratio", "forget"),
    "utility": ("tofu", "model_utility", ""),
    "verbatim": ("memorization", "verbatim", "forget"),
    "knowledge": ("memorization", "knowledge", "forget"),
    "held_verbatim": ("memorization", "verbatim", None),
    "held_knowledge": ("memorization", "knowledge", None),
    "mia_auc": ("mia", "auc", "forget"),
    "mia_gap": ("mia", "auc_gap", "forget"),
}


@config
class LmBench:
    """Settings of the comparison of language-model methods."""

    fixtures: tuple[str, ...] = ("country_facts", "people")
    """Fixtures to run."""
    arms: tuple[str, ...] = ()
    """Rows of the table, by label or by name of the method; all when empty."""
    seeds: Annotated[int, Field(ge=1)] = 3
    """Runs of each method."""
    references: Annotated[int, Field(ge=1)] = 2
    """Retrained models to compare with."""
    workers: Annotated[int, Field(ge=1)] = 1
    """Processes that work at the same time, one thread each."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One method with one seed on one fixture."""

    fixture: str
    arm: Arm
    seed: int

    def settings(self) -> dict[str, Any]:
        """Return the method's settings."""
        fixture = FIXTURES[self.fixture]
        return self.arm.settings_on(self.fixture, fixture.schedule, fixture.scope)

    def path(self, folder: Path) -> Path:
        """Return the file of its numbers."""
        name = "-".join(self.arm.label.replace(",", "").split())
        return folder / "jobs" / self.fixture / f"{name}-{self.seed}.json"


@workload("lm", title="every language-model method beside retraining, on two fixtures")
def lm(config: LmBench, folder: Path, run: Run) -> Path:
    """Compare methods by forget quality, utility, memorization, membership, time and memory.

    The original model, the forget set and the retrained references are the same for all; only the
    method's own seed differs between its runs.
    """
    fixtures = _known(config.fixtures, FIXTURES, "fixtures")
    arms = _arms(config.arms)
    for name in fixtures:
        _prepare(FIXTURES[name], folder / name, config.references, run)
    told = [(name, arm) for name in fixtures for arm in arms if name in (arm.only or fixtures)]
    jobs = [Job(name, arm, seed) for name, arm in told for seed in range(config.seeds)]
    missing = [
        (job, key)
        for job in jobs
        if not _done(job, folder, key := _key(job, folder, config.references))
    ]
    done = len(jobs) - len(missing)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    with (
        run.progress("bench", len(jobs), done) as bar,
        concurrent.futures.ProcessPoolExecutor(
            config.workers, mp_context=context, max_tasks_per_child=1
        ) as pool,
    ):
        waiting = {
            pool.submit(work, job, str(folder), key, config.references): job for job, key in missing
        }
        try:
            for future in concurrent.futures.as_completed(waiting):
                future.result()
                job = waiting[future]
                bar.advance(note=f"{job.fixture}: {job.arm.label}")
                run.check()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    rows = [_row(name, arm, folder, config.seeds) for name, arm in told]
    standards = {name: _standards(name, folder, config.references) for name in fixtures}
    results = {
        "settings": to_json(config),
        "fixtures": {name: FIXTURES[name].title for name in fixtures},
        "standards": standards,
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    write_json(folder / "results.json", results)
    return write_bench(folder, results)


def work(job: Job, folder: str, key: str, references: int) -> None:
    """Carry out one job in this process and write its numbers; a refusal is a result too.

    Args:
        job: The job.
        folder: The bench's folder.
        key: Digest of everything that decides its numbers.
        references: Number of retrained models.
    """
    torch.set_num_threads(1)
    fixture, root = FIXTURES[job.fixture], Path(folder)
    dataset = fixture.dataset()
    sets = fixture.sets(dataset)
    run = Run(job.seed)
    loaded = fixture.before(dataset, run)
    given = fixture.given(dataset, sets, loaded)
    before_mebibytes = _peak_mebibytes()
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        result = apply(job.arm.method, loaded.model, given, run, job.settings(), in_place=True)
    except ExpungeError as error:
        write_json(job.path(root), {"key": key, "refused": str(error)})
        return
    spent = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    peak = _peak_mebibytes()
    after = _subject(fixture, dataset, sets, result.model, loaded.task, "after", None, run)
    numbers = _numbers(fixture, root / job.fixture, references, after, sets.digest())
    told = {
        "key": key,
        "numbers": numbers["after"],
        "steps": len(result.history.steps),
        "mebibytes": peak,
        "mebibytes_over_model": peak - before_mebibytes,
        **spent,
    }
    write_json(job.path(root), told)


def _prepare(fixture: Fixture, folder: Path, references: int, run: Run) -> None:
    """Train and score the original model and the references, where that is not done yet."""
    dataset = fixture.dataset()
    sets = fixture.sets(dataset)
    for name in _subject_names(references):
        run.check()
        seed = 0 if name == "before" else int(name.removeprefix("reference-"))
        role: Any = "before" if name == "before" else "reference"
        loaded = (
            fixture.before(dataset, run)
            if role == "before"
            else fixture.reference(dataset, sets, seed, run)
        )
        path = folder / f"{name}.parquet"
        if path.exists() and read_scores(path).model == state_digest(loaded.model):
            continue
        subject = _subject(
            fixture, dataset, sets, loaded.model, loaded.task, role, seed or None, run
        )
        write_scores(path, subject)


def _subject_names(references: int) -> list[str]:
    return ["before", *(f"reference-{seed}" for seed in range(1, references + 1))]


def _audits(fixture: Fixture) -> list[tuple[Any, Any]]:
    chosen: dict[str, dict[str, Any]] = {
        "tofu": {
            "utility_sets": list(fixture.utility_sets),
            "max_utility_records": fixture.max_records,
            "max_new_tokens": 0,
        },
        "memorization": {
            "record_sets": ["forget", *fixture.utility_sets],
            "max_records": fixture.max_records,
        },
        "mia": {},
    }
    infos = {name: audits.get(name) for name in chosen}
    return [(info, parse_config(info, chosen[name])) for name, info in infos.items()]


def _subject(
    fixture: Fixture,
    dataset: Any,
    sets: Any,
    model: Any,
    task: Any,
    role: Any,
    seed: int | None,
    run: Run,
) -> Subject:
    readings = plan_readings(_audits(fixture), dataset)
    return collect(model, task, dataset, sets, readings, run, role=role, seed=seed, batch_size=64)


def _numbers(
    fixture: Fixture, folder: Path, references: int, after: Subject, sets: str
) -> dict[str, dict[str, float | None]]:
    """Return the table's numbers by role: ``after``, ``before``, ``reference-1``, ..."""
    before, *others = [read_scores(folder / f"{n}.parquet") for n in _subject_names(references)]
    evidence = Evidence(after, before, tuple(others), sets)
    findings = [
        finding
        for info, settings in _audits(fixture)
        for finding in run_audit(info, settings, evidence, Run())
    ]
    found: dict[str, dict[str, float | None]] = {}
    for finding in findings:
        subject = finding.subject
        name = f"{subject}-{finding.seed}" if subject == "reference" else subject
        for number, (audit, metric, record_set) in _NUMBERS.items():
            wanted = fixture.held if record_set is None else record_set
            if (finding.audit, finding.metric, finding.record_set) == (audit, metric, wanted):
                found.setdefault(name, {})[number] = finding.value
    return found


def _standards(name: str, folder: Path, references: int) -> dict[str, dict[str, float | None]]:
    """Return the numbers of the original model and of each reference."""
    fixture = FIXTURES[name]
    before = read_scores(folder / name / "before.parquet")
    sets = fixture.sets(fixture.dataset()).digest()
    after = dataclasses.replace(before, role="after")
    found = _numbers(fixture, folder / name, references, after, sets)
    return {role: numbers for role, numbers in found.items() if role != "after"}


def _row(fixture: str, arm: Arm, folder: Path, seeds: int) -> BenchRow:
    found = [read_json(Job(fixture, arm, seed).path(folder)) for seed in range(seeds)]
    refused = next((one["refused"] for one in found if "refused" in one), "")
    told = [] if refused else found
    numbers = {name: [one["numbers"].get(name) for one in told] for name in _NUMBERS}
    measured = ("seconds", "cpu_seconds", "mebibytes", "mebibytes_over_model")
    info = methods.get(arm.method)
    return BenchRow(
        fixture=fixture,
        label=arm.label,
        method=arm.method,
        evidence=info.evidence,
        numbers=numbers,
        measured={name: [one[name] for one in told] for name in measured},
        steps=told[0]["steps"] if told else 0,
        refused=refused,
    )


def _arms(wanted: Iterable[str]) -> list[Arm]:
    names = tuple(wanted)
    known = {arm.label for arm in ARMS} | {arm.method for arm in ARMS}
    _known(names, known, "arms")
    return [arm for arm in ARMS if not names or arm.label in names or arm.method in names]


def _known(wanted: tuple[str, ...], known: Iterable[str], setting: str) -> tuple[str, ...]:
    everything = set(known)
    for name in wanted:
        if name not in everything:
            raise ConfigError(f"bench lm: {setting}: no {name!r}; {near_matches(name, everything)}")
    return wanted


def _key(job: Job, folder: Path, references: int) -> str:
    names = _subject_names(references)
    models = [read_scores(folder / job.fixture / f"{name}.parquet").model for name in names]
    fixture = FIXTURES[job.fixture]
    audited = [[info.name, info.version, to_json(own)] for info, own in _audits(fixture)]
    return digest_json([models, audited, job.arm.method, job.settings(), job.seed])


def _done(job: Job, folder: Path, key: str) -> bool:
    path = job.path(folder)
    return path.exists() and read_json(path).get("key") == key


def _peak_mebibytes() -> float:
    """Return the largest resident memory of this process so far, in MiB; 0 where unknown."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    return next((int(s.split()[1]) / 1024 for s in lines if s.startswith("VmHWM:")), 0.0)
