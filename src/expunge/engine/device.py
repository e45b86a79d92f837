"""Device, threads and global random state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from expunge.core.errors import ConfigError
from expunge.core.manifest import environment
from expunge.engine.workers import workers


def require_device(device: str) -> None:
    """Check that a torch device exists here.

    Raises:
        ConfigError: It does not.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device = {device!r} is not usable here ({error}); use 'cpu'") from error


@contextmanager
def forked_random(device: str) -> Iterator[None]:
    """Restore torch's global random state after the block, which may seed it at will."""
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


def full_environment() -> dict[str, Any]:
    """Return platform, versions, threads and processes: what the bits of a result depend on."""
    parallel = {"threads": torch.get_num_threads(), "processes": workers().size}
    return {**environment(), **parallel}
