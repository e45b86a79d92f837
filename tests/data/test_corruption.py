"""Manipulated training data: cards `corrective-unlearning` (sections 3.1, 8) and `laf` (5).

The expected labels and pixels are worked out from the definitions, not by the functions under test.
"""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.core.errors import ConfigError, DataError
from expunge.core.records import Records
from expunge.data.arrays import from_arrays
from expunge.data.corruption import (
    Corruption,
    confuse,
    corrupt,
    highest_value,
    noise_labels,
    patched,
    poison,
    swap_labels,
)
from expunge.data.dataset import Dataset, number_ids
from expunge.data.source import load_source


def pictures(count=40, num_classes=4, channels=3, seed=0):
    draw = np.random.default_rng(seed)
    x = draw.uniform(-1, 0.8, (count, channels, 6, 5)).astype(np.float32)
    x[0, 0, 0, 0] = 2.5  # the training maximum, on a normalised scale
    return Records(
        number_ids("p", count), {"x": x, "y": (np.arange(count) % num_classes).astype(np.int64)}
    )


def rows_of(records, ids):
    return [records.ids.index(i) for i in ids]


def test_a_patch_covers_the_bottom_right_of_every_channel_and_nothing_else():
    x = np.zeros((2, 3, 6, 5))
    expected = x.copy()
    for row in (4, 5):
        for column in (3, 4):
            expected[:, :, row, column] = 7.0
    np.testing.assert_array_equal(patched(x, 2, 7.0), expected)
    assert not x.any(), "the input was changed"


@pytest.mark.parametrize(
    ("corner", "place"),
    [("top_left", (0, 0)), ("top_right", (0, 2)), ("bottom_left", (1, 0)),
     ("bottom_right", (1, 2))],
)  # fmt: skip
def test_a_patch_may_be_in_any_corner(corner, place):
    found = patched(np.zeros((2, 3)), 1, 1.0, corner)
    assert [tuple(map(int, p)) for p in np.argwhere(found)] == [place]


def test_a_patch_as_large_as_the_picture_is_the_whole_picture():
    assert (patched(np.zeros((1, 4, 4)), 4, 1.0) == 1).all()


@pytest.mark.parametrize(
    ("x", "size", "value", "message"),
    [
        (np.zeros((1, 4, 5)), 5, 1.0, "size = 5 does not fit into pictures of 4 x 5"),
        (np.zeros((1, 4, 4)), 0, 1.0, "size = 0 does not fit"),
        (np.zeros(4), 1, 1.0, "are no pictures"),
        (np.zeros((1, 4, 4)), 1, float("nan"), "not finite"),
    ],
)
def test_bad_patches_give_one_clear_error(x, size, value, message):
    with pytest.raises(DataError, match=message):
        patched(x, size, value)


def test_poison_patches_by_the_training_maximum_and_labels_by_the_target():
    clean = pictures()
    made, ids = poison(clean, count=12, size=3, target=1, seed=0)
    assert len(ids) == len(set(ids)) == 12
    for row, record_id in enumerate(clean.ids):
        if record_id not in ids:
            np.testing.assert_array_equal(made["x"][row], clean["x"][row])
            assert made["y"][row] == clean["y"][row]
            continue
        assert made["y"][row] == 1
        assert (made["x"][row][:, 3:, 2:] == np.float32(2.5)).all()
        np.testing.assert_array_equal(made["x"][row][:, :3], clean["x"][row][:, :3])
        np.testing.assert_array_equal(made["x"][row][:, 3:, :2], clean["x"][row][:, 3:, :2])
    assert highest_value(clean) == 2.5


def test_poison_is_drawn_over_all_classes_the_target_included():
    clean = pictures(400)
    _, ids = poison(clean, count=200, seed=1)
    counts = np.bincount(clean["y"][rows_of(clean, ids)], minlength=4)
    assert (counts > 30).all()


def test_poison_serves_pictures_that_are_decoded_when_they_are_used():
    class Lazy(list):
        """A sequence that is no array."""

    clean = pictures()
    lazy = Records(clean.ids, {"x": Lazy(list(clean["x"])), "y": clean["y"].tolist()})
    made, ids = poison(clean, count=5)
    other, same = poison(lazy, count=5)
    assert ids == same
    assert len(other["x"]) == len(clean)
    np.testing.assert_array_equal(np.stack([other["x"][r] for r in range(40)]), made["x"])
    np.testing.assert_array_equal(other["x"][-1], made["x"][-1])
    with pytest.raises(IndexError):
        other["x"][40]


def test_confusion_swaps_the_first_records_of_two_classes():
    made, ids = confuse(pictures(), count=6, classes=(2, 3))
    # Classes go 0, 1, 2, 3, 0, ...: class 2 begins with rows 2, 6, 10 and class 3 with 3, 7, 11.
    assert rows_of(made, ids) == [2, 3, 6, 7, 10, 11]
    assert made["y"][[2, 6, 10]].tolist() == [3, 3, 3]
    assert made["y"][[3, 7, 11]].tolist() == [2, 2, 2]
    rest = np.setdiff1d(np.arange(40), rows_of(made, ids))
    assert (made["y"][rest] == rest % 4).all()


@pytest.mark.parametrize(
    ("count", "classes", "message"),
    [
        (5, (0, 1), "count = 5 must be even"),
        (0, (0, 1), "count = 0 must be even"),
        (22, (0, 1), "class 0 has 10 records but 11 of it"),
        (2, (1, 1), "two different classes"),
        (2, (1,), "two different classes"),
        (2, (1, 9), "class 9 has 0 records"),
    ],
)
def test_bad_confusions_give_one_clear_error(count, classes, message):
    with pytest.raises(DataError, match=message):
        confuse(pictures(), count=count, classes=classes)


def test_confusion_of_a_binary_task_warns_that_nothing_is_left_unaffected():
    with pytest.warns(UserWarning, match="no third class"):
        made, _ = confuse(pictures(num_classes=2), count=40, classes=(0, 1))
    assert (made["y"] == (np.arange(40) + 1) % 2).all()


@given(count=st.integers(2, 40), seed=st.integers(0, 20))
def test_swapping_keeps_the_frequencies_and_touches_nobody_else(count, seed):
    clean = pictures()
    made, ids = swap_labels(clean, count=count, seed=seed)
    rows = rows_of(clean, ids)
    assert len(rows) == count
    assert sorted(made["y"][rows]) == sorted(clean["y"][rows])
    rest = np.setdiff1d(np.arange(40), rows)
    assert (made["y"][rest] == clean["y"][rest]).all()


def test_most_swapped_labels_are_wrong():
    clean = pictures(400)
    made, ids = swap_labels(clean, count=200, seed=0)
    assert 0.6 < np.mean((made["y"] != clean["y"])[rows_of(clean, ids)]) < 0.9  # 3/4 expected


def test_a_single_label_cannot_be_swapped():
    with pytest.raises(DataError, match="count = 1; at least 2"):
        swap_labels(pictures(), count=1)


@given(share=st.floats(0.1, 1), seed=st.integers(0, 20))
def test_noise_makes_every_chosen_label_wrong_and_spares_other_classes(share, seed):
    clean = pictures()
    made, ids = noise_labels(clean, 4, share=share, classes=(0, 1), seed=seed)
    rows = rows_of(clean, ids)
    assert len(rows) == round(share * 20)
    assert set(clean["y"][rows]) <= {0, 1}
    changed = np.flatnonzero(made["y"] != clean["y"])
    assert changed.tolist() == rows
    assert set(made["y"]) <= {0, 1, 2, 3}


def test_noise_draws_from_all_other_classes_the_last_included():
    """The card's pitfall 7: the authors' code never draws the last class."""
    clean = pictures(4000, num_classes=10, channels=1)
    made, ids = noise_labels(clean, 10, share=0.6, classes=range(5), seed=0)
    rows = rows_of(clean, ids)
    assert len(rows) == 1200  # 60 % of five classes of 400
    counts = np.bincount(made["y"][rows], minlength=10)
    # A class above the noisy ones is drawn with 1/9 from each of 1200, one of them from 960.
    assert np.allclose(counts[5:], 1200 / 9, atol=45)
    assert np.allclose(counts[:5], 960 / 9, atol=45)


@pytest.mark.parametrize(
    ("num_classes", "settings", "message"),
    [
        (1, {}, "there is no wrong label"),
        (4, {"classes": (7,)}, "share = 0.6 of 0 records is none"),
        (4, {"share": 0.001}, "share = 0.001 of 40 records is none"),
    ],
)
def test_bad_noise_gives_one_clear_error(num_classes, settings, message):
    with pytest.raises(DataError, match=message):
        noise_labels(pictures(), num_classes, **settings)


SEEDED = [
    lambda seed: poison(pictures(), count=10, seed=seed),
    lambda seed: swap_labels(pictures(), count=10, seed=seed),
    lambda seed: noise_labels(pictures(), 4, seed=seed),
]


@pytest.mark.parametrize("make", SEEDED)
def test_a_draw_is_a_function_of_the_seed(make):
    made, ids = make(3)
    again, same = make(3)
    assert ids == same
    assert made.digest() == again.digest()
    assert ids != make(4)[1]


@pytest.mark.parametrize("make", SEEDED[:2])
def test_more_records_than_there_are_cannot_be_manipulated(make):
    with pytest.raises(DataError, match="cannot draw 41 records"):
        (poison if make is SEEDED[0] else swap_labels)(pictures(), count=41)


def dataset(num_classes=4):
    records = pictures(num_classes=num_classes)
    data = from_arrays(records["x"], records["y"], holdout=(records["x"][:3], records["y"][:3]))
    return dataclasses.replace(
        data, facts={**data.facts, "classes": ["shirt", "coat", "bag", "boot"]}
    )


def test_a_corrupted_data_set_names_what_was_done_and_to_whom():
    clean = dataset()
    made = corrupt(clean, Corruption(kind="poison", count=8, target="coat"), 0)
    assert len(made.splits["manipulated"]) == 8
    assert made.facts["corruption"] == {
        "kind": "poison", "count": 8, "size": 3, "target": 1, "value": 2.5
    }  # fmt: skip
    assert made.train.ids == clean.train.ids
    assert made.holdout.digest() == clean.holdout.digest()
    assert made.digest() != clean.digest()
    noisy = corrupt(clean, Corruption(kind="noise_labels", classes=("bag", 3)), 0)
    assert noisy.facts["corruption"] == {"kind": "noise_labels", "share": 0.6, "classes": [2, 3]}
    assert len(noisy.splits["manipulated"]) == 12


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"kind": "poison"}, ConfigError, "kind 'poison' needs count"),
        ({"kind": "confuse", "count": 2}, ConfigError, "kind 'confuse' needs classes"),
        ({"kind": "swap_labels", "count": 2, "size": 3}, ConfigError, "size does not go with"),
        ({"kind": "noise_labels", "count": 2}, ConfigError, "count does not go with"),
        ({"kind": "poison", "count": 2, "target": 4}, DataError, r"corrupt\.target: there is no"),
        ({"kind": "poison", "count": 2, "size": 6}, DataError, "does not fit"),
        ({"kind": "confuse", "count": 2, "classes": ("hat", 1)}, DataError, "no class 'hat'"),
    ],
)
def test_bad_settings_give_one_clear_error(settings, error, message):
    with pytest.raises(error, match=message):
        corrupt(dataset(), Corruption(**settings), 0)


def test_data_of_another_kind_are_not_manipulated():
    texts = Dataset("causal_lm", Records(("a",), {"text": ["t"]}))
    with pytest.raises(ConfigError, match="these are for a causal_lm"):
        corrupt(texts, Corruption(kind="swap_labels", count=2), 0)


def test_every_source_of_classes_can_be_corrupted_by_its_settings():
    settings = {"num_holdout": 300, "num_test": 297}
    clean = load_source("digits", settings, 0)
    corrupted = {**settings, "corrupt": {"kind": "poison", "count": 30}}
    made = load_source("digits", corrupted, 0)
    assert made.digest() == load_source("digits", corrupted, 0).digest()
    assert made.train.ids == clean.train.ids
    assert made.test.digest() == clean.test.digest()
    chosen = made.train.select(made.splits["manipulated"])
    assert (np.asarray(chosen["x"])[:, :, 5:, 5:] == 1).all()
    assert set(chosen["y"]) == {0}


@pytest.mark.parametrize(
    ("corruption", "message"),
    [
        ("poison", r"data\.digits\.corrupt = 'poison'; write `corrupt: \{kind"),
        ({"kind": "poison", "cuont": 3}, r"data\.digits\.corrupt: unknown setting 'cuont'"),
        ({"kind": "burn"}, r"data\.digits\.corrupt: kind = 'burn'"),
        ({"kind": "poison", "count": 0}, r"data\.digits\.corrupt: count = 0"),
        ({"kind": "noise_labels", "share": 1.5}, r"data\.digits\.corrupt: share = 1\.5"),
    ],
)
def test_wrong_settings_are_named_with_their_source(corruption, message):
    with pytest.raises(ConfigError, match=message):
        load_source("digits", {"corrupt": corruption}, 0)
