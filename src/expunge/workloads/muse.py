"""``expunge bench muse``: how a method bears larger and repeated requests, beside MUSE's audit.

Scalability (C5): one request for a growing part of the forget set, each time from the original
model. Sustainability (C6): the same parts one after the other, each from the model that the request
before left. After k parts both have forgotten the same records, so that they can be compared.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from expunge.audit.audit import audits, parse_config, plan_readings, run_audit
from expunge.audit.collecting import collect
from expunge.audit.evidence import Evidence, Subject
from expunge.core.config import config, to_json
from expunge.core.digest import digest_json
from expunge.core.errors import ConfigError, ExpungeError, Interrupted, near_matches
from expunge.core.files import read_json, remove_tree, write_json
from expunge.core.finding import Finding
from expunge.core.run import Run
from expunge.core.sets import Sets
from expunge.data.dataset import Dataset
from expunge.engine.weights import state_digest
from expunge.forget.method import Forgotten, Given, apply, methods
from expunge.forget.method import parse_config as parse_method
from expunge.models.source import Loaded, load_model_source
from expunge.models.store import ARCHITECTURE, load_saved, save_model
from expunge.pipeline.recipe import Part, split_part
from expunge.workloads.lm_fixtures import FIXTURES, LanguageFixture
from expunge.workloads.muse_folds import disjoint_folds, nested_folds
from expunge.workloads.muse_page import METRICS, write_muse
from expunge.workloads.workload import workload

Drive = Literal["scalability", "sustainability"]

_GROUPS: Mapping[str, str] = {"country_facts": "country", "people": "author"}


@config
class MuseBench:
    """Settings of MUSE's growing and successive requests."""

    fixture: str = "country_facts"
    """Data, model and forget set."""
    method: str = "npo"
    """Registered method."""
    settings: Annotated[dict[str, Any], Field(default_factory=dict)]
    """The method's settings; schedule and scope are the fixture's where they are not given."""
    folds: Annotated[int, Field(ge=2)] = 4
    """Parts of the forget set."""
    references: Annotated[int, Field(ge=1)] = 2
    """Models retrained without the whole forget set."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the method."""
    max_records: Annotated[int, Field(ge=0)] = 100
    """Most records of each set that a model writes for; 0 takes all."""
    attacks: tuple[Part, ...] = ()
    """Audits under attack (``relearn``, say) to repeat after each request, with their settings."""


@workload("muse", title="one method under growing and successive requests, audited as MUSE does")
def muse(config: MuseBench, folder: Path, run: Run) -> Path:
    """Forget growing parts of a forget set, and the parts one after the other, and audit each.

    The retrained models never saw any part, so that they serve every request. Utility is measured
    on records that were learned, are not to be forgotten, and are shown to no method.
    """
    bench = _Bench(config, folder, run)
    bench.prepare()
    jobs = list(bench.jobs())
    missing = [job for job in jobs if not bench.done(*job)]
    with run.progress("muse", len(jobs), len(jobs) - len(missing)) as bar:
        for drive, step in missing:
            run.check()
            bench.work(drive, step)
            bar.advance(note=f"{drive} {step}")
    results = bench.results()
    write_json(folder / "results.json", results)
    write_json(folder / "muse.json", six_properties(results))
    page = write_muse(folder, results)
    remove_tree(folder / "models")  # only there to go on from
    return page


def six_properties(results: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Return each of MUSE's properties before and after forgetting, and of retrained models.

    As in MUSE, the first four are those of the smallest request; scalability is the utility after
    the largest, sustainability that after the last of the successive ones. All are in percent.

    Args:
        results: As in ``results.json``.
    """
    rows = results["rows"]
    first, largest = rows[0], rows[results["settings"]["folds"] - 1]
    picked = {
        "C1 verbatim memory": (first, "verbatim"),
        "C2 knowledge memory": (first, "knowledge"),
        "C3 privacy leakage": (first, "privleak"),
        "C4 utility": (first, "utility"),
        "C5 scalability": (largest, "utility"),
        "C6 sustainability": (rows[-1], "utility"),
    }
    return {
        name: {
            role: row["numbers"].get(role, {}).get(metric, {}).get("value")
            for role in ("before", "after", "retrained")
        }
        for name, (row, metric) in picked.items()
    }


class _Bench:
    """The fixture, its folds, and what was measured so far."""

    def __init__(self, settings: MuseBench, folder: Path, run: Run) -> None:
        if settings.fixture not in FIXTURES:
            raise ConfigError(
                f"bench muse: fixture: no {settings.fixture!r}; "
                f"{near_matches(settings.fixture, FIXTURES)}"
            )
        self.settings, self.folder, self.run = settings, folder, run
        self.fixture: LanguageFixture = FIXTURES[settings.fixture]
        self.info = methods.get(settings.method)
        self.method_settings = _method_settings(self.info, self.fixture, settings.settings)
        parse_method(self.info, self.method_settings)
        self.audit = audits.get("muse")
        told = {"utility_set": self.fixture.held, "max_records": settings.max_records}
        self.audit_settings = parse_config(self.audit, told)
        self.attacks = []
        for part in settings.attacks:
            name, own = split_part(part, "attacks")
            info = audits.get(name)
            self.attacks.append((info, parse_config(info, own)))
        self.dataset: Dataset = self.fixture.dataset()
        self.whole = self.fixture.sets(self.dataset, self.run)
        forget = self.dataset.train.select(self.whole.forget)
        by = _GROUPS.get(settings.fixture, "")
        self.folds = disjoint_folds(forget, settings.folds, settings.seed, by)
        self.nested = nested_folds(self.folds)
        self.digests: list[str] = []

    def prepare(self) -> None:
        """Train, or fetch, the original model and the references, and remember which they are."""
        self.original = self.fixture.before(self.dataset, self.run)
        self.references = [
            self.fixture.reference(self.dataset, self.whole, seed, self.run)
            for seed in range(1, self.settings.references + 1)
        ]
        self.digests = [state_digest(one.model) for one in (self.original, *self.references)]

    def jobs(self) -> Iterator[tuple[Drive, int]]:
        """Yield drive and number of each model to be made; both begin with the same one."""
        yield from (("scalability", step) for step in range(1, len(self.folds) + 1))
        yield from (("sustainability", step) for step in range(2, len(self.folds) + 1))

    def done(self, drive: Drive, step: int) -> bool:
        """Return whether a job left its numbers, under these settings."""
        path = self._path(drive, step)
        return path.exists() and read_json(path).get("key") == self._key(drive, step)

    def work(self, drive: Drive, step: int) -> None:
        """Carry out one job and write its numbers; a refusal is a result too."""
        key = self._key(drive, step)
        try:
            if drive == "scalability" and step > 1:
                model, told = self._forgotten(self.original, self.nested[step - 1], drive, step)
            else:
                model, told = self._successive(step)
        except Interrupted:
            raise
        except ExpungeError as error:
            write_json(self._path(drive, step), {"key": key, "refused": str(error)})
            return
        write_json(
            self._path(drive, step), {"key": key, "numbers": self._numbers(model, step), **told}
        )

    def results(self) -> dict[str, Any]:
        """Return everything that was measured, as plain data."""
        rows = []
        drives: tuple[Drive, ...] = ("scalability", "sustainability")
        for drive in drives:
            for step in range(1, len(self.folds) + 1):
                # The first of the successive requests is the smallest of the growing ones.
                made: Drive = "scalability" if step == 1 else drive
                found = read_json(self._path(made, step))
                rows.append(
                    {
                        "drive": drive,
                        "step": step,
                        "records": len(self.nested[step - 1]),
                        "numbers": found.get("numbers", {}),
                        "steps": found.get("steps"),
                        "seconds": found.get("seconds"),
                        "refused": found.get("refused", ""),
                    }
                )
        return {
            "settings": to_json(self.settings),
            "method_settings": self.method_settings,
            "evidence": self.info.evidence,
            "fixture": self.fixture.title,
            "utility_set": self.fixture.held,
            "rows": rows,
        }

    def _successive(self, step: int) -> tuple[Any, dict[str, Any]]:
        """Return the model after so many successive requests, made or read back.

        Every request but the first goes on from files, so that a resumed bench has the same bits.
        """
        folder = self.folder / "models" / f"request-{step}"
        key = self._key("sustainability", step)
        card = folder / ARCHITECTURE
        if not card.exists() or read_json(card)["lineage"].get("key") != key:
            start = self.original
            if step > 1:
                self._successive(step - 1)
                before = load_saved(self.folder / "models" / f"request-{step - 1}")
                start = dataclasses.replace(self.original, model=before.model)
            model, told = self._forgotten(start, self.folds[step - 1], "sustainability", step)
            save_model(
                dataclasses.replace(self.original, model=model), folder, {"key": key, **told}
            )
        told = {name: read_json(card)["lineage"][name] for name in ("steps", "seconds")}
        return load_saved(folder).model, told

    def _forgotten(
        self, start: Loaded, forget: tuple[str, ...], drive: Drive, step: int
    ) -> tuple[Any, dict[str, Any]]:
        """Apply the method to a copy of a model."""
        train, gone = self.dataset.train, set(self.nested[step - 1])
        given = Given(
            start.task,
            train.select(forget),
            train.select(self.whole.retain),
            fresh=lambda: load_model_source(*self.fixture.model, self.dataset, 0).model,
            kept=train.select(i for i in train.ids if i not in gone),
            guard=None,
        )
        context = self.run.child(f"{drive}-{step}", seed=self.settings.seed)
        began = time.perf_counter()
        result: Forgotten = apply(
            self.settings.method, start.model, given, context, self.method_settings
        )
        remove_tree(context.folder)
        seconds = time.perf_counter() - began
        return result.model, {"steps": len(result.history.steps), "seconds": seconds}

    def _numbers(self, model: Any, step: int) -> dict[str, Any]:
        """Audit a model beside the original and the retrained ones; numbers by role."""
        sets = Sets(
            forget=self.nested[step - 1],
            retain=self.whole.retain,
            holdout=self.whole.holdout,
            test=self.whole.test,
        )
        before = self._subject(self.original.model, sets, "before")
        after = self._subject(model, sets, "after")
        references = tuple(
            self._subject(one.model, sets, "reference", seed)
            for seed, one in enumerate(self.references, start=1)
        )
        evidence = Evidence(after, before, references, sets.digest())
        run = Run(self.settings.seed)
        findings = run_audit(self.audit, self.audit_settings, evidence, run)
        attacked = [run_audit(info, own, evidence, run) for info, own in self.attacks]
        return {
            "attacks": [_attacked(found) for found in attacked],
            "before": _told(findings, "before"),
            "after": _told(findings, "after"),
            "retrained": _mean(findings),
        }

    def _subject(self, model: Any, sets: Sets, role: Any, seed: int | None = None) -> Subject:
        return collect(
            model,
            self.original.task,
            self.dataset,
            sets,
            plan_readings([(self.audit, self.audit_settings), *self.attacks], self.dataset),
            Run(self.settings.seed, device=self.run.device),
            role=role,
            seed=seed,
            batch_size=64,
            cache=self.folder / "scores",
        )

    def _key(self, drive: Drive, step: int) -> str:
        """Return the digest of everything that decides the numbers of a job."""
        parts = self.folds[:step] if drive == "sustainability" else [self.nested[step - 1]]
        audited = [self.audit.version, to_json(self.audit_settings)]
        audited += [[info.name, info.version, to_json(own)] for info, own in self.attacks]
        method = [self.settings.method, self.method_settings, self.settings.seed]
        data = self.dataset.digest()
        return digest_json([self.digests, data, audited, method, drive, [list(p) for p in parts]])

    def _path(self, drive: Drive, step: int) -> Path:
        return self.folder / "jobs" / f"{drive}-{step}.json"


def _method_settings(
    info: Any, fixture: LanguageFixture, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Lay the given settings over the fixture's schedule and scope, where the method has them."""
    names = {field.name for field in dataclasses.fields(info.config)}
    merged = dict(given)
    if "schedule" in names:
        merged["schedule"] = {**fixture.schedule, **given.get("schedule", {})}
    if "scope" in names and fixture.scope:
        merged["scope"] = given.get("scope", dict(fixture.scope))
    return merged


def _attacked(findings: list[Finding]) -> dict[str, Any]:
    """Return the headline of an audit under attack, and how much of it could be carried out."""
    after = [one for one in findings if one.subject == "after"]
    rates = [one for one in after if one.metric.startswith("excess")]
    head = next((one for one in rates if one.metric == "excess"), rates[0] if rates else None)
    return {
        "audit": findings[0].audit if findings else "",
        "value": None if head is None else head.value,
        "low": head.interval.low if head is not None and head.interval else None,
        "high": head.interval.high if head is not None and head.interval else None,
        "note": "" if head is None else head.note,
        "carried_out": sum(one.value is not None for one in rates),
        "planned": len(rates),
    }


def _told(findings: list[Finding], subject: str) -> dict[str, Any]:
    """Return value, interval and note of each number of one model."""
    return {
        one.metric: {
            "value": one.value,
            "low": one.interval.low if one.interval else None,
            "high": one.interval.high if one.interval else None,
            "n": one.n,
            "note": one.note,
        }
        for one in findings
        if one.subject == subject and one.metric in METRICS
    }


def _mean(findings: list[Finding]) -> dict[str, Any]:
    """Return the mean of each number over the retrained models, and its smallest and largest."""
    found: dict[str, list[float | None]] = {}
    for one in findings:
        if one.subject == "reference" and one.metric in METRICS:
            found.setdefault(one.metric, []).append(one.value)
    told = {}
    for metric, values in found.items():
        seen = [value for value in values if value is not None]
        complete = len(seen) == len(values)
        told[metric] = {
            "value": float(np.mean(seen)) if complete else None,
            "low": min(seen) if complete else None,
            "high": max(seen) if complete else None,
        }
    return told
