"""Write the pages that follow from the code: settings, methods, audits and the list of papers.

Run ``python docs/generate.py`` after a change of a docstring or of settings; a test checks that the
pages are up to date.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import re
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from expunge.audit.audit import audits
from expunge.core.config import fields
from expunge.core.files import read_json, remove_tree, write_text
from expunge.data.corruption import Corruption
from expunge.data.source import sources
from expunge.engine.masks.mask import masks
from expunge.forget.method import MethodInfo, methods
from expunge.models.source import model_sources
from expunge.pipeline.recipe import Recipe
from expunge.report.bench import body as bench_body
from expunge.report.bench import cells, markdown
from expunge.report.bench import head as bench_head

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
NOTE = "<!-- Written by docs/generate.py from the code: change the code, not this page. -->"
LABELS = ("Source", "Needs", "Units", "When to use", "Cost", "Differs from the official code")
EXAMPLE = re.compile(
    r"(?P<marker><!-- example: (?P<path>\S+) -->)\n(```\w*\n.*?\n```\n)?", re.DOTALL
)
BENCH = re.compile(
    r"(?P<marker><!-- bench: (?P<fixture>\w+) -->\n).*?(?P<end><!-- end -->)", re.DOTALL
)
BENCHES = ("lm", "vision", "corrective")
LANGUAGES = {".py": "python", ".sh": "sh", ".yaml": "yaml"}
RECIPES = f"""{NOTE}
# Recipes

A recipe is one YAML file that decides everything about a run. `expunge run recipe.yaml` carries it
out; `--set forget.beta=0.5` changes a setting, `--dry-run` checks everything and shows the plan.
Unknown settings are refused with the nearest known names. This one is `recipes/digits.yaml`:

```yaml
{{example}}```

A part (data, model, method, audit) is written as its name, or as a mapping of `name` and its own
settings. `expunge methods show npo` and its sisters `audits`, `tasks`, `sources` and `models` print
the same tables in a terminal.
"""
PAPERS = f"""{NOTE}
# Papers

Every registered method, audit and source of data that comes from a publication: where it is, which
tests pin it, and what differs from the published code. Methods are also held to the conformance
suite, `tests/contract/test_methods.py`.

| name | paper | file | tests | known differences |
|---|---|---|---|---|
"""

RESULTS = f"""{NOTE}
# Results

Measurements beside those of the README. Each page names the command that made its numbers.
"""


def pages() -> dict[Path, str]:
    """Return the text of every page that follows from the code, in part or as a whole."""
    made = {DOCS / "recipes.md": _recipes(), DOCS / "papers.md": _papers()}
    made[DOCS / "results" / "index.md"] = _results()
    paths = {name: DOCS / "results" / f"{name}.json" for name in BENCHES}
    measured = {name: read_json(path) for name, path in paths.items() if path.is_file()}
    for folder, parts in (("methods", methods), ("audits", audits)):
        made[DOCS / folder / "index.md"] = _index(folder, parts)
        for info in parts:
            made[DOCS / folder / f"{info.name}.md"] = _page(info, measured)
    for page in (ROOT / "README.md", *DOCS.glob("*.md")):
        if page not in made:
            made[page] = EXAMPLE.sub(_example, page.read_text(encoding="utf-8"))
    for name, numbers in measured.items():
        table = DOCS / "results" / f"{name}.md"
        text = table.read_text(encoding="utf-8")
        made[table] = BENCH.sub(functools.partial(_bench, measured=numbers), text)
    return made


def write() -> None:
    """Write every page, and remove those of parts that are gone."""
    made = pages()
    for folder in ("methods", "audits"):
        for page in set((DOCS / folder).glob("*.md")) - made.keys():
            remove_tree(page)
    for path, text in made.items():
        write_text(path, text)


def _index(folder: str, parts: Iterable[Any]) -> str:
    """Return the list of methods or audits; of a method also when to use it."""
    rows, several = [], folder == "methods"
    for info in parts:
        cells = [f"[{info.name}]({info.name}.md)", info.title]
        if several:
            cells.append(_split(info.doc)[1].get("When to use", ""))
        rows.append(_row(*cells))
    head = _row("name", "what it does", *(["when to use it"] if several else []))
    rule = "|---" * (3 if several else 2) + "|"
    return "\n".join([NOTE, f"# {folder.capitalize()}", "", head, rule, *rows, ""])


def _bench(found: re.Match[str], measured: Mapping[str, Any]) -> str:
    """Return the table of a fixture between its markers."""
    fixture = found["fixture"]
    table = markdown(bench_head(measured, fixture), bench_body(measured, fixture))
    return f"{found['marker']}{table}{found['end']}"


def _measured(name: str, benches: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a method's rows of the comparisons, with the original's and the retrained models'."""
    text = ""
    for bench, measured in benches.items():
        rows = [row for row in measured["rows"] if row["method"] == name]
        if not rows:
            continue
        text += "\n" if text else "\n## Measured\n\n"
        text += f"`expunge bench {bench}`, see [the whole table](../results/{bench}.md).\n"
        for fixture, title in measured["fixtures"].items():
            columns = measured["columns"][fixture]
            own = [cells(row, columns) for row in rows if row["fixture"] == fixture]
            if own:
                head = bench_head(measured, fixture)
                table = markdown(head, [*bench_body(measured, fixture)[:2], *own])
                text += f"\n{title[0].upper()}{title[1:]}:\n\n{table}"
    return text


def _results() -> str:
    text = [RESULTS]
    for page in sorted((DOCS / "results").glob("*.md")):
        if page.stem != "index":
            title = page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
            text.append(f"- [{title}]({page.name})")
    return "\n".join([*text, ""])


def _example(found: re.Match[str]) -> str:
    """Return the marker of an example with the file's text as a code block below it."""
    path = ROOT / found["path"]
    code = path.read_text(encoding="utf-8")
    return f"{found['marker']}\n```{LANGUAGES[path.suffix]}\n{code}```\n"


def _recipes() -> str:
    parts: list[Any] = [*sources, *model_sources, *methods, *audits]
    shared = _nested([Recipe, Corruption, *(info.config for info in parts)])
    own = {info.config for info in parts}
    example = (ROOT / "recipes" / "digits.yaml").read_text(encoding="utf-8")
    text = [RECIPES.replace("{example}", example)]
    for cls in (cls for cls in shared if cls not in own):
        text.append(f"## {cls.__name__}\n\n{_plain(inspect.getdoc(cls))}\n\n{_table(cls)}")
    text.append(f"Rules for `Mask.by`: {', '.join(f'`{name}`' for name in masks.names())}.\n")
    for title, registry in (("data", sources), ("model", model_sources)):
        text.append(f"# Settings of `{title}`\n")
        for info in registry:
            text.append(
                f"## `{title}: {{name: {info.name}}}`\n\n{info.title[0].upper()}{info.title[1:]}.\n"
            )
            text.append(_table(info.config))
    return "\n".join(text)


def _page(info: Any, measured: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the page of a method or an audit."""
    prose, told = _split(info.doc)
    rows = [("Works on", ", ".join(sorted(info.kinds)))]
    if isinstance(info, MethodInfo):
        needs = ", ".join(sorted(info.needs(info.config())))
        rows += [("Reads, by default", needs), ("Guarantee", info.guarantee)]
        rows += [("Evidence", info.evidence), ("Maturity", info.maturity)]
    else:
        rows += [("Version of its numbers", str(info.version))]
    rows += [("Source", info.source), *told.items(), ("File", _file(info.function))]
    rows += [("Tests", ", ".join(_tests(info.name, info.function)) or "conformance suite")]
    facts = "\n".join(f"- **{label}:** {text}" for label, text in dict(rows).items())
    settings = _table(info.config, "../recipes.md")
    text = f"{NOTE}\n# {info.name}\n\n{prose}\n\n{facts}\n\n## Settings\n\n{settings}"
    return text + _measured(info.name, measured) if isinstance(info, MethodInfo) else text


def _papers() -> str:
    rows = []
    for info in [*methods, *audits, *sources, *model_sources]:
        function = getattr(info, "function", None) or info.fn
        _, told = _split(inspect.getdoc(function) or "")
        paper = getattr(info, "source", told.get("Source"))
        if paper is None:
            continue
        differs = told.get("Differs from the official code", "none known")
        tests = "<br>".join(_tests(info.name, function))
        rows.append(_row(info.name, paper, _file(function), tests, differs) + "\n")
    return PAPERS + "".join(rows)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _split(doc: str) -> tuple[str, dict[str, str]]:
    """Part a docstring into its prose and its labelled lines."""
    prose: list[str] = []
    told: dict[str, str] = {}
    label = ""
    for line in doc.splitlines():
        found = next((name for name in LABELS if line.startswith(name + ":")), "")
        if found:
            label, line = found, line.removeprefix(found + ":")
        if label:
            told[label] = f"{told.get(label, '')} {line.strip()}".strip()
        else:
            prose.append(line)
    return _plain("\n".join(prose).strip()), told


def _table(cls: type[Any], page: str = "") -> str:
    nested = _own(cls)
    lines = ["| setting | takes | default | |", "|---|---|---|---|"]
    for field, item in zip(fields(cls), dataclasses.fields(cls), strict=True):
        kind = field.kind.replace("text or mapping to any value", "part")
        if field.name in nested:
            below = nested[field.name].__name__
            kind = kind.replace("settings", f"[{below}]({page}#{below.lower()})")
        lines.append(_row(f"`{field.name}`", kind, _default(item.default), _plain(field.text)))
    return "\n".join(lines if len(lines) > 2 else ["It has no settings."]) + "\n"


def _default(value: Any) -> str:
    """Write a default; of nested settings only what differs from their own defaults."""
    if value is dataclasses.MISSING:
        return "required"
    if dataclasses.is_dataclass(value):
        pairs = [(item, getattr(value, item.name)) for item in dataclasses.fields(value)]
        parts = [f"{i.name}: {_default(own)}" for i, own in pairs if own != i.default]
        return ", ".join(parts) or "its defaults"
    return "none" if value is None else f"`{json.dumps(value)}`"


def _plain(text: str | None) -> str:
    """Turn the double back quotes of docstrings into those of Markdown."""
    return (text or "").replace("``", "`")


def _own(cls: type[Any]) -> Mapping[str, type[Any]]:
    """Return the settings classes among a class's fields, by field."""
    found = {}
    for name, hint in typing.get_type_hints(cls).items():
        for option in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(option) and isinstance(option, type):
                found[name] = option
    return found


def _nested(roots: Iterable[type[Any]]) -> list[type[Any]]:
    """Return settings classes and those below them, each once, in the order of reading."""
    found: dict[type[Any], None] = {}
    for cls in roots:
        found.setdefault(cls)
        found |= dict.fromkeys(c for c in _nested(_own(cls).values()) if c not in found)
    return list(found)


def _file(function: Any) -> str:
    return f"`{Path(inspect.getfile(function)).resolve().relative_to(ROOT).as_posix()}`"


def _tests(name: str, function: Any) -> list[str]:
    """Return the test files of a part: of its layer and about it by name, or importing its file."""
    module = inspect.getfile(function).rpartition("expunge/")[2].removesuffix(".py")
    dotted, layer = "expunge." + module.replace("/", "."), module.partition("/")[0]
    found = []
    for path in sorted(ROOT.glob("tests/*/test_*.py")):
        text = path.read_text(encoding="utf-8")
        named = f'"{name}"' in text or path.stem == f"test_{name}"
        if f"from {dotted} import" in text or (path.parent.name == layer and named):
            found.append(f"`{path.relative_to(ROOT).as_posix()}`")
    return found


if __name__ == "__main__":
    write()
