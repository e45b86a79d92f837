"""Benches without processes of their own, which would not see what a test replaced."""

import concurrent.futures

import pytest

from expunge.workloads import comparison


class InProcess:
    """A pool of processes without processes."""

    def __init__(self, *args, **kwargs):
        self.given = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def shutdown(self, **_):
        return None

    def submit(self, function, *arguments):
        future = concurrent.futures.Future()
        future.set_result(function(*arguments))
        return future


@pytest.fixture
def in_process(monkeypatch, tmp_path):
    """Run jobs here, with a store of references of their own."""
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(comparison.concurrent.futures, "ProcessPoolExecutor", InProcess)
