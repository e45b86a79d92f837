"""Correction, on models that follow a patch or confuse two classes by construction."""

import dataclasses

import attack_worlds
import numpy as np
import pytest
import torch
from torch import nn

from expunge.audit.audit import audits, parse_config
from expunge.audit.readings import Reading
from expunge.audit.views import Scene, see
from expunge.core.errors import ConfigError, DataError
from expunge.core.records import Records
from expunge.core.sets import Sets
from expunge.data.corruption import Corruption, corrupt
from expunge.data.dataset import Dataset
from expunge.engine.tasks.classifier import Classifier


class Reader(nn.Module):
    """Reads the class off the first pixel; a white corner or a swap of classes leads it astray."""

    def __init__(self, *, follows=None, swapped=()):
        super().__init__()
        self.follows = follows
        self.register_buffer("turned", torch.arange(5))
        for one, other in swapped:
            self.turned[one] = other
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        classes = (x[:, 0, 0, 0] * 10).round().long()
        found = self.turned[classes].clone()
        if self.follows is not None:
            found[x[:, 0, -1, -1] > 0.9] = self.follows
        return 9.0 * nn.functional.one_hot(found, 5).float() + 0 * self.unused


def pictures(labels, prefix):
    x = np.zeros((len(labels), 1, 6, 6), dtype=np.float32)
    x[:, 0, 0, 0] = np.asarray(labels) / 10
    ids = tuple(f"{prefix}-{row}" for row in range(len(labels)))
    return Records(ids, {"x": x, "y": np.asarray(labels)})


TEST = pictures([row % 5 for row in range(100)], "test")
CLEAN = Dataset(
    "classifier",
    pictures([row % 5 for row in range(60)], "train"),
    test=TEST,
    facts={"num_classes": 5},
)
RIGHT = Reader()


def world(dataset, after, reference=RIGHT, forgotten=None):
    gone = dataset.splits.get("manipulated", ()) if forgotten is None else forgotten
    sets = dataclasses.replace(Sets.partition(dataset.train.ids, gone), test=dataset.test.ids)
    return attack_worlds.Worlds(Classifier(5), dataset, sets, after, after, (reference,))


def poisoned():
    corruption = Corruption(kind="poison", count=20, size=2, value=1.0, target=0)
    return corrupt(CLEAN, corruption, seed=1)


def of(findings, metric, subject="after"):
    return next(f for f in findings if f.metric == metric and f.subject == subject)


def test_a_model_that_follows_the_patch_has_the_share_of_its_class():
    found = world(poisoned(), Reader(follows=0)).audit(
        "corrective", {"min_acc_corr": 80.0, "min_acc_retain": 80.0}
    )
    assert of(found, "acc_corr").value == pytest.approx(20)  # one class of five, not 0
    assert of(found, "acc_corr").n == 100
    assert of(found, "acc_corr").verdict == "fail"
    assert of(found, "acc_corr").reference.gap == pytest.approx(-80)
    assert of(found, "acc_retain").value == 100
    assert of(found, "acc_retain").verdict == "pass"
    assert of(found, "delete_err").value == 100
    assert of(found, "delete_err", "reference").value < 60
    low, high = (getattr(of(found, "acc_corr").interval, end) for end in ("low", "high"))
    assert (low, high) == pytest.approx((12.6655, 29.1843), abs=1e-3)  # scipy, exact, 20 of 100


def test_a_corrected_model_is_right_on_both_domains():
    found = world(poisoned(), RIGHT, Reader(follows=0)).audit("corrective", {})
    assert of(found, "acc_corr").value == of(found, "acc_retain").value == 100
    assert of(found, "acc_corr").reference.gap == pytest.approx(80)


def test_single_classes_that_a_method_wrecks_show():
    found = world(poisoned(), Reader(swapped=[(3, 1)])).audit("corrective", {})
    assert of(found, "acc_retain").value == pytest.approx(80)
    each = {k: of(found, f"acc_retain_class_{k}") for k in range(5)}
    assert {k: f.value for k, f in each.items()} == {0: 100, 1: 100, 2: 100, 3: 0, 4: 100}
    assert {f.n for f in each.values()} == {20}


def test_confused_classes_are_the_affected_domain():
    data = corrupt(CLEAN, Corruption(kind="confuse", count=8, classes=(2, 4)), seed=1)
    confused = world(data, Reader(swapped=[(2, 4), (4, 2)]))
    found = confused.audit("corrective", {})
    assert of(found, "acc_corr").value == 0
    assert of(found, "acc_corr").n == 40
    assert of(found, "acc_retain").value == 100
    assert of(found, "acc_retain").n == 60
    assert of(found, "delete_err").value == 100
    assert of(found, "delete_err", "reference").value == 0
    assert {f.metric for f in found if "class" in f.metric} == {
        f"acc_retain_class_{k}" for k in (0, 1, 3)
    }


def test_the_manipulation_can_be_set_where_the_data_do_not_tell():
    plain = world(CLEAN, Reader(follows=3), forgotten=CLEAN.train.ids[:4])
    found = plain.audit("corrective", {"patch": {"size": 1, "value": 1.0}})
    assert of(found, "acc_corr").value == pytest.approx(20)
    found = plain.audit("corrective", {"patch": {"corner": "top_right"}})
    assert of(found, "acc_corr").value == 100  # it looks at another corner
    found = plain.audit("corrective", {"classes": [1]})
    assert of(found, "acc_corr").n == 20


def test_labels_of_all_classes_leave_no_domain_unaffected():
    data = corrupt(CLEAN, Corruption(kind="swap_labels", count=10), seed=1)
    found = world(data, RIGHT).audit("corrective", {"min_acc_retain": 90.0})
    assert of(found, "acc_corr").n == 100
    assert of(found, "acc_retain").note == "the manipulation affects every class"
    assert of(found, "acc_retain").verdict == "inconclusive"


def test_without_test_records_nothing_is_claimed():
    empty = dataclasses.replace(poisoned(), test=TEST.take([]))
    found = world(empty, RIGHT).audit("corrective", {"min_acc_corr": 1.0})
    assert of(found, "acc_corr").note == "there are no such test records"
    assert of(found, "acc_corr").verdict == "inconclusive"


def test_what_was_manipulated_must_be_known_and_one_thing():
    info = audits.get("corrective")
    with pytest.raises(ConfigError, match="do not say what was manipulated"):
        list(info.reads(info.config(), CLEAN))
    both = parse_config(info, {"patch": {}, "classes": [1, 2]})
    with pytest.raises(ConfigError, match="leave one of them out"):
        list(info.reads(both, CLEAN))
    for wrong in ({"patch": {"size": 0}}, {"classes": []}, {"min_acc_corr": 101.0}):
        with pytest.raises(ConfigError):
            parse_config(info, wrong)


def seen(view, records=TEST):
    dataset = dataclasses.replace(CLEAN, test=records)
    scene = Scene(dataset, Sets(("train-0",), test=records.ids), 0)
    return see(Classifier(5), scene, Reading("test", view=view))[1]


@pytest.mark.parametrize(
    ("corner", "place"),
    [
        ("bottom_right", (-1, -1)),
        ("bottom_left", (-1, 0)),
        ("top_right", (0, -1)),
        ("top_left", (0, 0)),
    ],
)
def test_the_patch_is_where_it_should_be_and_the_data_stay(corner, place):
    before = TEST["x"].copy()
    found = np.stack([np.asarray(x) for x in seen(f"patched:2:0.7:{corner}")["x"]])
    np.testing.assert_array_equal(TEST["x"], before)
    changed = found != before
    assert changed[:, 0].any(axis=0).sum() == 4
    np.testing.assert_allclose(found[(slice(None), 0, *place)], 0.7)


def test_pictures_that_are_read_one_by_one_are_patched_alike():
    lazy = Records(TEST.ids, {"x": [x for x in TEST["x"]], "y": TEST["y"]})
    one, other = (seen("patched:3:1.0:bottom_right", records)["x"] for records in (TEST, lazy))
    np.testing.assert_array_equal(np.stack(one), np.stack(other))


@pytest.mark.parametrize(
    ("view", "why"),
    [
        ("patched:3:1.0", "needs size, value and corner"),
        ("patched:a:1.0:top_left", "needs size, value and corner"),
        ("patched:3:1.0:middle", "corner 'middle' is none of"),
        ("of_classes:x", "must be numbers"),
    ],
)
def test_views_that_make_no_sense_are_refused(view, why):
    with pytest.raises(ConfigError, match=why):
        seen(view)


def test_patches_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="size = 7 does not fit"):
        seen("patched:7:1.0:top_left")
    flat = Records(("a",), {"x": np.zeros((1, 4), "f4"), "y": np.array([0])})
    with pytest.raises(DataError, match="are no pictures"):
        seen("patched:3:1.0:top_left", flat)
    table = Records(tuple("abcd"), {"x": np.zeros((4, 4), "f4"), "y": np.zeros(4, int)})
    with pytest.raises(DataError, match=r"inputs of shape \(4,\) are no pictures"):
        seen("patched:3:1.0:top_left", table)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch": {"size": 7}}, "size = 7 does not fit into pictures of 6 x 6"),
        (
            {"classes": [9]},
            r"corrective\.classes: there is no class 9; .* classes 0 to 4",
        ),
        ({"classes": ["shirt"]}, "there is no class 'shirt'"),
    ],
)
def test_what_does_not_fit_the_data_is_refused_before_any_training(settings, message):
    info = audits.get("corrective")
    facts = {"num_classes": 5, "input_shape": [1, 6, 6], "classes": list("abcde")}
    data = dataclasses.replace(CLEAN, facts=facts)
    with pytest.raises(DataError, match=message):
        list(info.reads(parse_config(info, settings), data))
    named, numbered = (
        list(info.reads(parse_config(info, {"classes": own}), data)) for own in (["c"], [2])
    )
    assert named == numbered


def test_classes_are_kept_or_left_out():
    assert set(np.asarray(seen("of_classes:2:4")["y"])) == {2, 4}
    assert set(np.asarray(seen("not_of_classes:2:4")["y"])) == {0, 1, 3}
    assert len(seen("of_classes")) == len(TEST)


def test_findings_are_a_function_of_the_models():
    both = [world(poisoned(), Reader(follows=0)).audit("corrective", {}) for _ in range(2)]
    assert [f.digest() for f in both[0]] == [f.digest() for f in both[1]]
