"""People who never lived: seeded biographies as questions and answers, laid out as TOFU's."""

from __future__ import annotations

import itertools
from typing import Annotated, Any

from pydantic import Field

from expunge.core.config import config
from expunge.core.errors import ConfigError
from expunge.core.records import Records
from expunge.core.streams import stream
from expunge.data.dataset import Dataset, number_ids
from expunge.data.probes import read_resource, real_authors, world_facts
from expunge.data.source import source

_NUM_WRONG = 5
_PERCENTS = (1, 5, 10)


@config
class PeopleConfig:
    """Settings of the invented people."""

    num_people: Annotated[int, Field(ge=1)] = 40
    """People that the model is trained on."""
    num_holdout_people: Annotated[int, Field(ge=0)] = 10
    """Further people that no model is trained on, for audits."""
    questions_per_person: Annotated[int, Field(ge=1, le=10)] = 10
    """Facts told about each person."""


@source("people", title="invented authors, questions in TOFU's layout", kind="causal_lm")
def people(config: PeopleConfig, seed: int) -> Dataset:
    """Return facts about invented people; column ``author`` names the person.

    Splits ``forget01``, ``forget05`` and ``forget10`` are the last 1, 5 and 10 % of the people
    (where that is at least one). Names are put together from syllables, so that they are nobody's.

    Source: P. Maini et al., TOFU: A Task of Fictitious Unlearning for LLMs (2024), section 2.
    """
    told = read_resource("people.json")
    total = config.num_people + config.num_holdout_people
    names = _names(told, total, seed)
    per_person = config.questions_per_person
    facts = [_facts(told, person, name, per_person, seed) for person, name in enumerate(names)]
    train = _records("people", facts[: config.num_people])
    splits = {}
    for percent in _PERCENTS:
        count = config.num_people * percent // 100
        if count:
            splits[f"forget{percent:02d}"] = train.ids[-count * per_person :]
    return Dataset(
        "causal_lm",
        train,
        holdout=_records("holdout", facts[config.num_people :]),
        probes={"real_authors": real_authors(), "world_facts": world_facts(seed)},
        splits=splits,
    )


def _names(told: Any, count: int, seed: int) -> list[str]:
    """Return distinct names; more people never change the names of the first ones."""
    parts = [*told["first_name"], *told["last_name"]]
    every = list(itertools.product(*parts))
    if count > len(every):
        raise ConfigError(
            f"data.people: {count} people were asked for, but there are {len(every)} names"
        )
    order = stream(seed, "people-names").permutation(len(every))[:count]
    return ["{}{} {}{}".format(*every[i]) for i in order]


def _facts(told: Any, person: int, name: str, count: int, seed: int) -> list[dict[str, Any]]:
    rows = []
    for attribute in told["attributes"][:count]:
        values = [" ".join(parts) for parts in itertools.product(*attribute["parts"])]
        draw = stream(seed, "people-facts", person, attribute["name"])
        picked = draw.choice(len(values), size=1 + _NUM_WRONG, replace=False)
        true, *wrong = (values[i] for i in picked)
        rows.append(
            {
                "question": attribute["question"].format(name=name),
                "answer": attribute["answer"].format(name=name, value=true),
                "paraphrased_question": attribute["paraphrased_question"].format(name=name),
                "paraphrased_answer": attribute["paraphrased_answer"].format(name=name, value=true),
                "perturbed_answer": [
                    attribute["paraphrased_answer"].format(name=name, value=value)
                    for value in wrong
                ],
                "author": name,
                "attribute": attribute["name"],
            }
        )
    return rows


def _records(prefix: str, facts: list[list[dict[str, Any]]]) -> Records:
    rows = [row for person in facts for row in person]
    columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
    return Records(number_ids(prefix, len(rows)), columns)
