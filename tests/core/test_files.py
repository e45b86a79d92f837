import errno
import os

import pytest

from expunge.core import files
from expunge.core.errors import DataError, IntegrityError, StorageError


def test_json_round_trip(tmp_path):
    path = tmp_path / "new" / "folder" / "a.json"
    files.write_json(path, {"b": [1, 2.5], "a": "é"})
    assert files.read_json(path) == {"b": [1, 2.5], "a": "é"}
    assert os.listdir(path.parent) == ["a.json"]


def test_json_never_holds_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "a.json", float("nan"))
    assert os.listdir(tmp_path) == []


def test_failed_block_keeps_the_old_file(tmp_path):
    path = tmp_path / "a"
    files.write_text(path, "old")

    def crash():
        with files.atomic_path(path) as temporary:
            temporary.write_text("half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        crash()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_write_below_a_file_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match=r"cannot write .*--out"):
        files.write_text(tmp_path / "file" / "child", "text")


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"{", IntegrityError, "not valid JSON"),
        (b"\xff", IntegrityError, "not valid JSON"),
        (b"[" * 100_000, IntegrityError, "not valid JSON"),
        (None, StorageError, "cannot read"),
    ],
)
def test_read_json_refuses(tmp_path, content, error, message):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=message):
        files.read_json(path)


def test_read_json_refuses_what_is_too_large(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text("[1, 2, 3]")
    monkeypatch.setattr(files, "MAX_JSON_BYTES", 4)
    with pytest.raises(IntegrityError, match="larger than 4 bytes"):
        files.read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    "names",
    [
        ("..",),
        ("..", "root-2"),
        ("a", "..", "..", "b"),
        ("/etc/passwd",),
        ("a", "/etc/passwd"),
        ("link", "b"),
        ("loop", "b"),
        ("a\0b",),
    ],
)
def test_safe_join_refuses_to_leave_the_root(tmp_path, names):
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    (root / "loop").symlink_to(root / "loop")
    with pytest.raises(DataError, match="use plain names"):
        files.safe_join(root, *names)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("a",), "a"),
        (("a", "b.json"), "a/b.json"),
        (("a", "..", "b"), "b"),
        (("...",), "..."),
        (("..\\..\\b",), "..\\..\\b"),
        (("%2e%2e",), "%2e%2e"),
    ],
)
def test_safe_join_accepts_names_below_the_root(tmp_path, names, expected):
    assert files.safe_join(tmp_path, *names) == tmp_path.resolve() / expected


def test_remove_tree_takes_folders_files_links_and_nothing(tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("stays")
    (tmp_path / "folder" / "below").mkdir(parents=True)
    (tmp_path / "link").symlink_to(kept)
    (tmp_path / "file").write_text("goes")
    for name in ("folder", "link", "file", "absent"):
        files.remove_tree(tmp_path / name)
    assert os.listdir(tmp_path) == ["kept"]
    assert os.listdir(kept) == ["file"]


@pytest.mark.parametrize("deleted", [0, 1, 2])
def test_a_folder_whose_deletion_was_killed_is_gone_and_leaves_nothing_later(
    tmp_path, monkeypatch, deleted
):
    """Half a folder of checkpoints would be taken for a damaged one."""
    folder = tmp_path / "checkpoints"

    def fill():
        folder.mkdir()
        for name in ("HEAD.json", "state.safetensors"):
            (folder / name).write_text(name)

    def killed(path):
        for file in sorted(path.iterdir())[:deleted]:
            file.unlink()
        raise KeyboardInterrupt

    fill()
    with monkeypatch.context() as patch:
        patch.setattr(files.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            files.remove_tree(folder)
    assert not folder.exists()
    fill()  # the work is done again, and cleared away again
    files.remove_tree(folder)
    assert os.listdir(tmp_path) == []


def test_require_writable_leaves_no_trace(tmp_path):
    files.require_writable(tmp_path / "new")
    assert os.listdir(tmp_path / "new") == []


def test_require_writable_refuses_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        files.require_writable(tmp_path / "file")


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "free space or choose another folder"), (errno.EROFS, "you can write to")],
)
def test_the_remedy_fits_the_failure(tmp_path, monkeypatch, number, remedy):
    def fail(operation, path):
        raise OSError(number, "refused")

    monkeypatch.setattr(files, "fault_hook", fail)
    with pytest.raises(StorageError, match=remedy):
        files.write_bytes(tmp_path / "file", b"")
