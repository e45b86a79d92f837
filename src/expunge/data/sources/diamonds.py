"""Diamonds: the price, or the cut, of 53,920 stones; a table that plotnine carries."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from expunge.core.config import config
from expunge.core.errors import StorageError
from expunge.core.records import Records
from expunge.data.arrays import array_records, class_facts, draw_parts
from expunge.data.dataset import Dataset, number_ids, require_columns
from expunge.data.inputs import as_column
from expunge.data.regression import regression_facts, regression_records
from expunge.data.source import source
from expunge.data.tables import read_table

# Grades from the worst to the best.
_GRADES: Mapping[str, Sequence[str]] = {
    "cut": ("Fair", "Good", "Very Good", "Premium", "Ideal"),
    "color": ("J", "I", "H", "G", "F", "E", "D"),
    "clarity": ("I1", "SI2", "SI1", "VS2", "VS1", "VVS2", "VVS1", "IF"),
}
_MEASURED = ("carat", "depth", "table", "price", "x", "y", "z")
_FILE = Path("data") / "diamonds.csv"


@config
class DiamondsConfig:
    """Settings of the diamonds."""

    target: Literal["price", "cut"] = "price"
    """What is predicted: ``price``, for a regressor, or ``cut``, for a classifier of five."""
    num_train: Annotated[int, Field(ge=2)] = 40_000
    """Stones to train on."""
    num_holdout: Annotated[int, Field(ge=0)] = 5000
    """Stones that no model is trained on, for audits."""
    num_test: Annotated[int, Field(ge=0)] = 5000
    """Stones that measure utility."""


@source("diamonds", title="diamonds, a table of 53,920 stones (plotnine)", kind="any")
def diamonds(config: DiamondsConfig, seed: int) -> Dataset:
    """Return numbers of each stone, standardised by mean and deviation of the training records.

    They are the logarithm of the weight in carats, the grades of cut, colour and clarity from the
    worst, depth and table. The target is ten times the logarithm of the price in dollars. For the
    cut, the logarithm of the price takes the grade's place. Stones with a width of 0 are left out.
    Columns ``cut``, ``color``, ``clarity``, ``carat``, ``price`` and ``price_quarter`` (1 to 4, by
    the training records) name groups.

    Source: H. Wickham, ggplot2: Elegant Graphics for Data Analysis (2016), data set ``diamonds``.
    """
    pool = _pool()
    sizes = {
        "train": config.num_train,
        "holdout": config.num_holdout,
        "test": config.num_test,
    }
    parts = draw_parts(pool, sizes, seed)
    features = {role: _features(part, config.target) for role, part in parts.items()}
    mean, deviation = features["train"].mean(axis=0), features["train"].std(axis=0)
    # A feature that never varies in a few records says nothing; dividing by one keeps it at zero.
    deviation[deviation == 0] = 1.0
    quarters = np.quantile(np.asarray(parts["train"]["price"]), (0.25, 0.5, 0.75))
    made = {}
    for role, part in parts.items():
        if not len(part):
            made[role] = part
            continue
        x, ids = (features[role] - mean) / deviation, part.ids
        price = np.asarray(part["price"])
        if config.target == "price":
            records = regression_records(x, 10 * np.log(price), ids=ids, where=role)
        else:
            records = array_records(x, _codes(part, "cut"), ids=ids, where=role)
        quarter = as_column(1 + np.searchsorted(quarters, price))
        groups = {name: part[name] for name in (*_GRADES, "carat", "price")}
        made[role] = records.replace(**groups, price_quarter=quarter)
    facts = (
        regression_facts(made["train"], "price")
        if config.target == "price"
        else {**class_facts(made["train"], len(_GRADES["cut"])), "classes": list(_GRADES["cut"])}
    )
    kind = "regressor" if config.target == "price" else "classifier"
    return Dataset(kind, made["train"], made["holdout"], made["test"], facts=facts)


def _pool() -> Records:
    """Return the stones whose width, height and depth are known."""
    package = importlib.util.find_spec("plotnine")  # found, not imported: its own needs are absent
    folders = list(package.submodule_search_locations or ()) if package else []
    path = next((Path(f) / _FILE for f in folders if (Path(f) / _FILE).is_file()), None)
    if path is None:
        raise StorageError(
            "the data diamonds lie in the package plotnine, which is not installed; install it "
            "with `pip install --no-deps plotnine==0.15.9`"
        )
    table = read_table(path)
    ids = number_ids("diamonds", len(next(iter(table.values()))))
    read = Records(ids, table)
    require_columns(read, [*_GRADES, *_MEASURED], str(path))
    numbers = {name: as_column(np.array(read[name], dtype=np.float64)) for name in _MEASURED}
    known = np.all([np.asarray(numbers[name]) > 0 for name in ("x", "y", "z")], axis=0)
    return read.replace(**numbers).take(np.flatnonzero(known))


def _features(part: Records, target: str) -> np.ndarray:
    graded = [_codes(part, name) for name in _GRADES if name != target]
    shown = [] if target == "price" else [np.log(np.asarray(part["price"]))]
    measured = [np.asarray(part[name]) for name in ("depth", "table")]
    return np.stack([np.log(np.asarray(part["carat"])), *graded, *shown, *measured], axis=1)


def _codes(part: Records, name: str) -> np.ndarray:
    numbers = {grade: number for number, grade in enumerate(_GRADES[name])}
    return np.array([numbers[grade] for grade in part[name]], dtype=np.int64)
