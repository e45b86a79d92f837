"""The pages: generated ones are up to date, examples are the files, links and commands exist."""

import dataclasses
import importlib.util
import re

import pytest
import typer.main

from expunge.cli.main import app
from expunge.forget.method import methods

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
EXAMPLE = re.compile(r"<!-- example: (\S+) -->\n```\w+\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")


@pytest.fixture(scope="module")
def generate(root):
    found = importlib.util.spec_from_file_location("generate", root / "docs" / "generate.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def written(root):
    """Every page of the documentation with its text."""
    found = [*root.glob("*.md"), *(root / "docs").rglob("*.md")]
    return {path: path.read_text(encoding="utf-8") for path in found}


def test_generated_pages_are_up_to_date(generate):
    made = generate.pages()
    stale = [str(p) for p, text in made.items() if not p.is_file() or p.read_text() != text]
    assert not stale, "run `python docs/generate.py`"
    for folder in ("methods", "audits"):
        assert set((generate.DOCS / folder).glob("*.md")) <= made.keys()


def test_generator_sees_a_change(generate, monkeypatch):
    newcomer = dataclasses.replace(methods.get("npo"), name="newcomer", source="Nobody (2001)")
    monkeypatch.setitem(methods._parts, "newcomer", newcomer)
    made = generate.pages()
    assert "# newcomer\n" in made[generate.DOCS / "methods" / "newcomer.md"]
    assert "| newcomer | Nobody (2001) |" in made[generate.DOCS / "papers.md"]


def test_code_blocks_are_the_example_files(root, written):
    shown = {}
    for page, text in written.items():
        for path, code in EXAMPLE.findall(text):
            assert code == (root / path).read_text(encoding="utf-8"), f"{path} in {page}"
            shown.setdefault(page.relative_to(root).as_posix(), []).append(path)
        assert len(re.findall("<!-- example: ", text)) == len(EXAMPLE.findall(text)), page
    starts = ("own_language_model.sh", "own_module.py", "tofu.yaml")
    assert shown["README.md"] == [f"docs/examples/{name}" for name in starts]
    assert shown["docs/add_a_method.md"] == ["docs/examples/my_method.py"]
    assert shown["docs/add_an_audit.md"] == ["docs/examples/my_audit.py"]


def anchor(heading):
    """Return the anchor that Markdown renderers give to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def test_links_lead_somewhere(written):
    checked = 0
    for page, text in written.items():
        for path, place in LINK.findall(FENCE.sub("", text)):
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), f"{page}: {path}"
            if place:
                headings = re.findall(r"^#+ (.*)$", written[target], re.MULTILINE)
                assert place in map(anchor, headings), f"{page}: #{place}"
            checked += 1
    assert checked > 50


def test_commands_exist(root, written):
    command = typer.main.get_command(app)
    targets = re.findall(r"^([\w-]+):", (root / "Makefile").read_text(), re.MULTILINE)
    named = set()
    for page, text in written.items():
        code = [block for language, block in FENCE.findall(text) if language == "sh"]
        code += re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
        for line in "\n".join(code).splitlines():
            for name in re.findall(r"(?:^|/)expunge ([a-z]+)", line):
                assert name in command.commands, f"{page}: {line}"
                named.add(name)
            for name in re.findall(r"^make ([a-z-]+)", line):
                assert name in targets, f"{page}: {line}"
    assert {"run", "forget", "audit", "purge", "methods"} <= named


def test_readme_names_every_method(root, written):
    text = written[root / "README.md"]
    for name in methods.names():
        assert f"[{name}](docs/methods/{name}.md)" in text
