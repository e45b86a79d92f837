"""Settings of the whole suite: properties draw the same examples on every run."""

from hypothesis import settings

settings.register_profile("expunge", derandomize=True, database=None, deadline=None)
settings.load_profile("expunge")
