"""Manipulated training data of a classifier: backdoors, confused classes and wrong labels.

What a model learned from such records is to be corrected, although only some of them are known.
Each function returns new records and the ids of all that it manipulated (S_m); the records given
stay as they are.

Source: Corrective Machine Unlearning (Goel et al., TMLR 2024), section 4; the label noise is that
of Label-Agnostic Forgetting (Shen et al., ICLR 2024), section 4.
"""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from expunge.core.config import config, to_json
from expunge.core.errors import ConfigError, DataError, listing
from expunge.core.records import Records
from expunge.core.sets import sample_ids
from expunge.core.streams import stream
from expunge.data.classes import class_numbers
from expunge.data.dataset import Dataset
from expunge.data.inputs import as_column

MANIPULATED = "manipulated"
"""Split that holds every manipulated record."""

Corner = Literal["top_left", "top_right", "bottom_left", "bottom_right"]
Manipulated = tuple[Records, tuple[str, ...]]


@config
class Corruption:
    """How the training records of a source are manipulated; held-out and test records are not."""

    kind: Literal["poison", "confuse", "swap_labels", "noise_labels"]
    """``poison``: a patch in the corner of pictures, under one label. ``confuse``: records of two
    classes get each other's label. ``swap_labels``: labels of random records are permuted.
    ``noise_labels``: random records get a wrong label."""
    count: Annotated[int, Field(ge=1)] | None = None
    """Manipulated records, for all kinds but ``noise_labels``."""
    target: int | str | None = None
    """Label of poisoned records; class 0 when absent."""
    size: Annotated[int, Field(ge=1)] | None = None
    """Height and width of the patch in pixels; 3 when absent."""
    value: float | None = None
    """What the patch is filled with; the highest value of the training records when absent."""
    classes: tuple[int | str, ...] | None = None
    """The two classes that are confused, or those whose labels become noisy (all when absent)."""
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the records of ``classes`` that ``noise_labels`` gives a wrong label; 0.6 when
    absent."""


def corrupt(dataset: Dataset, corruption: Corruption, seed: int) -> Dataset:
    """Return a classifier data set whose training records are manipulated.

    The split ``manipulated`` names the manipulated records, and the fact ``corruption`` what was
    done to them, with every default filled in. Ids stay, so that the clean labels are those of the
    same source without ``corrupt``.

    Args:
        dataset: The clean data.
        corruption: What to do.
        seed: Decides which records.

    Raises:
        ConfigError: A setting is missing, or belongs to another kind.
        DataError: The data are of another kind, or cannot be manipulated so.
    """
    if dataset.kind != "classifier":
        raise ConfigError(
            f"data.corrupt manipulates the records of a classifier; these are for a {dataset.kind}"
        )
    function = _KINDS[corruption.kind]
    settings = _settings(corruption, function)
    if settings.get("target") is not None:
        (settings["target"],) = class_numbers(
            [settings["target"]], dataset.facts, "data.corrupt.target"
        )
    if settings.get("classes") is not None:
        settings["classes"] = class_numbers(
            settings["classes"], dataset.facts, "data.corrupt.classes"
        )
    if corruption.kind == "poison" and settings["value"] is None:
        settings["value"] = highest_value(dataset.train)
    given = dict(settings)
    parameters = inspect.signature(function).parameters
    if "num_classes" in parameters:
        given["num_classes"] = dataset.facts["num_classes"]
    if "seed" in parameters:
        given["seed"] = seed
    train, ids = function(dataset.train, **given)
    return dataclasses.replace(
        dataset,
        train=train,
        splits={**dataset.splits, MANIPULATED: ids},
        facts={**dataset.facts, "corruption": {"kind": corruption.kind, **_plain(settings)}},
    )


def poison(
    records: Records,
    *,
    count: int,
    size: int = 3,
    target: int = 0,
    value: float | None = None,
    seed: int = 0,
) -> Manipulated:
    """Put a patch into the bottom right corner of random pictures and give them one label.

    Records of the target class are drawn too; their label stays.

    Args:
        records: Pictures ``x`` of shape (..., height, width) with labels ``y``.
        count: How many are poisoned.
        size: Height and width of the patch.
        target: The label.
        value: What the patch is filled with; the highest value of the records when absent.
        seed: Decides which records.

    Raises:
        DataError: There are fewer records, the inputs are no pictures, or the patch is larger.
    """
    ids = sample_ids(records.ids, count, seed, "poison")
    rows = _rows(records, ids)
    filled = highest_value(records) if value is None else value
    pictures = {row: patched(records["x"][row], size, filled) for row in rows}
    labels = _labels(records)
    labels[rows] = target
    return records.replace(x=_overlaid(records["x"], pictures), y=as_column(labels)), ids


def confuse(records: Records, *, count: int, classes: Sequence[int]) -> Manipulated:
    """Give the first ``count / 2`` records of each of two classes the other one's label.

    Args:
        records: Records with labels ``y``.
        count: How many records change their label; even.
        classes: The two classes.

    Raises:
        DataError: The count is odd, a class has too few records, or there are not two classes.
    """
    if len(classes) != 2 or classes[0] == classes[1]:
        raise DataError(f"confuse: classes = {list(classes)}; name two different classes")
    if count % 2 or count < 2:
        raise DataError(f"confuse: count = {count} must be even: half of it from each class")
    labels = _labels(records)
    if not np.setdiff1d(labels, classes).size:
        warnings.warn(
            "confuse: the records have no third class, so that no domain is left unaffected; "
            "accuracy elsewhere cannot be told",
            stacklevel=2,
        )
    changed = labels.copy()
    for one, other in (classes, classes[::-1]):
        rows = np.flatnonzero(labels == one)[: count // 2]
        if len(rows) < count // 2:
            raise DataError(
                f"confuse: class {one} has {len(rows)} records but {count // 2} of it are to be "
                f"confused; lower count = {count}"
            )
        changed[rows] = other
    ids = tuple(records.ids[row] for row in np.flatnonzero(changed != labels))
    return records.replace(y=as_column(changed)), ids


def swap_labels(records: Records, *, count: int, seed: int = 0) -> Manipulated:
    """Permute the labels of random records among themselves.

    The frequencies of the classes stay. A record may be given a label like its own; it is counted
    as manipulated all the same.

    Args:
        records: Records with labels ``y``.
        count: How many records.
        seed: Decides which records and how.

    Raises:
        DataError: There are fewer records, or fewer than two are to be swapped.
    """
    if count < 2:
        raise DataError(f"swap_labels: count = {count}; at least 2 labels can be swapped")
    ids = sample_ids(records.ids, count, seed, "swap-labels")
    rows, labels = _rows(records, ids), _labels(records)
    labels[rows] = labels[stream(seed, "swapped-labels").permutation(rows)]
    return records.replace(y=as_column(labels)), ids


def noise_labels(
    records: Records,
    num_classes: int,
    *,
    share: float = 0.6,
    classes: Sequence[int] | None = None,
    seed: int = 0,
) -> Manipulated:
    """Give random records of some classes a wrong label, drawn from all other classes.

    The authors' code draws from all classes but the last, and may draw the true one.

    Args:
        records: Records with labels ``y``.
        num_classes: Number of classes (K).
        share: Share of the records of these classes.
        classes: Which classes; all when absent.
        seed: Decides which records, and their labels.

    Raises:
        DataError: There are fewer than two classes, or no record to relabel.
    """
    if num_classes < 2:
        raise DataError(f"noise_labels: with {num_classes} classes there is no wrong label")
    labels = _labels(records)
    pool = np.flatnonzero(np.isin(labels, range(num_classes) if classes is None else classes))
    count = round(share * len(pool))
    if not count:
        raise DataError(
            f"noise_labels: share = {share} of {len(pool)} records is none; raise share, or name "
            "classes that have records"
        )
    ids = sample_ids([records.ids[row] for row in pool], count, seed, "noise-labels")
    rows = _rows(records, ids)
    shifts = stream(seed, "wrong-labels").integers(1, num_classes, size=count)
    labels[rows] = (labels[rows] + shifts) % num_classes
    return records.replace(y=as_column(labels)), ids


def patched(x: Any, size: int, value: float, corner: Corner = "bottom_right") -> np.ndarray:
    """Return pictures with a square patch in a corner of every channel.

    Args:
        x: One picture or many, (..., height, width).
        size: Height and width of the patch.
        value: What it is filled with.
        corner: Which corner.

    Raises:
        DataError: The input is no picture, the patch is larger, or its value is not finite.
    """
    pictures = np.array(x)
    if pictures.ndim < 2:
        raise DataError(
            f"patch: inputs of shape {pictures.shape} are no pictures; they need height and width"
        )
    height, width = pictures.shape[-2:]
    if not 1 <= size <= min(height, width):
        raise DataError(
            f"patch: size = {size} does not fit into pictures of {height} x {width} pixels; "
            f"choose 1 to {min(height, width)}"
        )
    if not np.isfinite(value):
        raise DataError(f"patch: value = {value} is not finite")
    down = slice(0, size) if corner.startswith("top") else slice(height - size, height)
    across = slice(0, size) if corner.endswith("left") else slice(width - size, width)
    pictures[..., down, across] = value
    return pictures


def highest_value(records: Records) -> float:
    """Return the highest value of any input: what a patch is filled with by default."""
    x = records["x"]
    if isinstance(x, np.ndarray):
        return float(x.max())
    return max(float(np.max(x[row])) for row in range(len(x)))


_KINDS: Mapping[str, Callable[..., Manipulated]] = {
    "poison": poison,
    "confuse": confuse,
    "swap_labels": swap_labels,
    "noise_labels": noise_labels,
}


def _settings(corruption: Corruption, function: Callable[..., Manipulated]) -> dict[str, Any]:
    """Return the settings of a kind, defaults filled in; refuse those of another one."""
    parameters = inspect.signature(function).parameters
    given = {name: v for name, v in to_json(corruption).items() if name != "kind"}
    own = {name: parameters[name].default for name in given if name in parameters}
    foreign = [name for name, v in given.items() if v is not None and name not in own]
    if foreign:
        raise ConfigError(
            f"data.corrupt: {listing(foreign)} does not go with kind {corruption.kind!r}; it takes "
            f"{listing(own)}"
        )
    settings = own | {name: given[name] for name in own if given[name] is not None}
    missing = [name for name, value in settings.items() if value is inspect.Parameter.empty]
    if missing:
        raise ConfigError(f"data.corrupt: kind {corruption.kind!r} needs {listing(missing)}")
    return settings


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(v) if isinstance(v, tuple) else v for name, v in settings.items()}


def _rows(records: Records, ids: Sequence[str]) -> np.ndarray:
    return np.flatnonzero(np.isin(records.ids, ids))


def _labels(records: Records) -> np.ndarray:
    return np.array([int(label) for label in records["y"]], dtype=np.int64)


class _Overlaid(Sequence[Any]):
    """A lazy column some rows of which are replaced."""

    def __init__(self, values: Sequence[Any], replaced: Mapping[int, np.ndarray]) -> None:
        self._values, self._replaced = values, replaced

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, row: Any) -> Any:
        place = range(len(self))[row]
        return self._replaced[place] if place in self._replaced else self._values[place]


def _overlaid(values: Sequence[Any], replaced: Mapping[int, np.ndarray]) -> Sequence[Any]:
    if not isinstance(values, np.ndarray):
        return _Overlaid(values, replaced)
    whole = values.copy()
    for row, value in replaced.items():
        whole[row] = value
    return whole
