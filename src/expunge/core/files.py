"""The only place that writes files: atomic, durable, inside one root.

A reader sees the old file or the new one, never half of one: bytes go to a temporary file in the
same folder, are synced, and are renamed over the target; then the folder is synced.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from expunge.core.errors import DataError, IntegrityError, StorageError

MAX_JSON_BYTES = 256 * 1024 * 1024
PARTIAL = ".partial"
"""Ending of a file or folder that is being written; after a crash it may stay behind."""
GONE = ".gone"
"""Ending of a folder that is being deleted; after a crash it may stay behind."""
PROBE = ".write-probe"


def _no_fault(operation: str, path: Path) -> None:
    """Stand where tests inject failures; in production nothing happens here."""


fault_hook: Callable[[str, Path], None] = _no_fault


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path`` that replaces it when the block ends without error.

    Args:
        path: The file to write. Its folder is made where absent.

    Yields:
        The temporary path, to be written by the block.

    Raises:
        StorageError: The folder is not writable, the disk is full, or the like.
    """
    temporary = path.with_name(path.name + PARTIAL)
    try:
        fault_hook("open", path)
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        fault_hook("write", path)
        _sync(temporary)
        fault_hook("rename", path)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise _cannot_write(path, error) from error
    finally:
        with suppress(OSError):  # absent, or in a folder that is none; the error above says more
            temporary.unlink()


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty sibling of ``path`` that replaces it when the block ends without error.

    Args:
        path: The folder to write; what it held before is gone afterwards.

    Yields:
        The temporary folder, to be filled by the block.

    Raises:
        StorageError: The place is not writable, the disk is full, or the like.
    """
    temporary = path.with_name(path.name + PARTIAL)
    replaced = path.with_name(path.name + ".replaced")
    try:
        fault_hook("open", path)
        remove_tree(temporary)
        temporary.mkdir(parents=True)
        yield temporary
        fault_hook("write", path)
        for file in temporary.rglob("*"):
            _sync(file)
        fault_hook("rename", path)
        remove_tree(replaced)
        if path.exists():  # a folder that holds files cannot be renamed over
            path.rename(replaced)
        temporary.rename(path)
        _sync(path.parent)
        remove_tree(replaced)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise _cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            remove_tree(temporary)


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically.

    Raises:
        StorageError: The file cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically; see ``write_bytes``."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON with sorted keys atomically; see ``write_bytes``.

    Raises:
        ValueError: The value holds NaN or infinity.
    """
    write_text(path, json.dumps(value, sort_keys=True, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        StorageError: The file is absent or unreadable.
        IntegrityError: It is larger than 256 MiB, nested too deeply, or not JSON.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise IntegrityError(f"{path} is larger than {MAX_JSON_BYTES} bytes; it is not read")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{path} is not valid JSON: {error}") from error


def append_line(path: Path, line: str, *, durable: bool = True) -> None:
    """Append one line; what a crash left of a torn last line is cut off first.

    Args:
        path: The file; its folder is made where absent.
        line: Text without a line break.
        durable: Sync to disk before returning (journals); else leave that to the system (events).

    Raises:
        StorageError: The file cannot be written.
    """
    try:
        fault_hook("append", path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            _cut_torn_line(file)
            file.write(line.encode() + b"\n")
            if durable:
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"cannot append to {path}: {error.strerror or error}") from error


def read_json_lines(path: Path) -> list[Any]:
    """Read a journal of JSON lines; an absent one is empty.

    A line counts once its line break is written: what follows the last line break is what a crash
    left of a torn line, is dropped here, and is cut off by the next ``append_line``.

    Raises:
        StorageError: The file is unreadable.
        IntegrityError: A whole line is not JSON.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    values = []
    for number, line in enumerate(lines, start=1):
        try:
            values.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise IntegrityError(f"{path} line {number} is not JSON: {error}") from error
    return values


def safe_join(root: Path, *names: str) -> Path:
    """Join names below ``root`` and refuse to leave it.

    Raises:
        DataError: The result lies outside ``root`` (``..``, an absolute path, a link), or the
            names make no path (a null byte, links in a circle).
    """
    try:
        target = root.joinpath(*names).resolve()
    except (ValueError, RuntimeError, OSError) as error:
        raise DataError(f"{names!r} makes no path ({error}); use plain names") from error
    if not target.is_relative_to(root.resolve()):
        raise DataError(f"path {os.path.join(*names)!r} leaves the folder {root}; use plain names")
    return target


def remove_tree(path: Path) -> None:
    """Delete a folder, file or link that may not exist; what a link points to stays.

    A folder is renamed first, so that after a crash it is whole or gone: half a folder of
    checkpoints would look like a damaged one. What a crash left of the renamed one goes too.

    Raises:
        StorageError: It cannot be deleted.
    """
    try:
        gone = path.with_name(path.name + GONE)
        if gone.is_dir():
            shutil.rmtree(gone)
        if path.is_dir() and not path.is_symlink():
            path.rename(gone)
            shutil.rmtree(gone)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot delete {path}: {error.strerror or error}") from error


def require_writable(folder: Path) -> None:
    """Prove that files can be made in ``folder`` before work begins.

    Raises:
        StorageError: They cannot.
    """
    probe = folder / PROBE
    write_bytes(probe, b"")
    probe.unlink()


def _cut_torn_line(file: BinaryIO) -> None:
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return
    file.seek(size - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)


def _cannot_write(path: Path, error: OSError) -> StorageError:
    reason = error.strerror or str(error)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    remedy = "free space or choose another folder" if full else "choose a folder you can write to"
    return StorageError(f"cannot write {path}: {reason}; {remedy} (--out)")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
