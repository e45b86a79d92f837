"""A disk that fails: one clear error, nothing half-written, and the run goes on once it works."""

import errno
import json
import os
import random

import pytest
from command_line import Command
from small_recipes import DIGITS, write_recipe

from expunge.core import files
from expunge.core.errors import StorageError
from expunge.pipeline.execute import execute
from expunge.pipeline.recipe import make_recipe


class FailsOnce:
    """A disk whose n-th operation from now fails."""

    def __init__(self, n):
        self.left = n

    def __call__(self, operation, path):
        self.left -= 1
        if self.left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def outcome(out):
    """Carry out the recipe; return the message of the storage error, or None."""
    try:
        execute(make_recipe(DIGITS), out, quiet=True)
    except StorageError as error:
        return str(error)
    return None


def check_whole(out):
    """Check that every file of an interrupted run can be read to its end."""
    import pyarrow.parquet as pq

    from expunge.engine.weights import load_tensors

    assert not list(out.rglob("*.partial"))
    for path in out.rglob("*.json"):
        json.loads(path.read_text())
    for path in out.rglob("*.safetensors"):
        load_tensors(path)
    for path in out.rglob("*.parquet"):
        pq.read_table(path)


def test_failures_all_along_the_run(finished_digits, tmp_path, monkeypatch):
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    draw, failures = random.Random(0), 0
    for _ in range(50):
        monkeypatch.setattr(files, "fault_hook", FailsOnce(draw.randint(1, 150)))
        message = outcome(tmp_path / "run")
        if message is None:
            break
        failures += 1
        assert "No space left on device" in message
        assert str(tmp_path) in message
        check_whole(tmp_path)
    assert failures >= 4
    whole = json.loads((finished_digits / "digest.json").read_text())
    assert json.loads((tmp_path / "run/digest.json").read_text()) == whole


@pytest.mark.parametrize("limit", [1_000, 20_000])
def test_files_that_may_not_grow(limit, finished_digits, tmp_path):
    recipe = write_recipe(tmp_path / "recipe.yaml", DIGITS)
    out, cache = tmp_path / "run", tmp_path / "cache"
    ended = Command(["run", recipe, "--out", out], cache, tmp_path, max_file_bytes=limit).wait()
    assert ended.code == 2, ended.err
    last = ended.err.splitlines()[-1]
    assert last.startswith("error: cannot ")
    assert "File too large" in last
    assert "Traceback" not in ended.err
    check_whole(tmp_path)
    assert Command(["run", recipe, "--out", out], cache, tmp_path).wait().code == 0
    whole = json.loads((finished_digits / "digest.json").read_text())
    assert json.loads((out / "digest.json").read_text()) == whole
