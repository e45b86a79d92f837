import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.core.errors import DataError
from expunge.core.sets import ROLES, Sets, require_known, sample_ids

IDS = st.lists(st.text(min_size=1), min_size=4, max_size=20, unique=True)


def deal(ids, cuts):
    """Cut ids into four sets, of which the first is not empty."""
    a, b, c = sorted(cuts)
    a = max(a, 1)
    return Sets(tuple(ids[:a]), tuple(ids[a:b]), tuple(ids[b:c]), tuple(ids[max(a, b, c) :]))


@given(IDS, st.tuples(*[st.integers(1, 4)] * 3), st.randoms())
def test_digest_depends_on_membership_only(ids, cuts, random):
    sets = deal(ids, cuts)
    shuffled = {
        role: random.sample(getattr(sets, role), len(getattr(sets, role))) for role in ROLES
    }
    other = Sets(**{role: tuple(ids) for role, ids in shuffled.items()}, provenance={"seed": 1})
    assert other.digest() == sets.digest()


@given(IDS)
def test_moving_a_record_to_another_set_changes_the_digest(ids):
    sets = Sets((ids[0], ids[1]), tuple(ids[2:]))
    moved = Sets((ids[0],), (ids[1], *ids[2:]))
    assert moved.digest() != sets.digest()


@given(IDS, st.tuples(*[st.integers(1, 4)] * 3))
def test_json_round_trip(ids, cuts):
    sets = dataclasses.replace(deal(ids, cuts), provenance={"seed": 3})
    assert Sets.from_json(sets.to_json()) == sets


def test_every_overlap_and_repetition_is_named_at_once():
    with pytest.raises(DataError) as caught:
        Sets(forget=("a", "b"), retain=("b", "c", "c"), test=("a", "c"))
    message = str(caught.value)
    assert "4 problems" in message
    assert "retain set names 1 record ids more than once (c)" in message
    assert "forget set and retain set share 1 record ids (b)" in message
    assert "forget set and test set share 1 record ids (a)" in message
    assert "retain set and test set share 1 record ids (c)" in message


def test_something_must_be_forgotten():
    with pytest.raises(DataError, match="forget set is empty"):
        Sets(forget=(), retain=("a",))


def test_partition_retains_the_rest_in_order():
    sets = Sets.partition("abcd", "ca", holdout="xy", test="z")
    assert sets == Sets(("c", "a"), ("b", "d"), ("x", "y"), ("z",))
    assert sets.train == ("b", "d", "c", "a")


def test_partition_refuses_unknown_ids():
    with pytest.raises(DataError, match=r"forget set: 1 unknown record ids \(z\).*such as a, b, c"):
        Sets.partition("abcd", "az")


def test_require_known_shortens_long_lists():
    with pytest.raises(DataError, match=r"7 unknown record ids \(0, 1, 2, 3, 4 \(\+2 more\)\)"):
        require_known(map(str, range(7)), ["a"], "select")


@given(st.integers(0, 30), st.integers(0, 2**32))
def test_sample_draws_distinct_ids_in_order(count, seed):
    ids = [f"r{i:02d}" for i in range(30)]
    drawn = sample_ids(ids, count, seed, "holdout")
    assert len(set(drawn)) == count
    assert list(drawn) == sorted(drawn)
    assert drawn == sample_ids(ids, count, seed, "holdout")


def test_sample_depends_on_seed_and_purpose():
    ids = [str(i) for i in range(200)]
    assert len({sample_ids(ids, 20, s, p) for s in (0, 1) for p in ("forget", "holdout")}) == 4


@pytest.mark.parametrize("count", [-1, 4])
def test_sample_refuses_more_than_there_are(count):
    with pytest.raises(DataError, match=f"cannot draw {count} records for 'forget' out of 3"):
        sample_ids("abc", count, 0, "forget")
