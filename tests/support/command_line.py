"""The ``expunge`` command in a process of its own, without paying for its imports every time.

A server process imports torch and transformers once; each command is forked from it.
"""

import dataclasses
import multiprocessing
import os
import sys
import time
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        "command_line",
        "expunge.cli.main",
        "expunge.pipeline.execute",
        "expunge.pipeline.shortcuts",
        "expunge.report.card",
        "expunge.report.report",
        "expunge.report.examples",
        "jinja2",
        "matplotlib.backends.backend_svg",
        "matplotlib.figure",
        "pytest",
        "rouge_score.rouge_scorer",
        "scipy.stats",
        "sklearn.datasets",
        "sklearn.metrics",
        "transformers.models.gpt2.modeling_gpt2",
        "transformers.generation.utils",
    ]
)


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended: exit code (the negative signal number if one killed it) and output."""

    code: int
    out: str
    err: str


class Command:
    """A running command.

    Args:
        arguments: What follows ``expunge``.
        cache: The cache folder it uses.
        folder: Working directory; it takes the command's output too.
        max_file_bytes: Size at which the system refuses to let a file grow; none when absent.
    """

    def __init__(
        self, arguments: list[object], cache: Path, folder: Path, max_file_bytes: int | None = None
    ) -> None:
        self._streams = [folder / f"{name}-{time.monotonic_ns()}.txt" for name in ("out", "err")]
        self._process = _FORKS.Process(
            target=_child,
            args=([str(a) for a in arguments], cache, folder, self._streams, max_file_bytes),
            daemon=True,
        )
        self._process.start()

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    def signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def wait(self) -> Ended:
        self._process.join(300)
        assert not self.running, "the command does not end"
        out, err = (path.read_text() if path.exists() else "" for path in self._streams)
        return Ended(self._process.exitcode, out, err)


def _child(arguments, cache, folder, streams, max_file_bytes):
    import resource

    from expunge.cli.main import main

    os.chdir(folder)
    os.environ["EXPUNGE_CACHE"] = str(cache)
    for path, stream in zip(streams, (sys.stdout, sys.stderr), strict=True):
        with path.open("wb") as file:
            os.dup2(file.fileno(), stream.fileno())
    if max_file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))
    sys.argv = ["expunge", *arguments]
    main()
