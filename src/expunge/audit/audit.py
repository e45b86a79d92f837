"""What an audit is, what it reads, and the one way to run it."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from expunge.audit.evidence import Evidence
from expunge.audit.readings import Reading, union
from expunge.core.config import parse
from expunge.core.errors import ConfigError, listing
from expunge.core.finding import Finding
from expunge.core.registry import Registry
from expunge.core.run import Run
from expunge.data.dataset import Dataset

Function = Callable[[Evidence, Any, Run], list[Finding]]
Reads = Callable[[Any, Dataset], Iterable[Reading]]


@dataclasses.dataclass(frozen=True)
class AuditInfo:
    """A registered audit.

    Attributes:
        name: Registered name.
        title: First line of the docstring.
        kinds: Kinds of task it works on.
        version: Version of its numbers; grows with any change of meaning.
        source: The paper.
        config: Settings class.
        function: The audit.
        reads: Yields what must be scored under given settings.
        doc: Full docstring.
    """

    name: str
    title: str
    kinds: frozenset[str]
    version: int
    source: str
    config: type[Any]
    function: Function
    reads: Reads
    doc: str


audits: Registry[AuditInfo] = Registry("audits", "expunge.audit")


def audit(
    name: str, *, kinds: set[str], reads: Reads, source: str, version: int = 1
) -> Callable[[Function], Function]:
    """Register a function as an audit.

    The function takes the evidence, its settings, whose class is read from the annotation of the
    second argument, and the run, which gives it seeds.

    Args:
        name: Registered name, lower case with underscores.
        kinds: Kinds of task it works on.
        reads: What must be scored, as a function of settings and data set.
        source: The paper.
        version: Version of its numbers.
    """

    def file(function: Function) -> Function:
        _, config, _ = inspect.signature(function).parameters
        doc = inspect.getdoc(function) or ""
        audits.register(name)(
            AuditInfo(
                name=name,
                title=doc.partition("\n")[0],
                kinds=frozenset(kinds),
                version=version,
                source=source,
                config=typing.get_type_hints(function)[config],
                function=function,
                reads=reads,
                doc=doc,
            )
        )
        return function

    return file


def parse_config(info: AuditInfo, settings: Mapping[str, Any] | None) -> Any:
    """Build an audit's settings from plain data; see ``core.config.parse``."""
    return parse(info.config, settings or {}, f"audit ({info.name})")


def plan_readings(chosen: Iterable[tuple[AuditInfo, Any]], dataset: Dataset) -> tuple[Reading, ...]:
    """Return what must be scored for some audits, each reading once.

    Args:
        chosen: Audits with their settings.
        dataset: The data.

    Raises:
        ConfigError: An audit does not work on this kind of data.
    """
    readings: list[Reading] = []
    for info, config in chosen:
        if dataset.kind not in info.kinds:
            able = [other.name for other in audits if dataset.kind in other.kinds]
            raise ConfigError(
                f"audit {info.name!r} works on {listing(sorted(info.kinds))}, the data are for a "
                f"{dataset.kind!r}; audits that can: {listing(able, 12)}"
            )
        readings.extend(info.reads(config, dataset))
    return union(readings)


def run_audit(info: AuditInfo, config: Any, evidence: Evidence, run: Run) -> list[Finding]:
    """Run one audit on scored models.

    Args:
        info: The audit.
        config: Its settings; see ``parse_config``.
        evidence: The models, scored on what the audit reads.
        run: Gives the seed of bootstraps and draws.
    """
    seen = dataclasses.replace(evidence, audit=info.name, version=info.version)
    return info.function(seen, config, run)
