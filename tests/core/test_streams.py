import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from expunge.core.digest import digest_json
from expunge.core.streams import stream, stream_seed

NAMES = st.tuples(
    st.integers(-(2**40), 2**40), st.text(), st.lists(st.integers(0, 2**40) | st.text(), max_size=3)
)


@given(NAMES, NAMES)
def test_streams_are_equal_exactly_when_their_names_are(one, other):
    draws = [stream(s, p, *c).integers(2**62, size=4) for s, p, c in (one, other)]
    assert np.array_equal(*draws) == (one == other)


@given(NAMES)
def test_a_stream_does_not_depend_on_what_was_drawn_before(name):
    seed, purpose, counters = name
    first = stream(seed, purpose, *counters).random(3)
    stream(seed, "another").random(5)
    assert np.array_equal(stream(seed, purpose, *counters).random(3), first)


def test_counters_do_not_run_into_each_other():
    seeds = {
        stream_seed(0, "order", 1, 23),
        stream_seed(0, "order", 12, 3),
        stream_seed(0, "order", 123),
        stream_seed(0, "order", "1", "23"),
        stream_seed(0, "order1", 23),
    }
    assert len(seeds) == 5


def test_seed_is_the_head_of_a_digest_and_fits_an_int64():
    # 63 bits of SHA-256 of the canonical JSON [7,"order",3].
    assert stream_seed(7, "order", 3) == int(digest_json([7, "order", 3]), 16) >> 193
    assert all(0 <= stream_seed(0, "range", i) < 2**63 for i in range(1000))


def test_draws_look_uniform_across_neighbouring_counters():
    firsts = np.array([stream(0, "uniform", i).random() for i in range(2000)])
    # Mean of 2000 uniform draws: 0.5 with a standard error of 0.0065; five of them are allowed.
    assert abs(firsts.mean() - 0.5) < 0.033
    assert abs(np.corrcoef(firsts[:-1], firsts[1:])[0, 1]) < 0.12
