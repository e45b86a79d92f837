import json

import numpy as np
import pytest

from expunge.core.errors import ConfigError, DataError, StorageError
from expunge.core.records import Records
from expunge.data.dataset import Dataset
from expunge.pipeline.request import Request, resolve

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
