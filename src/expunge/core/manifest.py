"""``Manifest``: the files of a model or data set with digests, and the machine that made them."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expunge.core.digest import digest_file, digest_files
from expunge.core.errors import IntegrityError

_LIBRARIES = (
    "expunge",
    "torch",
    "numpy",
    "transformers",
    "tokenizers",
    "safetensors",
    "peft",
    "scipy",
)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Files of one folder by relative path and SHA-256.

    Attributes:
        files: Relative POSIX path to hex digest.
        lineage: Digests of what the files were made from; JSON values only.
    """

    files: Mapping[str, str]
    lineage: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, **lineage: Any) -> Manifest:
        """Read every file below ``folder`` and note its digest."""
        files = {
            path.relative_to(folder).as_posix(): digest_file(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        return cls(files, lineage)

    def digest(self) -> str:
        """Return the manifest digest: SHA-256 over the raw file digests in path order."""
        return digest_files(self.files.items())

    def verify(self, folder: Path) -> None:
        """Check that the folder holds exactly these bytes.

        Raises:
            IntegrityError: A file is missing, added or changed; the message names each.
        """
        found = Manifest.of(folder).files
        wrong = [f"{name} is missing" for name in self.files if name not in found]
        wrong += [f"{name} was added" for name in found if name not in self.files]
        wrong += [f"{n} was changed" for n, d in self.files.items() if found.get(n, d) != d]
        if wrong:
            raise IntegrityError(f"{folder} is not what was recorded: " + "; ".join(sorted(wrong)))

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {"files": dict(self.files), "digest": self.digest(), "lineage": dict(self.lineage)}


def environment() -> dict[str, Any]:
    """Return what the bits of a result depend on: platform and library versions.

    The thread count belongs here too; ``expunge.engine.device`` adds it, since the core never
    imports torch.
    """
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "machine": platform.machine(),
        "libraries": versions,
    }
