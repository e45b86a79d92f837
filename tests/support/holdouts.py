"""A reusable holdout over made-up records, for tests that ask it."""

from expunge.audit.holdout import HoldoutConfig, Thresholdout
from expunge.audit.holdout_ledger import Ledger
from expunge.core.records import Records

SURE = {"threshold": 0.2, "noise": 0.001}
"""Settings whose noise decides nothing."""


def sample(name, n=1000, columns=()):
    return Records(tuple(f"{name}-{row}" for row in range(n)), {c: list(range(n)) for c in columns})


def mechanism(ledger=None, *, n=1000, samples=None, seed=0, asker="audit", **settings):
    ledger = Ledger(None) if ledger is None else ledger
    config = HoldoutConfig(**settings)
    train, holdout = samples or (n, n)
    return Thresholdout(sample("t", train), sample("h", holdout), ledger, seed, config, asker=asker)


def on_disk(path, **settings):
    return mechanism(Ledger(path), **settings)


def agree(asked, a_train=0.5):
    return asked.ask_values(a_train, a_train)


def disagree(asked):
    """Ask what differs so much that noise cannot hide it, with the settings of ``SURE``."""
    return asked.ask_values(0.0, 1.0)
