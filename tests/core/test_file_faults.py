"""Every write survives a failure of each of its operations in turn."""

import errno
import os
import stat

import pytest

from expunge.core import files
from expunge.core.errors import StorageError


class Fault:
    """A disk that fails at its n-th operation and works before and after."""

    def __init__(self, n: int, code: int) -> None:
        self.n, self.code, self.calls = n, code, 0

    def __call__(self, operation, path):
        self.calls += 1
        if self.calls == self.n:
            raise OSError(self.code, os.strerror(self.code), str(path))


def message_of(write):
    """Return the message of the storage error of a write, or None when it succeeds."""
    try:
        write()
    except StorageError as error:
        return str(error)
    return None


def fail_at_each_operation(monkeypatch, code, write, check):
    """Call ``write`` with a failure at operation 1, 2, ... until it succeeds; return how many."""
    for n in range(1, 50):
        monkeypatch.setattr(files, "fault_hook", Fault(n, code))
        message = message_of(write)
        if message is None:
            return n - 1
        assert os.strerror(code) in message
        check()
    raise AssertionError("the write never succeeds")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("old", [None, "old"])
def test_atomic_write_leaves_the_old_file_or_the_new_one(tmp_path, monkeypatch, code, old):
    path = tmp_path / "a.json"
    if old is not None:
        files.write_text(path, old)

    def check():
        assert os.listdir(tmp_path) == ([] if old is None else ["a.json"])
        if old is not None:
            assert path.read_text() == old

    failures = fail_at_each_operation(
        monkeypatch, code, lambda: files.write_text(path, "new"), check
    )
    assert failures == 3  # open, write, rename
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_append_leaves_the_journal_as_it_was(tmp_path, monkeypatch, code):
    path = tmp_path / "journal"
    files.append_line(path, '{"step": 1}')

    def check():
        assert files.read_json_lines(path) == [{"step": 1}]

    failures = fail_at_each_operation(
        monkeypatch, code, lambda: files.append_line(path, '{"step": 2}'), check
    )
    assert failures == 1
    assert files.read_json_lines(path) == [{"step": 1}, {"step": 2}]


def test_failed_sync_of_the_folder_still_leaves_a_whole_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    files.write_text(path, "old")
    sync = os.fsync

    def fail_for_folders(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(handle)

    monkeypatch.setattr(os, "fsync", fail_for_folders)
    with pytest.raises(StorageError):
        files.write_text(path, "new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a"]


def test_full_disk_during_the_write_keeps_the_old_file(tmp_path):
    # /dev/full is the kernel's disk that is always full.
    path = tmp_path / "a"
    files.write_text(path, "old")

    def write_to_a_full_disk():
        with files.atomic_path(path) as temporary:
            temporary.symlink_to("/dev/full")
            temporary.write_text("new")

    with pytest.raises(StorageError, match="No space left on device"):
        write_to_a_full_disk()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]
