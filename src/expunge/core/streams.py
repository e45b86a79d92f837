"""Named random streams: every draw is a function of (seed, purpose, counters), never of history.

A stream's key is hashed from its name, so that resume, worker count, batch split and the order in
which parts ask for randomness cannot change a result.
"""

from __future__ import annotations

import numpy as np

from expunge.core.digest import digest_json


def stream_seed(seed: int, purpose: str, *counters: int | str) -> int:
    """Return the 63-bit seed of the stream with this name.

    Args:
        seed: The run's seed.
        purpose: What the draws are for, such as ``"order"`` or ``"dropout"``.
        counters: Epoch, step, record id, …
    """
    return int(digest_json([seed, purpose, *counters])[:16], 16) >> 1


def stream(seed: int, purpose: str, *counters: int | str) -> np.random.Generator:
    """Return a fresh generator for the stream with this name; see ``stream_seed``."""
    return np.random.Generator(np.random.Philox(key=stream_seed(seed, purpose, *counters)))
