"""Canonical JSON and SHA-256 digests: the identity of everything that Expunge binds together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20


def canonical_json(value: Any) -> bytes:
    """Serialise plain data to the one byte string that equal values share.

    Keys are sorted, there is no white space, text is UTF-8.

    Raises:
        ValueError: The value holds NaN or infinity.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def digest_bytes(data: bytes) -> str:
    """Return the SHA-256 of ``data`` in hex."""
    return hashlib.sha256(data).hexdigest()


def digest_json(value: Any) -> str:
    """Return the SHA-256 of the canonical JSON of ``value`` in hex."""
    return digest_bytes(canonical_json(value))


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hex, read in chunks."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            sha.update(chunk)
    return sha.hexdigest()


def digest_files(digests: Iterable[tuple[str, str]]) -> str:
    """Return SHA-256 over the concatenated raw digests in path order (the model-signing rule).

    Args:
        digests: Pairs of relative path and hex digest.
    """
    sha = hashlib.sha256()
    for _, digest in sorted(digests):
        sha.update(bytes.fromhex(digest))
    return sha.hexdigest()
