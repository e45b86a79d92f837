"""The IDX file format of MNIST and its relatives, plain or gzipped."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from expunge.core.errors import DataError, StorageError

_UNSIGNED_BYTE = 8


def read_idx(path: Path, num_axes: int) -> np.ndarray:
    """Read an IDX file of unsigned bytes.

    Args:
        path: The file without ``.gz``; the gzipped one beside it is read when it is absent.
        num_axes: Number of axes that the content must have.

    Returns:
        An array of unsigned bytes.

    Raises:
        StorageError: Neither file exists.
        DataError: It is no IDX file of bytes with that many axes, or its length is wrong.
    """
    data = _content(path)
    if len(data) < 4 or data[:2] != b"\x00\x00" or data[2] != _UNSIGNED_BYTE:
        raise DataError(
            f"{path} is no IDX file of unsigned bytes: it begins with {data[:4].hex()!r}"
        )
    if data[3] != num_axes:
        raise DataError(f"{path} has {data[3]} axes where {num_axes} are due; is it another file?")
    header = 4 + 4 * num_axes
    shape = tuple(int(n) for n in np.frombuffer(data[4:header], dtype=">u4"))
    due = header + int(np.prod(shape, dtype=np.int64))
    if len(shape) != num_axes or len(data) != due:
        raise DataError(
            f"{path} has {len(data)} bytes where {due} are due; get the whole file again"
        )
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(shape)


def _content(path: Path) -> bytes:
    zipped = path.with_name(path.name + ".gz")
    try:
        if path.is_file():
            return path.read_bytes()
        return gzip.decompress(zipped.read_bytes())
    except FileNotFoundError as error:
        raise StorageError(f"there is neither {path} nor {zipped.name} beside it") from error
    except (gzip.BadGzipFile, EOFError) as error:
        raise DataError(f"{zipped} is not a whole gzip file: {error}; get it again") from error
