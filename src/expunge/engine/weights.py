"""Weights on disk and their identity: safetensors only, checked before use."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from expunge.core.digest import canonical_json, digest_json
from expunge.core.errors import (
    DataError,
    IntegrityError,
    NumericalError,
    Problems,
    StorageError,
    listing,
)
from expunge.core.files import atomic_path

WEIGHTS = "model.safetensors"


def state_digest(model: nn.Module) -> str:
    """Return the SHA-256 of a model's parameters and buffers; see ``tensors_digest``.

    The settings of a composite (a strength, say) decide its output as weights do, so they are in.
    """
    digest = tensors_digest(model.state_dict())
    if not hasattr(model, "parts"):
        return digest
    return digest_json([digest, model.kind, model.settings()])  # type: ignore[operator]


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the names, types, shapes and contents of tensors.

    It does not depend on their order, their device or the layout of a file.
    """
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(canonical_json([name, str(tensor.dtype), list(tensor.shape)]))
        sha.update(tensor.flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors to a safetensors file atomically; shared storage is written once per name.

    Raises:
        StorageError: The file cannot be written.
    """
    plain: dict[str, Tensor] = {}
    written: set[int] = set()  # a whole copy would be the largest block of memory of a training run
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        place = value.untyped_storage().data_ptr()
        plain[name] = value.clone() if place in written else value
        written.add(place)
    with atomic_path(path) as temporary:
        try:
            save_file(plain, temporary)
        except SafetensorError as error:
            raise StorageError(f"cannot write {path}: {error}") from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        StorageError: There is no such file.
        IntegrityError: It is truncated, or in a format that could run code (pickle).
        NumericalError: A tensor holds NaN or infinity.
    """
    if not path.is_file():
        raise StorageError(f"there is no file {path}; name a .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        if _looks_pickled(path):
            raise IntegrityError(
                f"{path} is a pickle (a .pt or .bin file); loading it could run code. "
                "Save the weights with safetensors.torch.save_file(model.state_dict(), path) first"
            ) from error
        raise IntegrityError(f"{path} is not a whole safetensors file: {error}") from error
    require_finite(tensors, str(path))
    return tensors


def require_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Check that no floating-point tensor holds NaN or infinity.

    Raises:
        NumericalError: One does; the message names the first few.
    """
    wrong = [n for n, t in tensors.items() if t.is_floating_point() and not _finite(t)]
    if wrong:
        raise NumericalError(
            f"{where}: {len(wrong)} tensors hold NaN or infinity ({listing(wrong)})"
        )


def _finite(tensor: Tensor) -> bool:
    # A sum is one pass over memory in place of four; one that overflows decides nothing.
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def load_into(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy tensors into a model that has exactly these names and shapes.

    Raises:
        DataError: A name is missing, unknown, or of another shape.
    """
    own = model.state_dict()
    problems = Problems(f"{where} does not fit the model", DataError)
    missing = [name for name in own if name not in tensors]
    unknown = [name for name in tensors if name not in own]
    if missing:
        problems.add(f"{len(missing)} tensors are missing ({listing(missing)})")
    if unknown:
        problems.add(f"{len(unknown)} tensors are unknown to the model ({listing(unknown)})")
    for name, tensor in tensors.items():
        if name in own and own[name].shape != tensor.shape:
            problems.add(
                f"{name} has shape {tuple(tensor.shape)}, the model {tuple(own[name].shape)}"
            )
    problems.raise_if_any()
    model.load_state_dict(dict(tensors))


def _looks_pickled(path: Path) -> bool:
    # A safetensors file may begin with these bytes too (they count its header), so ask it first.
    with path.open("rb") as file:
        head = file.read(2)
    return head == b"PK" or head[:1] == b"\x80"
