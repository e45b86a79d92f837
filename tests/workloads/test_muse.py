"""Growing and successive requests: the folds, the chain of models, being stopped, the page."""

import dataclasses
import functools
import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.core.errors import ConfigError, DataError, Interrupted
from expunge.core.records import Records
from expunge.core.run import Run
from expunge.forget.method import apply
from expunge.workloads import lm_fixtures, muse
from expunge.workloads.lm_fixtures import FIXTURES, LanguageFixture
from expunge.workloads.muse import MuseBench, six_properties
from expunge.workloads.muse_folds import disjoint_folds, falls, nested_folds
from expunge.workloads.muse_page import body, head, remarks, utility_plot
from expunge.workloads.workload import run_workload


def people(count, size):
    ids = tuple(f"r-{row}" for row in range(count * size))
    return Records(ids, {"author": [f"a-{row // size}" for row in range(count * size)]})


@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 12), st.integers(0, 5))
def test_folds_part_the_records_by_whole_groups(count, size, folds, seed):
    records = people(count, size)
    if folds > count:
        with pytest.raises(DataError, match="ask for fewer folds"):
            disjoint_folds(records, folds, seed, "author")
        return
    parts = disjoint_folds(records, folds, seed, "author")
    everything = [record_id for part in parts for record_id in part]
    assert sorted(everything) == sorted(records.ids)  # disjoint, and nothing is lost
    owners = [{int(i.removeprefix("r-")) // size for i in part} for part in parts]
    assert sum(map(len, owners)) == count
    assert max(map(len, parts)) - min(map(len, parts)) <= size
    assert parts == disjoint_folds(records, folds, seed, "author")


@given(st.integers(1, 12), st.integers(1, 12))
def test_growing_requests_contain_each_other_and_end_with_everything(count, folds):
    records = people(count, 1)
    nested = nested_folds(disjoint_folds(records, min(folds, count), 0))
    for smaller, larger in itertools.pairwise(nested):
        assert set(smaller) < set(larger)
    assert set(nested[-1]) == set(records.ids)


def test_the_seed_decides_the_folds():
    records = people(12, 2)
    one, other = (disjoint_folds(records, 3, seed, "author") for seed in (0, 1))
    assert one != other


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0, 2.0, 1.0], True),
        ([3.0, 3.0, 1.0], False),
        ([1.0, 2.0], False),
        ([3.0, None, 1.0], None),
        ([3.0], None),
    ],
)
def test_a_fall_is_one_at_every_step(values, expected):
    assert falls(values) is expected


WHOLE = FIXTURES["country_facts"]
facts = functools.cache(WHOLE.dataset)


class Small(LanguageFixture):
    """A fixture that reads its data once."""

    def dataset(self):
        return facts()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def small(monkeypatch, cache, tmp_path):
    """The country facts at a size of seconds: a tiny model that learns for one epoch."""
    monkeypatch.setenv("EXPUNGE_CACHE", str(cache))
    tiny = Small(
        **{field.name: getattr(WHOLE, field.name) for field in dataclasses.fields(WHOLE)}
        | {
            "model": ("tiny_gpt", {"width": 16, "layers": 1, "heads": 2, "context": 48}),
            "training": {"epochs": 1, "batch_size": 64, "lr": 4e-3},
            "schedule": {"epochs": 1, "batch_size": 24, "lr": 1e-3},
        }
    )
    monkeypatch.setitem(lm_fixtures.FIXTURES, "country_facts", tiny)
    return tmp_path / "bench"


SETTINGS = {"method": "grad_diff", "folds": 2, "references": 1, "max_records": 4}


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def numbers_of(folder):
    return [row["numbers"] for row in results_of(folder)["rows"]]


def test_a_bench_leaves_numbers_properties_a_plot_a_table_and_a_page(small):
    page = run_workload("muse", SETTINGS, small, Run(folder=small / "checkpoints"))
    rows = results_of(small)["rows"]
    assert [(row["drive"], row["step"], row["records"]) for row in rows] == [
        ("scalability", 1, 36),
        ("scalability", 2, 72),
        ("sustainability", 1, 36),
        ("sustainability", 2, 72),
    ]
    assert rows[0]["numbers"] == rows[2]["numbers"]  # the first request is the same
    assert rows[1]["numbers"]["after"] != rows[3]["numbers"]["after"]
    assert rows[1]["numbers"]["before"] == rows[3]["numbers"]["before"]
    assert [row["steps"] for row in rows] == [2, 3, 2, 2]
    for row in rows:
        for role in ("before", "after", "retrained"):
            assert row["numbers"][role].keys() == {"verbatim", "knowledge", "privleak", "utility"}
        # One retrained model has no other to stand beside.
        assert row["numbers"]["retrained"]["privleak"]["value"] is None
        assert row["numbers"]["after"]["privleak"]["value"] is not None
    properties = json.loads((small / "muse.json").read_text())
    assert [name[:2] for name in properties] == ["C1", "C2", "C3", "C4", "C5", "C6"]
    assert all(told.keys() == {"before", "after", "retrained"} for told in properties.values())
    assert (
        properties["C6 sustainability"]["after"] == rows[3]["numbers"]["after"]["utility"]["value"]
    )
    assert (small / "utility.svg").read_text().startswith("<?xml")
    table = (small / "table.md").read_text()
    assert table.count("\n| ") == 8
    assert "grad_diff, 2 successive requests | 72" in table
    assert "data:image/svg+xml;base64," in page.read_text()
    assert not (small / "models").exists()


def test_attacks_are_repeated_after_each_request(small):
    """What an audit found after one request need not hold after the next."""
    attack = {"name": "quantize", "bits": [8], "pruning": []}
    page = run_workload("muse", {**SETTINGS, "attacks": [attack]}, small, Run())
    rows = [row["numbers"]["attacks"] for row in results_of(small)["rows"]]
    assert [len(row) for row in rows] == [1, 1, 1, 1]
    assert {row[0]["audit"] for row in rows} == {"quantize"}
    assert all(row[0]["planned"] >= row[0]["carried_out"] for row in rows)
    table = (small / "table.md").read_text()
    assert table.count("| quantize | ") == 3  # the first request is the same for both
    assert "2 successive requests (72 records)" in page.read_text()
    with pytest.raises(ConfigError, match="no audits entry 'quantise'"):
        run_workload("muse", {**SETTINGS, "attacks": ["quantise"]}, small, Run())


def test_a_bench_that_was_stopped_goes_on_and_ends_with_the_same_numbers(small, monkeypatch):
    settings = {**SETTINGS, "folds": 3}
    whole, stopped = small / "whole", small / "stopped"
    run_workload("muse", settings, whole, Run(folder=whole / "checkpoints"))
    done = []

    def once(name, model, *args, **kwargs):
        if len(done) == 4:
            raise Interrupted("stop here")
        done.append(name)
        return apply(name, model, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(muse, "apply", once)
        with pytest.raises(Interrupted):
            run_workload("muse", settings, stopped, Run(folder=stopped / "checkpoints"))
    assert len(list((stopped / "jobs").iterdir())) == 4
    kept = (stopped / "jobs" / "sustainability-2.json").read_bytes()
    calls = []
    monkeypatch.setattr(
        muse, "apply", lambda name, *a, **k: calls.append(name) or apply(name, *a, **k)
    )
    run_workload("muse", settings, stopped, Run(folder=stopped / "checkpoints"))
    assert len(calls) == 1  # the third of the successive requests, from the second's files
    assert (stopped / "jobs" / "sustainability-2.json").read_bytes() == kept
    assert numbers_of(stopped) == numbers_of(whole)
    run_workload("muse", settings, stopped, Run(folder=stopped / "checkpoints"))
    assert len(calls) == 1


def test_other_settings_are_other_numbers(small):
    run_workload("muse", SETTINGS, small, Run(folder=small / "checkpoints"))
    first = numbers_of(small)
    harder = {**SETTINGS, "settings": {"schedule": {"lr": 1e-2}}}
    run_workload("muse", harder, small, Run(folder=small / "checkpoints"))
    assert numbers_of(small) != first
    assert numbers_of(small)[0]["before"] == first[0]["before"]


def test_each_request_is_given_its_own_records_and_the_same_kept_ones(small, monkeypatch):
    seen = []

    def look(name, model, given, *args, **kwargs):
        seen.append((set(given.forget.ids), set(given.retain.ids), set(given.kept.ids)))
        return apply(name, model, given, *args, **kwargs)

    monkeypatch.setattr(muse, "apply", look)
    run_workload("muse", SETTINGS, small, Run(folder=small / "checkpoints"))
    (first, retain, kept), (both, *_), (second, again, left) = seen
    assert first | second == both
    assert not first & second
    assert retain == again
    assert not retain & both
    assert kept >= second  # what is not yet asked for was learned, and is still to be kept learned
    assert not kept & first
    assert not left & both


def test_a_composite_that_continues_takes_the_next_request_and_others_refuse(small):
    o3 = {**SETTINGS, "method": "o3", "settings": {"schedule": {"epochs": 1}}}
    run_workload("muse", o3, small / "o3", Run(folder=small / "o3" / "checkpoints"))
    rows = results_of(small / "o3")["rows"]
    assert [row["refused"] for row in rows] == [""] * 4
    assert "changes the output only" in (small / "o3" / "table.md").read_text()
    whp = {**SETTINGS, "method": "whp"}
    run_workload("muse", whp, small / "whp", Run(folder=small / "whp" / "checkpoints"))
    rows = results_of(small / "whp")["rows"]
    assert [bool(row["refused"]) for row in rows] == [False, False, False, True]
    assert "takes a plain model" in rows[3]["refused"]
    assert "refused: " in (small / "whp" / "table.md").read_text()
    properties = json.loads((small / "whp" / "muse.json").read_text())
    assert set(properties["C6 sustainability"].values()) == {None}
    assert properties["C5 scalability"]["after"] is not None


def test_wrong_settings_are_told_before_any_work(small):
    with pytest.raises(ConfigError, match="'nppo'; did you mean 'npo'"):
        run_workload("muse", {**SETTINGS, "method": "nppo"}, small, Run())
    with pytest.raises(ConfigError, match="betta"):
        run_workload("muse", {**SETTINGS, "settings": {"betta": 1}}, small, Run())
    with pytest.raises(ConfigError, match="no 'countries'"):
        run_workload("muse", {**SETTINGS, "fixture": "countries"}, small, Run())
    with pytest.raises(DataError, match="cannot make 25 folds of 24 groups by 'country'"):
        run_workload("muse", {**SETTINGS, "folds": 25}, small, Run())
    with pytest.raises(ConfigError, match="folds"):
        run_workload("muse", {**SETTINGS, "folds": 1}, small, Run())
    assert not small.exists()


@pytest.fixture
def planted():
    """Results with numbers that can be counted: utility 90, 80 and 90, 70."""

    def told(value):
        return {"value": value, "low": value - 1, "high": value + 1, "n": 9, "note": ""}

    def row(drive, step, utility):
        names = ("verbatim", "knowledge", "privleak")
        own = {**{name: told(10.0 * step) for name in names}, "utility": told(utility)}
        whole = {name: told(95.0) for name in (*names, "utility")}
        numbers = {"before": whole, "after": own, "retrained": whole}
        return {
            "drive": drive,
            "step": step,
            "records": 5 * step,
            "numbers": numbers,
            "steps": 7,
            "seconds": 1.0,
            "refused": "",
        }

    rows = [row("scalability", 1, 90.0), row("scalability", 2, 80.0)]
    rows += [row("sustainability", 1, 90.0), row("sustainability", 2, 70.0)]
    return {
        "settings": {"method": "npo", "folds": 2},
        "fixture": "facts",
        "evidence": "weights-suppressed",
        "rows": rows,
    }


def test_the_six_properties_are_those_of_the_smallest_request_and_of_the_last(planted):
    properties = six_properties(planted)
    assert [told["after"] for told in properties.values()] == [10, 10, 10, 90, 80, 70]
    assert {told["before"] for told in properties.values()} == {95.0}


def test_the_table_and_what_is_said_of_it(planted):
    table = body(planted)
    assert {len(line) for line in table} == {len(head())}
    assert [line[0] for line in table] == [
        "original",
        "retrained",
        "npo, first request",
        "original",
        "retrained",
        "npo, one request",
        "npo, 2 successive requests",
    ]
    assert table[-1][-2:] == ["70.0 (69.0 to 71.0)", "7"]
    growing, successive = remarks(planted)
    assert growing.endswith("90.0, 80.0; it falls with every further part.")
    assert successive.startswith("Utility of successive requests")
    planted["rows"][1]["numbers"]["after"]["utility"]["value"] = 91.0
    assert remarks(planted)[0].endswith("it does not fall with every further part.")
    planted["rows"][3].update(numbers={}, refused="no")
    assert remarks(planted)[1].endswith("90.0, n/a; not every number is known.")
    assert body(planted)[-1][2] == "refused: no"


def test_the_plot_is_the_same_for_the_same_numbers(planted):
    assert utility_plot(planted) == utility_plot(planted)
    other = {**planted, "rows": [*planted["rows"][:3], {**planted["rows"][3], "numbers": {}}]}
    assert utility_plot(other) != utility_plot(planted)


def test_the_defaults_are_four_parts_of_country_facts():
    config = MuseBench()
    assert (config.fixture, config.folds, config.settings) == ("country_facts", 4, {})
    assert np.isin(["country_facts", "people"], list(muse._GROUPS)).all()
