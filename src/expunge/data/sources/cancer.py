"""Wisconsin breast cancer: 569 biopsies, 30 measurements each, two classes (scikit-learn)."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from pydantic import Field

from expunge.core.config import config
from expunge.data.arrays import array_records, split_dataset
from expunge.data.dataset import Dataset, number_ids
from expunge.data.inputs import as_column
from expunge.data.source import source


@config
class CancerConfig:
    """Settings of the biopsies."""

    num_holdout: Annotated[int, Field(ge=0)] = 110
    """Biopsies that no model is trained on, for audits."""
    num_test: Annotated[int, Field(ge=0)] = 110
    """Biopsies that measure utility."""


@source("cancer", title="Wisconsin breast cancer, a table of 569 biopsies", kind="classifier")
def cancer(config: CancerConfig, seed: int) -> Dataset:
    """Return 30 measurements of each biopsy in their own units; give the model ``normalize: true``.

    Classes are ``malignant`` and ``benign``. Each measurement is a column too, such as
    ``mean_radius``, by whose range a request may name records.

    Source: W. Wolberg et al., Breast Cancer Wisconsin (Diagnostic), UCI (1995).
    """
    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer()
    ids = number_ids("cancer", len(found.target))
    records = array_records(found.data, found.target, ids=ids, where="cancer")
    names = [str(name).replace(" ", "_") for name in found.feature_names]
    columns = {name: as_column(found.data[:, place]) for place, name in enumerate(names)}
    data = split_dataset(records.replace(**columns), config.num_holdout, config.num_test, seed)
    return dataclasses.replace(
        data, facts={**data.facts, "classes": [*map(str, found.target_names)]}
    )
