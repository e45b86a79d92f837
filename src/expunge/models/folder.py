"""Folders that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from expunge.core import files
from expunge.core.errors import StorageError


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty sibling of ``path`` that replaces it when the block ends without error.

    Args:
        path: The folder to write; what it held before is gone afterwards.

    Raises:
        StorageError: The place is not writable, the disk is full, or the like.
    """
    temporary = path.with_name(path.name + ".partial")
    replaced = path.with_name(path.name + ".replaced")
    try:
        files.fault_hook("open", path)
        files.remove_tree(temporary)
        temporary.mkdir(parents=True)
        yield temporary
        files.fault_hook("write", path)
        for file in temporary.rglob("*"):
            _sync(file)
        files.fault_hook("rename", path)
        files.remove_tree(replaced)
        if path.exists():  # a folder that holds files cannot be renamed over
            path.rename(replaced)
        temporary.rename(path)
        _sync(path.parent)
        files.remove_tree(replaced)
    except (OSError, SafetensorError) as error:
        if isinstance(error, StorageError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise StorageError(
            f"cannot write {path}: {reason}; free space or choose another folder"
        ) from error
    finally:
        files.remove_tree(temporary)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
