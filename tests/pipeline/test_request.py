import dataclasses
import json
from collections import Counter

import numpy as np
import pytest

from expunge.core.config import parse, to_json
from expunge.core.errors import ConfigError, DataError, StorageError
from expunge.core.records import Records
from expunge.data.arrays import from_arrays
from expunge.data.dataset import Dataset
from expunge.data.source import load_source
from expunge.pipeline.request import Between, Request, resolve

IDS = tuple("abcdefgh")
TRAIN = Records(
    IDS,
    {
        "question": [f"q{i}" for i in IDS],
        "answer": [f"a{i}" for i in IDS],
        "author": list("xxyyzzzw"),
        "year": np.array([1, 1, 1, 2, 2, 2, 3, 3]),
    },
)
DATA = Dataset(
    "causal_lm",
    TRAIN,
    holdout=Records(("held",), {"question": ["q"], "answer": ["a"]}),
    test=TRAIN.select(["h"]),
    splits={"forget": ("b",), "pair": ("a", "c")},
)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (Request(), "b"),
        (Request(split="pair"), "ac"),
        (Request(ids=("c", "a")), "ca"),
        (Request(where={"author": ("x",)}), "ab"),
        (Request(where={"author": ("x", "y"), "year": (1,)}), "abc"),
        (Request(where={"year": (3,), "author": ("z",)}), "g"),
        (Request(where={"year": Between(min=2, max=2)}), "def"),
        (Request(where={"year": Between(min=1.5), "author": ("z",)}), "efg"),
        (Request(where={"year": Between(max=1), "author": ("y",)}), "c"),
    ],
)
def test_a_rule_names_its_records(request_, expected):
    sets = resolve(request_, DATA, 0)
    assert sets.forget == tuple(expected)
    assert set(sets.retain) == set(IDS) - set(expected) - {"h"}
    assert (sets.holdout, sets.test) == (("held",), ("h",))


def test_draws_are_a_function_of_the_seed_and_never_touch_tests():
    drawn = [resolve(Request(count=3), DATA, seed).forget for seed in range(20)]
    assert drawn[0] == resolve(Request(count=3), DATA, 0).forget
    assert len(set(drawn)) > 5
    assert all(len(set(d)) == 3 and "h" not in d for d in drawn)


@pytest.mark.parametrize(("fraction", "count"), [(0.01, 1), (0.5, 4), (0.99, 7)])
def test_a_fraction_is_rounded_and_never_zero(fraction, count):
    assert len(resolve(Request(fraction=fraction), DATA, 0).forget) == count


def test_groups_are_drawn_whole():
    for seed in range(10):
        forget = set(resolve(Request(count=2, by="author"), DATA, seed).forget)
        groups = [{"a", "b"}, {"c", "d"}, {"e", "f", "g"}]
        assert sum(group <= forget for group in groups) == 2
        assert sum(bool(group & forget) for group in groups) == 2


@pytest.mark.parametrize("text", ['["a", "c"]', "a\nc\n", "  a\n\n c"])
def test_ids_from_a_file(text, tmp_path):
    (tmp_path / "ids").write_text(text)
    assert resolve(Request(file=str(tmp_path / "ids")), DATA, 0).forget == ("a", "c")


@pytest.mark.parametrize("text", ["[1]", "[", "", "[]"])
def test_a_file_without_ids(text, tmp_path):
    (tmp_path / "ids").write_text(text)
    with pytest.raises(DataError, match=r"request\.file"):
        resolve(Request(file=str(tmp_path / "ids")), DATA, 0)


def test_an_absent_file(tmp_path):
    with pytest.raises(StorageError, match=r"request\.file: cannot read"):
        resolve(Request(file=str(tmp_path / "absent")), DATA, 0)


@pytest.mark.parametrize(
    ("request_", "error", "expected"),
    [
        (Request(ids=("a",), count=1), ConfigError, "ids and count are given together"),
        (Request(ids=("a",), by="author"), ConfigError, "request.by goes with"),
        (Request(split="nothing"), ConfigError, "no split 'nothing'"),
        (Request(ids=("a", "u")), DataError, r"1 unknown record ids \(u\)"),
        (Request(ids=("held",)), DataError, "1 unknown record ids"),
        (Request(where={"author": ("w",)}), DataError, "1 records to forget are test records"),
        (Request(count=8), DataError, "cannot draw 8"),
        (Request(count=1, by="town"), DataError, "no column 'town'"),
        (Request(where={"author": ("nobody",)}), DataError, "matches no record"),
        (Request(where={"year": Between(min=9)}), DataError, "matches no record"),
        (Request(where={"year": Between()}), ConfigError, r"where\.year: give min, max or both"),
        (Request(where={"year": Between(min=2, max=1)}), ConfigError, "min is above max"),
        (Request(where={"author": Between(min=2)}), DataError, "author: the column does not hold"),
        (Request(classes=(1,)), ConfigError, "for a causal_lm, which has no classes; use where"),
        (Request(ids=("a",), classes=(1,)), ConfigError, "ids and classes are given together"),
        (Request(count=2, identified=0.5), ConfigError, "identified = 0.5 does not go with count"),
    ],
)
def test_wrong_requests(request_, error, expected):
    with pytest.raises(error, match=expected):
        resolve(request_, DATA, 0)


def test_neither_message_nor_provenance_tells_what_was_asked_for():
    with pytest.raises(DataError) as refused:
        resolve(Request(where={"author": ("Jane Doe",)}), DATA, 0)
    assert "Jane" not in str(refused.value)
    told = json.dumps(dict(resolve(Request(where={"author": ("x",)}), DATA, 0).provenance))
    assert json.loads(told)["rule"] == "where"
    assert '"x"' not in told


def test_a_range_is_read_from_plain_data_and_written_back():
    plain = {"where": {"year": {"min": 2, "max": 3.5}, "author": ["z"]}}
    request = parse(Request, plain, "recipe.request")
    assert request.where == {"year": Between(min=2, max=3.5), "author": ("z",)}
    assert parse(Request, to_json(request), "recipe.request") == request
    with pytest.raises(ConfigError, match=r"recipe\.request"):
        parse(Request, {"where": {"year": {"mni": 2}}}, "recipe.request")


@pytest.mark.parametrize("kind", [np.float32, np.float64, list])
@pytest.mark.parametrize(
    ("wanted", "expected"), [((1,), "a"), ((0.3,), "b"), ((1.0, 0.3), "ab"), (("0.5",), "c")]
)
def test_values_are_numbers_where_the_column_holds_numbers(kind, wanted, expected):
    values = [1.0, 0.3, 0.5, 2.25]
    column = values if kind is list else np.array(values, kind)
    data = Dataset("causal_lm", Records(tuple("abcd"), {"text": list("abcd"), "carat": column}))
    request = parse(Request, {"where": {"carat": list(wanted)}}, "recipe.request")
    assert resolve(request, data, 0).forget == tuple(expected)


def test_a_fraction_is_no_whole_number():
    columns = {"text": list("ab"), "count": np.array([0, 1])}
    data = Dataset("causal_lm", Records(tuple("ab"), columns))
    with pytest.raises(DataError, match="matches no record"):
        resolve(Request(where={"count": (0.5,)}), data, 0)


def test_a_record_without_a_number_lies_in_no_range():
    columns = {"text": list("abcd"), "age": [None, 3, "4", 9], "size": np.array([1, np.nan, 1, 1])}
    data = Dataset("causal_lm", Records(tuple("abcd"), columns))
    assert resolve(Request(where={"age": Between(max=5)}), data, 0).forget == ("b", "c")
    assert resolve(Request(where={"size": Between(min=0)}), data, 0).forget == tuple("acd")


LABELS = [0, 1, 2, 0, 1, 2, 0, 0]
CLASSES = from_arrays(np.ones((8, 2)), LABELS, ids=list(IDS))
NAMED = dataclasses.replace(CLASSES, facts={**CLASSES.facts, "classes": ["cat", "dog", "cow"]})


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (Request(classes=(1,)), "be"),
        (Request(classes=("cow",)), "cf"),
        (Request(where={"y": (1,)}), "be"),
        (Request(classes=(0,)), "adgh"),
    ],
)
def test_classes_go_by_number_or_name(request_, expected):
    sets = resolve(request_, NAMED, 0)
    assert sets.forget == tuple(expected)
    assert set(sets.retain) == set(IDS) - set(expected)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (Request(classes=(0, "cow")), r"forgetting class 0, cow leaves a single class \(1\)"),
        (Request(where={"y": (0, 1)}), r"forgetting 6 records leaves a single class \(2\)"),
        (Request(classes=(0, 1, 2)), "names all 8 training records, so that nothing is left"),
        (Request(classes=(3,)), r"request\.classes: there is no class 3; .* 0 to 2, called cat"),
        (Request(classes=("hen",)), "there is no class 'hen'"),
    ],
)
def test_classes_that_cannot_go(request_, expected):
    with pytest.raises(DataError, match=expected):
        resolve(request_, NAMED, 0)


def test_a_class_of_which_there_is_no_record():
    data = from_arrays(np.ones((4, 2)), [0, 1, 0, 1], num_classes=3)
    with pytest.raises(DataError, match="no training record has class 2"):
        resolve(Request(classes=(2,)), data, 0)


def test_data_that_hold_nothing_but_what_is_to_be_forgotten_are_no_error():
    alone = Dataset("causal_lm", TRAIN, splits={"forget": IDS})
    assert resolve(Request(), alone, 0).retain == ()


def test_a_share_is_identified_and_the_rest_is_retained():
    """The card of corrective unlearning: S_f is drawn from S_m, with |S_f| = share * |S_m|."""
    names = [f"r{i:03d}" for i in range(100)]
    texts = Records(tuple(names), {"text": names})
    data = Dataset("causal_lm", texts, splits={"manipulated": tuple(names[:50])})
    found = {}
    for share, count in ((0.01, 1), (0.1, 5), (0.5, 25), (1.0, 50)):
        sets = resolve(Request(split="manipulated", identified=share), data, 3)
        found[share] = set(sets.forget)
        assert len(sets.forget) == count
        assert found[share] <= set(names[:50])
        assert set(sets.retain) == set(names) - found[share]
    assert found[0.01] < found[0.1] < found[0.5] < found[1.0]
    again = resolve(Request(split="manipulated", identified=0.1), data, 3)
    assert set(again.forget) == found[0.1]
    assert set(resolve(Request(split="manipulated", identified=0.1), data, 4).forget) != found[0.1]


def test_every_manipulated_record_is_as_likely_to_be_found():
    data = Dataset("causal_lm", TRAIN, splits={"all but one": IDS[:-1]})
    request = Request(split="all but one", identified=0.4)
    counts = Counter(i for seed in range(700) for i in resolve(request, data, seed).forget)
    assert all(abs(counts[i] - 300) < 60 for i in IDS[:-1])  # 3 of 7, 4.6 standard deviations


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1])
def test_a_share_outside_its_range_is_refused(share):
    with pytest.raises(ConfigError, match=r"request: identified"):
        parse(Request, {"identified": share}, "request")


def test_provenance_tells_the_manipulation_and_what_was_found():
    settings = {"kind": "swap_labels", "count": 40}
    data = load_source("digits", {"corrupt": settings}, 0)
    sets = resolve(Request(split="manipulated", identified=0.25), data, 0)
    assert len(sets.forget) == 10
    unknown = set(data.splits["manipulated"]) - set(sets.forget)
    assert unknown < set(sets.retain)
    assert sets.provenance["identified"] == 0.25
    assert sets.provenance["named"] == 40
    assert sets.provenance["corruption"] == settings
    whole = resolve(Request(split="manipulated"), data, 0)
    assert set(whole.forget) == set(data.splits["manipulated"])
    assert "identified" not in whole.provenance


def test_ids_with_distances_are_read_as_ids(tmp_path):
    path = tmp_path / "neighbours.json"
    path.write_text(json.dumps([{"id": "c", "distance": 0.0}, {"id": "a", "distance": 0.5}]))
    assert resolve(Request(file=str(path)), DATA, 0).forget == ("c", "a")
    path.write_text(json.dumps([{"distance": 0.0}]))
    with pytest.raises(DataError, match=r"request\.file"):
        resolve(Request(file=str(path)), DATA, 0)
