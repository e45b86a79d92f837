"""What a workload is: a registered function from settings and a folder to a page of results."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from expunge.core.config import parse
from expunge.core.registry import Registry
from expunge.core.run import Run

Make = Callable[[Any, Path, Run], Path]
F = TypeVar("F", bound=Make)


@dataclasses.dataclass(frozen=True)
class WorkloadInfo:
    """A registered workload.

    Attributes:
        name: Registered name.
        title: One line for listings.
        config: Class of its settings.
        fn: Carries it out.
    """

    name: str
    title: str
    config: type[Any]
    fn: Make


workloads: Registry[WorkloadInfo] = Registry("workloads", "expunge.workloads")


def workload(name: str, *, title: str) -> Callable[[F], F]:
    """Register ``fn(config: <settings class>, folder: Path, run: Run) -> Path`` under a name.

    The function writes into the folder only, goes on where it was when called again, and returns
    the page of its results.
    """

    def file(fn: F) -> F:
        config = typing.get_type_hints(fn)["config"]
        workloads.register(name)(WorkloadInfo(name, title, config, fn))
        return fn

    return file


def run_workload(name: str, settings: Mapping[str, Any], folder: Path, run: Run) -> Path:
    """Carry out a registered workload.

    Args:
        name: Registered name.
        settings: Its settings as plain data.
        folder: Where results go; a used one is resumed.
        run: Context: progress, cancellation.

    Raises:
        ConfigError: There is no such workload, or a setting is wrong.
        Interrupted: Cancelled; call again to go on.
    """
    info = workloads.get(name)
    return info.fn(parse(info.config, settings, f"bench {name}"), folder, run)
