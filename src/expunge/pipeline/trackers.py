"""Trackers by name: where losses are plotted while a run goes on, beside the event file."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from expunge.core.errors import ConfigError, near_matches
from expunge.core.run import Tracker


class TensorBoard:
    """Writes scalars for TensorBoard.

    Args:
        folder: Where its files go.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "machine.trackers: tensorboard is not installed; pip install 'expunge[trackers]'"
            ) from error
        self._open = functools.cache(lambda: SummaryWriter(str(folder)))

    def log(self, values: dict[str, float], step: int) -> None:
        """Take the numbers of one step; the first ones make the folder."""
        writer = self._open()
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()  # a run that is killed keeps what it has shown


_KNOWN = {"tensorboard": TensorBoard}


def open_trackers(names: Sequence[str], folder: Path) -> tuple[Tracker, ...]:
    """Open trackers by name.

    Args:
        names: Such as ``tensorboard``.
        folder: The run folder; each tracker gets a folder in it.

    Raises:
        ConfigError: A name is unknown, or its library is not installed.
    """
    for name in names:
        if name not in _KNOWN:
            raise ConfigError(
                f"machine.trackers: no tracker {name!r}; {near_matches(name, _KNOWN)}"
            )
    return tuple(_KNOWN[name](folder / name) for name in names)
