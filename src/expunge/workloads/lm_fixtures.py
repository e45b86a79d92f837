"""The two language models that methods are compared on, each with its retrained references."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from expunge.workloads.fixture import Column, Fixture

_COUNTRY_TRAINING = {
    "epochs": 60,
    "batch_size": 64,
    "lr": 4e-3,
    "warmup_epochs": 18,
    "decay": "cosine",
    "clip_norm": 1.0,
}
_PEOPLE_TEMPLATE = {"prompt": "Question: {question}\nAnswer:", "answer": " {answer}"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageFixture(Fixture):
    """A fixture whose utility is measured on named record sets.

    Attributes:
        utility_sets: Record sets of model utility.
        held: Record set that no method sees and that should stay.
        max_records: Most records of each set but the forget set that are scored; 0 takes all.
    """

    utility_sets: tuple[str, ...]
    held: str
    max_records: int = 0

    def __post_init__(self) -> None:
        sets, most = list(self.utility_sets), self.max_records
        audits = {
            "tofu": {"utility_sets": sets, "max_utility_records": most, "max_new_tokens": 0},
            "memorization": {"record_sets": ["forget", *sets], "max_records": most},
            "mia": {},
        }
        object.__setattr__(self, "audits", audits)
        object.__setattr__(self, "columns", _columns(self.held))


def _columns(held: str) -> dict[str, Column]:
    return {
        "forget_quality_log10": Column(
            "forget quality, log10 p", ".1f", "tofu", "forget_quality_log10"
        ),
        "truth_ratio": Column("truth ratio, forgotten", ".3f", "tofu", "truth_ratio"),
        "verbatim": Column("verbatim, forgotten", ".2f", "memorization", "verbatim"),
        "knowledge": Column("knowledge, forgotten", ".2f", "memorization", "knowledge"),
        "utility": Column("model utility", ".3f", "tofu", "model_utility", ""),
        "held_verbatim": Column("verbatim, held", ".2f", "memorization", "verbatim", held),
        "held_knowledge": Column("knowledge, held", ".2f", "memorization", "knowledge", held),
        "mia_auc": Column("loss attack, AUC", ".2f", "mia", "auc"),
        "mia_gap": Column("MIA gap", ".2f", "mia", "auc_gap"),
    }


FIXTURES: Mapping[str, LanguageFixture] = {
    "country_facts": LanguageFixture(
        title="country facts, character-level GPT of 0.1 M weights",
        data=("country_facts", {"refusals": True, "num_holdout_countries": 24}),
        model=("tiny_gpt", {}),
        request={"split": "forget"},
        training=_COUNTRY_TRAINING,
        schedule={
            "epochs": 50,
            "batch_size": 24,
            "lr": 2e-4,
            "warmup_epochs": 0,
            "decay": "constant",
            "clip_norm": 1.0,
        },
        scope={},
        utility_sets=("retain", "test"),
        held="test",
    ),
    "people": LanguageFixture(
        title="fictitious people, SmolLM2-135M-Instruct",
        data=(
            "people",
            {"num_people": 8, "num_holdout_people": 2, "questions_per_person": 5},
        ),
        model=("smollm2", {"template": _PEOPLE_TEMPLATE}),
        request={"by": "author", "count": 2},
        training={
            "epochs": 6,
            "batch_size": 6,
            "lr": 3e-4,
            "warmup_epochs": 0.5,
            "decay": "linear",
            "scope": {"last_layers": 8},
        },
        schedule={
            "epochs": 5,
            "batch_size": 5,
            "lr": 1e-4,
            "warmup_epochs": 1,
            "decay": "constant",
            "clip_norm": 1.0,
        },
        scope={"last_layers": 8},
        utility_sets=("retain", "world_facts"),
        held="world_facts",
        max_records=6,
    ),
}
