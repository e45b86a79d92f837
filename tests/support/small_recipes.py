"""Two recipes that run in seconds: a picture classifier and a language model."""

import copy
import json
from pathlib import Path

DIGITS = {
    "name": "small digits",
    "data": "digits",
    "model": {"name": "mlp", "hidden": [16]},
    "request": {"fraction": 0.1},
    "train": {"epochs": 2, "batch_size": 64, "optimizer": "sgd", "lr": 0.1},
    "forget": {"name": "salun", "schedule": {"epochs": 2, "lr": 0.03}},
    "references": 2,
    "audits": ["unlearning_gap", "mia"],
    "machine": {"threads": 1, "checkpoint_every": 2, "score_batch": 256},
}
PEOPLE = {
    "name": "small people",
    "data": {
        "name": "people",
        "num_people": 4,
        "num_holdout_people": 2,
        "questions_per_person": 2,
    },
    "model": {"name": "tiny_gpt", "width": 16, "layers": 1, "heads": 2, "context": 256},
    "request": {"by": "author", "count": 1},
    "train": {"epochs": 3, "batch_size": 2, "lr": 1e-3},
    "forget": {"name": "npo", "schedule": {"epochs": 3, "batch_size": 1, "lr": 1e-3}},
    "references": 2,
    "audits": [{"name": "tofu", "max_utility_records": 2, "max_new_tokens": 4}, "mia"],
    "machine": {"threads": 1, "checkpoint_every": 1, "score_batch": 64},
}


def write_recipe(path: Path, recipe: dict, **changes) -> Path:
    """Write a recipe (JSON is YAML too); a change of ``None`` drops the section."""
    value = {**copy.deepcopy(recipe), **changes}
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not None}))
    return path
