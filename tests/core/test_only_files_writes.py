"""Only ``core/files.py`` writes: no other module opens a file for writing or calls a writer."""

import ast
from pathlib import Path

import pytest

import expunge

SOURCE = Path(expunge.__file__).parent
WRITERS = {
    "mkdir",
    "rename",
    "rmdir",
    "rmtree",
    "symlink_to",
    "touch",
    "write_bytes",
    "write_text",
}
# These fill a temporary path that ``atomic_path`` or ``atomic_folder`` gave them.
INSIDE_ATOMIC = {"save_pretrained", "save_file", "write_table", "savefig", "to_parquet"}
KNOWN = {
    ("engine/weights.py", "save_file"),
    ("audit/score_table.py", "write_table"),
    ("models/language.py", "save_pretrained"),
    ("engine/composites/composite.py", "save_pretrained"),  # called by models/language.py
    ("models/sources/smollm2.py", "mkdir"),  # the cache folder, before its lock can be taken
    ("report/svg.py", "savefig"),  # into memory
}
MODULES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "core/files.py")


def writes(tree):
    """Yield the name of each call that writes a file."""
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "expunge.core.files"
        for alias in node.names
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name == "open" and _for_writing(node):
            yield "open"
        if name in WRITERS | INSIDE_ATOMIC and name not in imported:
            yield name


def _for_writing(call):
    """Tell whether a mode that may write is among the arguments of ``open``."""
    position = 0 if isinstance(call.func, ast.Attribute) else 1
    given = [*call.args[position : position + 1]]
    given += [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
    modes = [node.value for node in given if isinstance(node, ast.Constant)]
    return any(isinstance(mode, str) and set(mode) & set("wax+") for mode in modes)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("open('x', 'w')", ["open"]),
        ("open('x', mode='ab')", ["open"]),
        ("path.open('r+')", ["open"]),
        ("open('x')", []),
        ("path.open('rb')", []),
        ("path.write_text('x')", ["write_text"]),
        ("from expunge.core.files import write_text\nwrite_text(path, 'x')", []),
    ],
)
def test_the_search_finds_writers(source, found):
    assert list(writes(ast.parse(source))) == found


def test_nobody_else_writes_files():
    found = {
        (path.relative_to(SOURCE).as_posix(), name)
        for path in MODULES
        for name in writes(ast.parse(path.read_text()))
    }
    assert found == KNOWN
