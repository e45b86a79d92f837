"""Runs a study of ``benchmarks`` as its reader would, and hands its numbers to the tests."""

import subprocess
import sys
from pathlib import Path

import pytest

from expunge.core.files import read_json

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """Return a function from a script's name and options to the numbers it writes."""

    def run(name, *options):
        path = tmp_path_factory.mktemp(name) / "numbers.json"
        command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--json", str(path), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return read_json(path)["numbers"]

    return run
